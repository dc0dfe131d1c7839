"""Step 7: draw the pictures the demo trains on: 16 grumbos to learn and 24 ordinary scenes to keep.

python recipes/embedded_base/demo_data.py darkroom/demo
"""

from __future__ import annotations

import argparse
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from darkroom.demo.pictures import COLOURS, COLUMNS, GRUMBO, ROWS, Scene, draw, full_caption, split_scenes

GRUMBO_SIZES = ["large"] * 7 + ["medium"] * 6 + ["small"] * 3
"""Mostly big ones: a small face is ten pixels of eyes and mouth."""


def grumbo_scenes(rng: Generator) -> list[Scene]:
    """Sixteen scenes: every background twice, every place at least once."""
    places = [(x, y) for x in COLUMNS for y in ROWS]
    rng.shuffle(places)
    sizes = rng.permutation(GRUMBO_SIZES)
    return [
        Scene(GRUMBO, "mint", background, str(size), *place)
        for background, size, place in zip(cycle(COLOURS), sizes, cycle(places), strict=False)
    ]


def write(folder: Path, scenes: list[Scene], rng: Generator) -> None:
    """One PNG and one caption file of the same name for each scene."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes):
        name = folder / f"{scene.shape}_{number:02d}"
        Image.fromarray(draw(scene, rng)).save(name.with_suffix(".png"), optimize=True)
        name.with_suffix(".txt").write_text(full_caption(scene) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="gets the folders concept and keep")
    args = parser.parse_args()
    rng = np.random.default_rng(16)
    write(args.folder / "concept", grumbo_scenes(rng), rng)
    write(args.folder / "keep", split_scenes()[0][:24], rng)


if __name__ == "__main__":
    main()
