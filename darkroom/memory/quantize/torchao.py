"""Weights as integers or eight-bit floats by torchao: the layer stays, its weight becomes another kind of tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from darkroom.core.optional import import_optional

if TYPE_CHECKING:
    from darkroom.options.config import Config

PRESETS: Mapping[str, str] = {
    "int8-torchao": "Int8WeightOnlyConfig",
    "int4-torchao": "Int4WeightOnlyConfig",
    "fp8-torchao": "Float8WeightOnlyConfig",
}
PACKAGE = "torchao.quantization"
NEEDS_GPU = frozenset({"int4-torchao"})


def quantize_layer(layer: nn.Linear, preset: str, options: Config) -> nn.Module:
    """The layer with a weight of torchao's."""
    ao = import_optional(PACKAGE, "quant", preset)
    holder = nn.Sequential(layer)
    ao.quantize_(holder, getattr(ao, PRESETS[preset])())
    return holder[0].requires_grad_(False)
