"""Weights as integers or eight-bit floats by optimum-quanto, one scale for each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from darkroom.core.optional import import_optional

if TYPE_CHECKING:
    from darkroom.options.config import Config

PRESETS: Mapping[str, str] = {
    "int8-quanto": "qint8",
    "int4-quanto": "qint4",
    "int2-quanto": "qint2",
    "fp8-quanto": "qfloat8",
    "fp8uz-quanto": "qfloat8_e4m3fnuz",
}
PACKAGE = "optimum.quanto"


def quantize_layer(layer: nn.Linear, preset: str, options: Config) -> nn.Module:
    """The layer as quanto's own linear layer, frozen."""
    quanto = import_optional(PACKAGE, "quant", preset)
    activations = quanto.qint8 if options.quantize_activations else None
    quantized = quanto.nn.QLinear.from_module(layer, weights=getattr(quanto, PRESETS[preset]), activations=activations)
    quantized.freeze()
    return quantized.requires_grad_(False)
