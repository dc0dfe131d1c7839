"""Weights as integers of two to sixteen bits by SDNQ, made so that gradients pass through the layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from darkroom.core.optional import import_optional

if TYPE_CHECKING:
    from darkroom.options.config import Config

FORMATS = ("int8", "uint8", "int16", "uint16", "fp16", "int7", "int6", "int5", "uint5", "uint4", "uint3", "uint2")
PRESETS: Mapping[str, str] = {
    f"{name}-sdnq": {"fp16": "float16"}.get(name, name) for name in FORMATS
}  # fmt: skip
# as SimpleTuner sets it: weights in so few bits keep a low-rank part apart
LOW_BITS = frozenset({"int5", "uint5", "uint4", "uint3", "uint2"})
PACKAGE = "sdnq"
# smaller weights it leaves as they are
MIN_NUMBERS, MIN_EDGE = 128 * 128, 32
SEED = 0


def supports_layer(layer: nn.Linear) -> bool:
    """Is the layer large enough?"""
    return layer.weight.numel() >= MIN_NUMBERS and min(layer.weight.shape) >= MIN_EDGE


def quantize_layer(layer: nn.Linear, preset: str, options: Config) -> nn.Module:
    """The layer as SDNQ's own."""
    training = import_optional(f"{PACKAGE}.training", "quant", preset)
    name = preset.removesuffix("-sdnq")
    torch.manual_seed(SEED)  # the largest directions of a weight are found from random ones
    holder = training.sdnq_training_post_load_quant(
        nn.Sequential(layer), weights_dtype=PRESETS[preset], group_size=32, use_svd=name in LOW_BITS,
        svd_rank=32, svd_steps=8, use_quantized_matmul=False, use_static_quantization=True,
        use_stochastic_rounding=False, dequantize_fp32=True,  # frozen weights are rounded once, to what is nearest
    )  # fmt: skip
    return holder[0].requires_grad_(False)
