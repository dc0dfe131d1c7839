"""How fast a dataset is scanned: against a bare loop of Pillow headers, and a million rows up to their first batch.

    python benchmarks/scan.py --count 10000       # small pictures in a temporary folder: cold, warm, bare loop
    python benchmarks/scan.py --rows 1000000      # names, sizes and captions in a Parquet table; files are hard links

Peak memory is the highest resident size of the process so far, Python and libraries included.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from darkroom.core.events import Bus
from darkroom.core.units import show_size
from darkroom.data.batches.source import BatchSource
from darkroom.data.cache.caches import DatasetCaches
from darkroom.data.cache.encoders import Encoders, PixelEncoder
from darkroom.data.cache.filler import CacheFiller
from darkroom.data.cache.text import TextEncoders
from darkroom.data.plan import DatasetPlan, scan_datasets
from darkroom.data.requirements import DataRequirements
from darkroom.options.config import construct
from darkroom.options.datasets import read_datasets

SHAPES = ((96, 64), (64, 64), (64, 96), (128, 96))


def peak() -> int:
    """Highest resident bytes so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def encoded_pictures() -> list[bytes]:
    """One JPEG of each shape."""
    rng, made = np.random.default_rng(0), []
    for width, height in SHAPES:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "jpeg")
        made.append(buffer.getvalue())
    return made


def write_pictures(folder: Path, count: int) -> None:
    """`count` JPEG files with captions, 1000 to a folder. The same few pictures, so that writing is quick."""
    encoded = encoded_pictures()
    for i in range(count):
        part = folder / f"{i // 1000:04d}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{i:07d}.jpg").write_bytes(encoded[i % len(encoded)])
        (part / f"{i:07d}.txt").write_text(f"picture number {i}, small and noisy")


def link_pictures(folder: Path, count: int) -> None:
    """`count` names for a few files: hard links, 30,000 to a file at most."""
    encoded = encoded_pictures()
    source = folder.parent / "sources"
    source.mkdir()
    for i in range(count):
        part = folder / f"{i // 1000:04d}"
        if i % 1000 == 0:
            part.mkdir(parents=True)
        origin = source / f"{i % len(SHAPES)}-{i // (30_000 * len(SHAPES))}.jpg"
        if not origin.exists():
            origin.write_bytes(encoded[i % len(SHAPES)])
        os.link(origin, part / f"{i:07d}.jpg")


def write_table(path: Path, count: int) -> None:
    """Name, size and caption of each picture."""
    names = [f"{i // 1000:04d}/{i:07d}.jpg" for i in range(count)]
    sizes = np.array(SHAPES)[np.arange(count) % len(SHAPES)]
    captions = [f"picture number {i}, small and noisy" for i in range(count)]
    pq.write_table(pa.table({"file": names, "text": captions, "w": sizes[:, 0], "h": sizes[:, 1]}), path)


def plan_of(folder: Path, *entries: dict[str, Any], **keys: Any) -> DatasetPlan:
    """The plan over `folder/pictures`, with other entries of the dataset file."""
    entry = {"id": "bench", "instance_data_dir": str(folder / "pictures"), "resolution": 64, **keys}
    file = folder / "datasets.json"
    file.write_text(json.dumps([entry, *entries]))
    config = construct({
        "output_dir": str(folder / "out"), "model_family": "bench", "aspect_bucket_alignment": 8,
        "train_batch_size": 4, "seed": 0, "caption_dropout_probability": 0.0, "compress_disk_cache": True,
    })  # fmt: skip
    return scan_datasets(config, read_datasets(file, config, {}), Bus(), DataRequirements("bench"))


def timed(what: str, work: Callable[[], Any]) -> tuple[Any, float]:
    """Run and print seconds and peak memory."""
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    print(f"{what:<48} {seconds:8.3f} s   peak {show_size(peak())}")
    return result, seconds


def bare_loop(folder: Path) -> None:
    """What a person would write in three lines."""
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as image:
            image.size  # noqa: B018


def bench_files(count: int) -> None:
    """Cold and warm scans of real files."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pictures(folder / "pictures", count)
        bare_loop(folder / "pictures")  # the system's file cache is warm for everyone
        _, bare = timed("bare Pillow header loop", lambda: bare_loop(folder / "pictures"))
        keys = {"caption_strategy": "textfile"}
        first, cold = timed("cold scan (headers, captions, buckets)", lambda: plan_of(folder, **keys))
        second, warm = timed("warm scan (nothing changed)", lambda: plan_of(folder, **keys))
        opened = [plan.datasets[0].index.opened for plan in (first, second)]
        size = first.datasets[0].index.file.stat().st_size
        print(
            f"{count} pictures: cold {cold / bare:.2f}, warm {warm / bare:.2f} times the bare loop; "
            f"opened {opened[0]} and {opened[1]}; index {show_size(size)}"
        )


def caches_of(plan: DatasetPlan) -> DatasetCaches:
    """The caches of encoders made of arithmetic."""
    import torch

    text = TextEncoders("text", lambda captions: [{"text": torch.zeros(4)} for _ in captions])
    samples = PixelEncoder("latents", lambda pixels: torch.nn.functional.avg_pool2d(pixels, 8))
    return DatasetCaches(plan, Encoders(text, samples))


def first_batch(plan: DatasetPlan) -> None:
    """Encode what the first batch needs, on demand, and build it."""
    caches = caches_of(plan)
    CacheFiller(caches).fill_text()
    CacheFiller(caches).fill_latents()
    with BatchSource(caches).loader() as loader:
        next(iter(loader.epoch(1)))


def bench_rows(count: int) -> None:
    """A table of `count` rows from nothing to the first batch; twice, listing the folder and trusting the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        link_pictures(folder / "pictures", count)
        write_table(folder / "table.parquet", count)
        block = {
            "path": str(folder / "table.parquet"),
            "filename_column": "file",
            "caption_column": "text",
            "width_column": "w",
            "height_column": "h",
            "identifier_includes_extension": True,
        }
        keys = {"metadata_backend": "parquet", "caption_strategy": "parquet", "parquet": block}
        keys |= {"vae_cache_ondemand": True}
        import torch  # noqa: F401 - its import is not what is measured

        text = {"id": "text", "dataset_type": "text_embeds", "default": True, "text_cache_ondemand": True}
        print(
            f"{count} rows, table {show_size((folder / 'table.parquet').stat().st_size)}, before: {show_size(peak())}"
        )
        for name, more in (("listed", {}), ("trusted", {"skip_file_discovery": "metadata", "cache_file_suffix": "t"})):
            scan = functools.partial(plan_of, folder, text, **keys, **more)
            timed(f"{name}: scan, first start", scan)
            again, _ = timed(f"{name}: scan, second start", scan)
            batches = BatchSource(caches_of(again))
            timed(f"{name}: order of the first epoch", functools.partial(batches.order.epoch, 1))
            timed(f"{name}: first batch, encoded on demand", functools.partial(first_batch, again))
            index = again.datasets[0].index
            held = sum(c.nbytes for c in index.numbers.values())
            held += index.paths.nbytes + index.raw.nbytes + index.hashes.nbytes
            size = show_size(index.file.stat().st_size)
            print(f"  {len(index)} rows in columns of {show_size(held)}, index file {size}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=0, help="pictures to write and scan")
    parser.add_argument("--rows", type=int, default=0, help="rows of the table, and links to pictures")
    options = parser.parse_args()
    if options.count:
        bench_files(options.count)
    if options.rows:
        bench_rows(options.rows)
