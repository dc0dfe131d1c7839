"""How fast a dataset is scanned: cold, warm, and against a bare loop of Pillow headers in the same run.

    python benchmarks/scan.py --count 10000       # real small pictures in a temporary folder
    python benchmarks/scan.py --rows 1000000      # the index alone: rows without files

Peak memory is the highest resident size of the process so far, Python and libraries included.
"""

from __future__ import annotations

import argparse
import io
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from darkroom.core.units import show_size
from darkroom.data import index as indexes
from darkroom.data.buckets import make_buckets
from darkroom.data.order import DatasetShape, Order
from darkroom.options.datasets import SampleDataset

SHAPES = ((96, 64), (64, 64), (64, 96), (128, 96))


def peak() -> int:
    """Highest resident bytes so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_pictures(folder: Path, count: int) -> None:
    """`count` JPEG files with captions, 1000 to a folder. The same few pictures, so that writing is quick."""
    rng, encoded = np.random.default_rng(0), []
    for width, height in SHAPES:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "jpeg")
        encoded.append(buffer.getvalue())
    for i in range(count):
        part = folder / f"{i // 1000:04d}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{i:07d}.jpg").write_bytes(encoded[i % len(encoded)])
        (part / f"{i:07d}.txt").write_text(f"picture number {i}, small and noisy")


def entry(folder: Path) -> SampleDataset:
    """A dataset entry for the folder."""
    return SampleDataset(
        id="bench", instance_data_dir=folder, cache_dir_vae=folder / "vae", resolution=64, caption_strategy="textfile"
    )


def timed(what: str, work):  # type: ignore[no-untyped-def]
    """Run and print seconds and peak memory."""
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    print(f"{what:<42} {seconds:8.3f} s   peak {show_size(peak())}")
    return result, seconds


def bare_loop(folder: Path) -> None:
    """What a person would write in three lines."""
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as image:
            image.size  # noqa: B018


def bench_files(count: int) -> None:
    """Cold and warm scans of real files."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary) / "pictures", Path(temporary) / "cache"
        write_pictures(folder, count)
        dataset = entry(folder)
        sizing = indexes.sizing_of(dataset, alignment=8, rounding=2)
        bare_loop(folder)  # the system's file cache is warm for everyone
        _, bare = timed("bare Pillow header loop", lambda: bare_loop(folder))
        first, cold = timed("cold scan (headers and captions)", lambda: indexes.scan(dataset, sizing, cache, 0))
        second, warm = timed("warm scan (nothing changed)", lambda: indexes.scan(dataset, sizing, cache, 0))
        print(
            f"{count} pictures: cold {cold / bare:.2f}, warm {warm / bare:.2f} times the bare loop; opened "
            f"{first.opened} "
            f"and {second.opened}; index {show_size(first.file.stat().st_size)}"
        )


def bench_rows(count: int) -> None:
    """Saving, loading, bucketing and ordering `count` synthetic rows."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = entry(folder).model_copy(update={"preserve_data_backend_cache": True, "train_batch_size": 4})
        sizing = indexes.sizing_of(dataset, alignment=8, rounding=2)
        before = peak()
        rng = np.random.default_rng(0)
        made = indexes._start(
            dataset, _listing(count), indexes.index_file(folder, dataset), indexes._settings(dataset, sizing, 0)
        )
        made.numbers["width"], made.numbers["height"] = rng.integers(64, 320, count), rng.integers(64, 320, count)
        made.raw = pa.array(([f"caption of picture {i}"] for i in range(count)), pa.list_(pa.string()))
        from darkroom.data.captions import CaptionTable

        timed(
            "sizes, buckets and crops for all rows",
            lambda: indexes._decide(made, np.arange(count), dataset, sizing, 0, CaptionTable()),
        )
        timed("write the index", made.save)
        print(
            f"index {show_size(made.file.stat().st_size)}; memory so far {show_size(peak() - before)} above the start"
        )
        made = None
        loaded, _ = timed("load at a second start", lambda: indexes.scan(dataset, sizing, folder, 0))
        buckets, _ = timed("group into buckets", lambda: make_buckets(loaded, dataset, prune=True))
        order = Order([DatasetShape("bench", buckets.sizes, 4)], seed=0)
        plan, _ = timed("order of one epoch", lambda: order.epoch(1))
        held = (
            sum(c.nbytes for c in loaded.numbers.values())
            + loaded.paths.nbytes
            + loaded.raw.nbytes
            + loaded.hashes.nbytes
        )
        print(f"{count} rows: columns {show_size(held)}, {len(buckets.buckets)} buckets, {len(plan)} batches")


def _listing(count: int):  # type: ignore[no-untyped-def]
    """A listing of files that do not exist."""
    from darkroom.data.scan import Listing

    none = np.zeros(0, np.int64)
    paths = pa.array([f"{i // 1000:04d}/{i:07d}.jpg" for i in range(count)], pa.string())
    return Listing(
        paths, np.full(count, 5000, np.int64), np.arange(count, dtype=np.int64), pa.array([], pa.string()), none, none
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=0, help="pictures to write and scan")
    parser.add_argument("--rows", type=int, default=0, help="synthetic index rows")
    options = parser.parse_args()
    if options.count:
        bench_files(options.count)
    if options.rows:
        bench_rows(options.rows)
