"""How many calls of the denoiser MagCache saves on the embedded base, and how far its pictures are from whole ones.

    python benchmarks/magcache.py [--steps 28] [--thresholds 0.06,0.12,0.24]

Twelve prompts, each with a seed of its own. PSNR over 0..255, against the picture of the same prompt without a cache.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import numpy as np
import torch

from darkroom import families
from darkroom.options.config import construct, every_option
from darkroom.tools import generate
from darkroom.validate import caches
from darkroom.validate.recipe import Recipe
from darkroom.validate.render import recipe_kwargs

PROMPTS = [f"a {size} {colour} {shape}" for size in ("small", "large") for colour in ("red", "blue", "green")
           for shape in ("circle", "square")]  # fmt: skip


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--thresholds", default="0.06,0.12,0.24")
    parser.add_argument("--k", type=int, default=6)
    parser.add_argument("--retention", type=float, default=0.2)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    family = families.get("flux", "embedded")
    values = {info.name: info.default for info in every_option()} | family.spec.defaults
    options = construct({**values, "model_flavour": "embedded"})
    from darkroom.pretrained.repository import locate_repository

    base = locate_repository(family.spec.flavour.repository, family)
    pipe = generate.stock_pipeline(family, base, torch.float32, options)
    calls: list[int] = []
    last = pipe.transformer.single_transformer_blocks[-1].proj_out
    last.register_forward_hook(lambda *_: calls.append(1))

    def draw(number: int, cache: dict[str, Any]) -> np.ndarray:
        recipe = Recipe(
            PROMPTS[number],
            "",
            64,
            64,
            chosen.steps,
            number,
            "cpu",
            recipe_kwargs(family, 64, 64, options),
            {},
            cache=cache,
        )
        return np.asarray(generate.render(pipe, family, recipe, options).image, dtype=float)

    ratios = caches.measure_ratios(pipe.transformer, chosen.steps, lambda: draw(0, {}))
    print(f"ratios: {ratios}")
    calls.clear()
    whole = [draw(number, {}) for number in range(len(PROMPTS))]
    every = len(calls)
    print("| threshold | calls | of whole | PSNR, mean of prompts | least |\n|---|---|---|---|---|")
    for threshold in map(float, chosen.thresholds.split(",")):
        calls.clear()
        cache = {
            "kind": "magcache", "threshold": threshold, "max_skip_steps": chosen.k,
            "retention_ratio": chosen.retention, "mag_ratios": ratios,
        }  # fmt: skip
        found = [psnr(draw(number, cache), whole[number]) for number in range(len(PROMPTS))]
        share = f"1/{every / len(calls):.2f}"
        print(f"| {threshold} | {len(calls)} | {share} | {statistics.mean(found):.1f} dB | {min(found):.1f} dB |")


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    """Decibels; higher is closer."""
    error = ((one - two) ** 2).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


if __name__ == "__main__":
    main()
