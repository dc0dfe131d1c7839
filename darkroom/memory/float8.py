"""Layers that compute their products in eight-bit floats, by torchao: `mixed_precision fp8`. FP8 training 2209.05433.

Weights keep their format; with every product they and what they are multiplied with are scaled by their largest number
and rounded, on the way back too. Everything between such layers is computed in bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from darkroom.core.device import device_name, has_fp8, is_host
from darkroom.core.errors import ConfigError
from darkroom.core.optional import import_optional
from darkroom.memory.quantize import iterate_layers

if TYPE_CHECKING:
    from torchao.float8 import Float8LinearConfig

    from darkroom.options.config import Config

OPTION, CHOICE = "mixed_precision", "fp8"


def validate_float8(options: Config, device: torch.device) -> None:
    """Raises ConfigError on a GPU that cannot do it, and MissingPackage."""
    if options.mixed_precision != CHOICE:
        return
    import_optional("torchao.float8", "quant", f"{OPTION} {CHOICE}")
    if not is_host(device) and not has_fp8(device):
        problem = f"{device_name(device)} has no products of eight-bit floats; Ada and Hopper have."
        raise ConfigError(OPTION, CHOICE, "", problem, "Set it to bf16.")


def build_recipe() -> Float8LinearConfig:
    """torchao's settings: one scale for a tensor, e4m3 forwards and e5m2 for gradients, any number of tokens."""
    return import_optional("torchao.float8", "quant", f"{OPTION} {CHOICE}").Float8LinearConfig(pad_inner_dim=True)


def convert(model: nn.Module, blocks: Sequence[str]) -> int:
    """Let the plain linear layers inside a denoiser's blocks compute so, as far as they are worth it. Returns how many.

    Names and weights stay as they are.
    """
    from torchao.float8 import convert_to_float8_training

    layers = {id(layer) for _, _, layer in iterate_layers(model, blocks)}
    convert_to_float8_training(model, module_filter_fn=lambda module, _: id(module) in layers, config=build_recipe())
    return len(layers)
