"""One file per architecture. Listing families reads file names; asking for one imports its file, never torch.

>>> from darkroom import families
>>> "flux" in families.names()
True
>>> families.get("flux").title
'FLUX.1'
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from typing import TYPE_CHECKING

from darkroom.core.errors import ConfigError, missing_option
from darkroom.core.registry import find_nearest
from darkroom.families.shared.model_spec import flavour_names, resolve_flavour
from darkroom.options.model import families_here

if TYPE_CHECKING:
    from darkroom.families.base import Family


def names() -> list[str]:
    """Every family with a file here, and those that installed packages bring by entry point."""
    return list(families_here())


@functools.cache
def load(name: str) -> type[Family]:
    """The class of the family called `name`. Raises ConfigError with the nearest names."""
    if name not in names():
        hint = find_nearest(name, names()) or names()
        raise missing_option("model_family", f"There is no family '{name}'.", f"Choose one of: {', '.join(hint)}.")
    for point in importlib.metadata.entry_points(group="darkroom.families", name=name):
        return point.load()
    return importlib.import_module(f"darkroom.families.{name}").FAMILY


@functools.cache
def get(name: str, flavour: str | None = None) -> Family:
    """A flavour of the family called `name`; None: the default one. Raises ConfigError with the nearest names."""
    family = load(name)
    if flavour and flavour not in flavour_names(family):
        hint = find_nearest(flavour, flavour_names(family))
        raise ConfigError(
            "model_flavour",
            flavour,
            "",
            f"{family.title} has no such flavour" + (f"; did you mean {' or '.join(hint)}?" if hint else "."),
            f"Choose one of: {', '.join(flavour_names(family))}.",
        )
    return family(flavour)


def defaults(name: str, flavour: str | None) -> dict[str, object]:
    """Option defaults of a family and flavour, the flavour's on top."""
    if name not in names():
        return {}
    family = load(name)
    return dict(resolve_flavour(family, flavour if flavour in flavour_names(family) else None).defaults)
