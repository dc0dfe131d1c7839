"""Frozen linear layers in fewer bits.

A quantiser is a file here with `PRESETS`, the values of `base_model_precision` that it knows, and `quantised(layer,
preset, options)`, which answers the layer to put in its place, frozen and on the layer's device; gradients pass through
it. It may say which `PACKAGE` it needs, which presets are in `NEEDS_GPU`, and which layers it `fits`. Which layers are
meant `core.narrow` decides, for all of them, and torch's global generators are put back afterwards.
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
def quantisers() -> dict[str, ModuleType]:
    """The files by the presets that they know."""
    found: dict[str, ModuleType] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found |= dict.fromkeys(module.PRESETS, module)
    return found


def chosen(model: nn.Module, blocks: Sequence[str] = ()) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Parent, name and layer of each plain linear layer that is worth it, inside `blocks` or anywhere."""
    for name, module in find_narrowable_layers(model, blocks):
        parent, _, own = name.rpartition(".")
        yield model.get_submodule(parent), own, module


def counted(model: nn.Module) -> tuple[int, int]:
    """How many of a model's linear layers are in fewer bits, whoever made them so, and how many it has."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    narrow = [m for m in layers if type(m.weight) is not nn.Parameter or not m.weight.is_floating_point()]
    return len(narrow), len(layers)


def is_installed(package: str) -> bool:
    """Could a package be imported?"""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def check(option: str, preset: str, has_gpu: bool) -> None:
    """Raises MissingPackage, or ConfigError for a preset that needs a GPU where there is none."""
    if preset == NONE:
        return
    by = quantisers()[preset]
    if preset in getattr(by, "NEEDS_GPU", ()) and not has_gpu:
        others = [name for name, other in quantisers().items() if name not in getattr(other, "NEEDS_GPU", ())]
        problem = "It packs its numbers for GPUs, and there is none here."
        raise ConfigError(option, preset, "", problem, f"Choose one of: {', '.join(sorted(others))}.")
    package = getattr(by, "PACKAGE", "")
    if package and not is_installed(package):
        raise MissingPackage(package, "quant", f"{option} {preset}")


def quantise(
    model: nn.Module, preset: str, options: Config, device: torch.device, blocks: Sequence[str] = ()
) -> tuple[int, int]:
    """Quantise a frozen model's layers, each on `device`, where it stays. Returns how many became smaller, and how many
    linear layers the model had. Raises MissingPackage.
    """
    by = quantisers()[preset]
    fits = getattr(by, "fits", lambda layer: True)
    total = sum(isinstance(module, nn.Linear) for module in model.modules())
    picked = [row for row in chosen(model, blocks) if fits(row[2])]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for parent, name, layer in picked:
            setattr(parent, name, by.quantised(layer.requires_grad_(False).to(device), preset, options))
    return len(picked), total
