"""Step 6: the acceptance table, through the stock pipeline: 200 held-out captions, two seeds each.

python recipes/embedded_base/evaluate.py darkroom/assets/embedded_base
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import device_and_rank, save_sheet
from diffusers import FluxPipeline
from vae import psnr

from darkroom.demo.checker import check
from darkroom.demo.pictures import ATTRIBUTES, Scene, draw, full_caption, split_scenes

WANTED = {"background": 0.95, "colour": 0.95, "position": 0.90, "size": 0.80, "shape": 0.75}
GROUP = 16
"""Pictures per pipeline call."""


def generate(pipe: FluxPipeline, captions: Sequence[str], seed: int, steps: int = 16) -> list[np.ndarray]:
    """One uint8 (64, 64, 3) picture per caption; each has its own generator, so the grouping does not matter."""
    made = []
    for start in range(0, len(captions), GROUP):
        group = list(captions[start : start + GROUP])
        generators = [torch.Generator().manual_seed(seed * 1000 + start + i) for i in range(len(group))]
        pictures = pipe(
            group,
            negative_prompt=[""] * len(group),
            true_cfg_scale=3.0,
            height=64,
            width=64,
            num_inference_steps=steps,
            generator=generators,
            max_sequence_length=24,
            output_type="np",
        )
        made += list((pictures.images * 255).round().astype(np.uint8))
    return made


def score(pictures: Sequence[np.ndarray], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of pictures on which the checker finds each attribute as the scene says."""
    verdicts = [check(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    return {name: round(float(np.mean([verdict[name] for verdict in verdicts])), 3) for name in ATTRIBUTES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="pipeline folder")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help="where to write the pictures as one PNG")
    args = parser.parse_args()

    device, _, _ = device_and_rank()
    pipe = FluxPipeline.from_pretrained(args.folder, torch_dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    scenes = split_scenes()[1][: args.captions]
    captions = [full_caption(scene) for scene in scenes]
    pictures = [picture for seed in range(args.seeds) for picture in generate(pipe, captions, seed)]
    reached = score(pictures, scenes * args.seeds)
    print("| Attribute | Wanted | Reached |\n|---|---|---|")
    for name in ATTRIBUTES:
        print(f"| {name} | {WANTED[name]:.2f} | {reached[name]:.3f} |")
    rng = np.random.default_rng(123)
    fresh = np.stack([draw(scene, rng) for scene in scenes])
    print(f"| autoencoder, dB | 30 | {psnr(pipe.vae, fresh, device)[0]:.1f} |")
    if args.sheet:
        save_sheet(pictures[:64], args.sheet)


if __name__ == "__main__":
    main()
