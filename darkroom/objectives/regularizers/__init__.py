"""Further terms of the loss, on what happens inside the network. One file each.

A regularizer is a file here with a class `REGULARIZER` that has the members of `base.Regularizer`. Its options are in
`options/regularisers.py`; no other file lists it.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from darkroom.core.errors import ConfigError
from darkroom.families.base import Family
from darkroom.objectives.regularizers.base import Regularizer

if TYPE_CHECKING:
    from darkroom.options.config import Config


@functools.cache
def list_regularizers() -> tuple[type[Regularizer], ...]:
    """Every regularizer's class, by the names of the files."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "base")
    return tuple(importlib.import_module(f"{__name__}.{name}").REGULARIZER for name in names)


def find_enabled(options: Config) -> list[type[Regularizer]]:
    """The regularizers that the options ask for."""
    return [cls for cls in list_regularizers() if cls.is_enabled(options)]


def build(family: Family, options: Config, denoisers: Sequence[nn.Module]) -> list[Regularizer]:
    """The regularizers of a run on its denoisers, which need no data for their weights.

    Raises ConfigError for options that a regularizer, or tapping, cannot follow.
    """
    enabled = find_enabled(options)
    if enabled and options.dynamo_backend != "no" and not options.dynamo_use_regional_compilation:
        raise ConfigError(
            "dynamo_use_regional_compilation",
            False,
            "",
            f"The {enabled[0].name} loss reads blocks of the network, and one compiled as a whole does not show them.",
            "Set dynamo_use_regional_compilation to true, or dynamo_backend to no.",
        )
    return [cls(family, options, denoisers) for cls in enabled]
