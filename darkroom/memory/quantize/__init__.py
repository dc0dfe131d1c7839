"""Quantize frozen linear layers.

A quantizer is a file here with `PRESETS`, its values of `base_model_precision`, and `quantize_layer(layer, preset,
options)`, which returns the replacement, frozen and on the layer's device; gradients pass through it. It may name the
`PACKAGE` it needs, presets in `NEEDS_GPU`, and a function `supports_layer`. `core.narrow` decides which layers are
quantized. The states of torch's global generators are restored afterwards.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn

from darkroom.core.errors import ConfigError, MissingPackage
from darkroom.core.narrow import find_narrowable_layers

if TYPE_CHECKING:
    from darkroom.options.config import Config

NONE = "no_change"


@functools.cache
def find_quantizers() -> dict[str, ModuleType]:
    """Presets to their modules."""
    modules: dict[str, ModuleType] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        modules |= dict.fromkeys(module.PRESETS, module)
    return modules


def iterate_layers(model: nn.Module, blocks: Sequence[str] = ()) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Parent, name and layer of each unquantized linear layer above the minimum size, in `blocks` or anywhere."""
    for name, module in find_narrowable_layers(model, blocks):
        parent, _, child = name.rpartition(".")
        yield model.get_submodule(parent), child, module


def count_quantized(model: nn.Module) -> tuple[int, int]:
    """The number of quantized linear layers of a model, and of all its linear layers."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    quantized = [m for m in layers if type(m.weight) is not nn.Parameter or not m.weight.is_floating_point()]
    return len(quantized), len(layers)


def is_installed(package: str) -> bool:
    """Could a package be imported?"""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def validate_precision(option: str, preset: str, has_gpu: bool) -> None:
    """Raises MissingPackage, or ConfigError for a preset that needs a GPU where there is none."""
    if preset == NONE:
        return
    quantizer = find_quantizers()[preset]
    if preset in getattr(quantizer, "NEEDS_GPU", ()) and not has_gpu:
        usable = [name for name, other in find_quantizers().items() if name not in getattr(other, "NEEDS_GPU", ())]
        problem = "It packs its numbers for GPUs, and there is none here."
        raise ConfigError(option, preset, "", problem, f"Choose one of: {', '.join(sorted(usable))}.")
    package = getattr(quantizer, "PACKAGE", "")
    if package and not is_installed(package):
        raise MissingPackage(package, "quant", f"{option} {preset}")


def quantize_model(
    model: nn.Module, preset: str, options: Config, device: torch.device, blocks: Sequence[str] = ()
) -> tuple[int, int]:
    """Quantize a frozen model's layers, each on `device`, where it stays. Returns the number of quantized layers and of
    all linear layers. Raises MissingPackage.
    """
    quantizer = find_quantizers()[preset]
    supports_layer = getattr(quantizer, "supports_layer", lambda layer: True)
    total = sum(isinstance(module, nn.Linear) for module in model.modules())
    picked = [row for row in iterate_layers(model, blocks) if supports_layer(row[2])]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for parent, name, layer in picked:
            setattr(parent, name, quantizer.quantize_layer(layer.requires_grad_(False).to(device), preset, options))
    return len(picked), total
