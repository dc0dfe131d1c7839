"""Weights as four-bit normal floats by bitsandbytes, with scales that are themselves quantized (QLoRA 2305.14314)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from darkroom.core.optional import import_optional

if TYPE_CHECKING:
    from darkroom.options.config import Config

PRESETS: Mapping[str, str] = {"nf4-bnb": "nf4"}
PACKAGE = "bitsandbytes"
# weights that share a scale; on a CPU a row must be made of whole ones
BLOCK = 64


def supports_layer(layer: nn.Linear) -> bool:
    """Is a row made of whole blocks?"""
    return layer.in_features % BLOCK == 0


def quantize_layer(layer: nn.Linear, preset: str, options: Config) -> nn.Module:
    """The layer as bitsandbytes' own; it is packed where the weight is."""
    bnb = import_optional(PACKAGE, "quant", preset)
    dtype, device = layer.weight.dtype, layer.weight.device
    quantized = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None,
        compute_dtype=dtype, compress_statistics=True, quant_type=PRESETS[preset],
    )  # fmt: skip
    quantized.weight = bnb.nn.Params4bit(
        layer.weight.detach(), requires_grad=False, compress_statistics=True, quant_type=PRESETS[preset]
    )
    if layer.bias is not None:
        quantized.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    # on some CPUs it would pack the weight anew for drawing, and no gradient passes through that
    quantized.support_avx512bf16_for_cpu = False
    return quantized.to(torch.device(device))
