"""Eight-bit floats: the error of weights by way of scaling and by model, file sizes, and the time of a second start.

    python benchmarks/fp8.py [--layers 1,2] [--width 3072]

Error: root mean square of the difference over that of the weights, over all layers that are quantised. Start: a FLUX.1
transformer of true width, unless told otherwise, and so many double and single blocks, random, from a folder in bf16.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darkroom import families
from darkroom.core.units import show_size
from darkroom.memory import quantize
from darkroom.memory.policy import MemoryPolicy
from darkroom.memory.quantize import fp8
from darkroom.options.config import Config
from darkroom.pretrained.repository import ASSETS

HEAD = 128  # numbers in an attention head of FLUX.1
BLOCKS = ("transformer_blocks", "single_transformer_blocks")


def trained() -> list[Tensor]:
    """Weights of the embedded base."""
    import diffusers

    model = diffusers.FluxTransformer2DModel.from_pretrained(ASSETS / "embedded_base", subfolder="transformer")
    return [layer.weight.detach() for _, _, layer in quantize.iterate_layers(model, BLOCKS)]


def drawn(heavy: bool, width: int) -> Iterator[Tensor]:
    """Weights of the sizes of FLUX.1, normal or with one in a thousand thirty times as large."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        weight = torch.randn(width, width, generator=generator) * 0.02
        if heavy:
            weight[torch.rand(weight.shape, generator=generator) < 0.001] *= 30
        yield weight


def error(weights: list[Tensor], mode: str | None, format: torch.dtype) -> float:
    """Root mean square error over root mean square."""
    lost = size = 0.0
    for weight in weights:
        small, scale = (weight.to(format), None) if mode is None else fp8.quantize_weight(weight, mode, format)
        lost += (fp8.dequantize_weight(small, scale, torch.float32) - weight).square().sum().item()
        size += weight.square().sum().item()
    return (lost / size) ** 0.5


def errors(width: int) -> None:
    """The table of errors."""
    normal, heavy = list(drawn(False, width)), list(drawn(True, width))
    models = {"embedded base": trained(), f"normal, {width} wide": normal, "with outliers": heavy}
    print("| format, scaling |", " | ".join(models), "|\n|---|" + "---|" * len(models))
    for name, format in fp8.FORMATS.items():
        for preset, mode in fp8.PRESETS.items():
            row = " | ".join(f"{error(weights, mode, format):.4f}" for weights in models.values())
            print(f"| {name}, {preset} | {row} |")


def start(layers: tuple[int, int], width: int) -> None:
    """Sizes and times of a first and a second start."""
    import diffusers

    config = {"num_layers": layers[0], "num_single_layers": layers[1], "guidance_embeds": True}
    config["num_attention_heads"] = width // HEAD
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.manual_seed(0)
        model: nn.Module = diffusers.FluxTransformer2DModel(**config).to(torch.bfloat16)
        model.save_pretrained(folder / "wide")  # type: ignore[operator]
        numbers = sum(p.numel() for p in model.parameters())
        del model
        options = Config(model_family="flux", base_model_precision="fp8-block", quantize_via="cpu")

        def load() -> Any:
            return diffusers.FluxTransformer2DModel.from_pretrained(folder / "wide", dtype=torch.bfloat16)

        def once() -> float:
            begun = time.perf_counter()
            memory_policy = MemoryPolicy(
                options, torch.device("cpu"), families.get("flux").blocks, quantized_cache_dir=folder / "shelf"
            )
            memory_policy.load_or_quantize(
                "it", "this", lambda: diffusers.FluxTransformer2DModel.from_config(config), load
            )
            return time.perf_counter() - begun

        begun = time.perf_counter()
        load()
        plain, first, second = time.perf_counter() - begun, once(), once()
        wide = sum(file.stat().st_size for file in (folder / "wide").glob("*.safetensors"))
        (kept,) = (folder / "shelf").glob("*.safetensors")
        narrow = kept.stat().st_size
        print(f"{numbers / 1e9:.2f} B parameters; file bf16 {show_size(wide)}, fp8-block {show_size(narrow)}")
        print(f"load in bf16 {plain:.1f} s; first start (load, quantise, keep) {first:.1f} s; second {second:.1f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="1,2", help="double and single blocks")
    parser.add_argument("--width", type=int, default=3072)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    errors(chosen.width)
    double, single = map(int, chosen.layers.split(","))
    start((double, single), chosen.width)


if __name__ == "__main__":
    main()
