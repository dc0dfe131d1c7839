"""How fast caches are filled and read: against the bare encoder, and against bare safetensors, in the same run.

    python benchmarks/cache.py [--count 96] [--edge 256] [--clock cpu]

Fill: the whole path (read files, decode, resize, crop, encode, write shards) against the encoder alone on tensors that
are in memory already. Read: entries in random order through the cache against opening one safetensors file per entry.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from darkroom.core.events import Bus
from darkroom.data import plan as plans
from darkroom.data.cache.caches import DatasetCaches
from darkroom.data.cache.encoders import Encoders, PixelEncoder
from darkroom.data.cache.filler import CacheFiller
from darkroom.data.cache.shards import ShardCache
from darkroom.data.cache.text import TextEncoders
from darkroom.data.requirements import DataRequirements
from darkroom.families.shared import latents as latent_space
from darkroom.families.shared.spec import Latents
from darkroom.options.datasets import read_datasets
from darkroom.options.sources import resolve

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FACTS = Latents(channels=4, downscale=8)


def encoder() -> Any:
    """A small AutoencoderKL with random weights."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = 4
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
    ).eval()


def pictures(folder: Path, count: int, edge: int) -> None:
    """JPEG files twice as large as what is encoded, from bundled photographs."""
    from PIL import Image
    from skimage import data

    photographs = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    folder.mkdir()
    for i in range(count):
        photograph = photographs[i % len(photographs)].rotate(i).resize((2 * edge, 2 * edge))
        photograph.save(folder / f"{i:04}.jpg", quality=90)


def plan_of(folder: Path, cache: Path, edge: int) -> Any:
    """A scanned plan over the pictures."""
    import json

    file = cache.parent / "datasets.json"
    entry = {"id": "bench", "instance_data_dir": str(folder), "resolution": edge, "caption_strategy": "filename"}
    file.write_text(json.dumps([entry]))
    argv = ["--model_family=sdxl", "--model_flavour=tiny", f"--output_dir={cache}", f"--data_backend_config={file}"]
    config = resolve([*argv, f"--resolution={edge}", "--vae_batch_size=4"], {}, Path.cwd()).config
    return plans.scan_datasets(config, read_datasets(file, config, os.environ), Bus(), DataRequirements("sdxl"))


def fill(chosen: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Pictures per second: the bare encoder, and the cache filled with it."""
    clock, vae = CLOCKS[chosen.clock], encoder()

    def encode(batch: torch.Tensor) -> torch.Tensor:
        return latent_space.encode(vae, batch, FACTS)

    memory = torch.rand(chosen.count, 3, chosen.edge, chosen.edge) * 2 - 1
    encode(memory[:4])
    start = clock()
    for batch in memory.split(4):
        encode(batch)
    bare = chosen.count / (clock() - start)
    pictures(folder / "pictures", chosen.count, chosen.edge)
    plan = plan_of(folder / "pictures", folder / "cache", chosen.edge)
    start = clock()
    CacheFiller(DatasetCaches(plan, Encoders(TextEncoders("none"), PixelEncoder("bench", encode)))).fill_latents()
    return bare, chosen.count / (clock() - start)


def read(chosen: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Entries per second: one file per entry, and the cache."""
    from safetensors.torch import load_file, save_file

    clock, names = CLOCKS[chosen.clock], [f"{i:032x}" for i in range(2000)]
    cache = ShardCache(folder / "shards", write_batch=64)
    (folder / "files").mkdir()
    for name in names:
        entry = {"latents": torch.randn(16, 64, 64)}
        cache.put(name, entry)
        save_file(entry, folder / "files" / name)
    cache.flush()
    cache = ShardCache(folder / "shards")
    random.Random(0).shuffle(names)
    rates = []
    for get in (lambda name: load_file(folder / "files" / name), cache.get):
        start = clock()
        for name in names:
            get(name)["latents"].sum()
        rates.append(len(names) / (clock() - start))
    return rates[0], rates[1]


def main() -> None:
    """Measure and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name, measure in (("fill", fill), ("read", read)):
        with tempfile.TemporaryDirectory() as folder:
            bare, mine = measure(chosen, Path(folder))
        print(f"{name}: bare {bare:.1f}/s, Darkroom {mine:.1f}/s, ratio {mine / bare:.3f}")


if __name__ == "__main__":
    main()
