"""What the rules about options need to know of a family, without torch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from darkroom import families
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.options import conflicts

if TYPE_CHECKING:
    from darkroom.families.base import Family
    from darkroom.options.config import Config


def family_facts(family: Family, config: Config) -> conflicts.FamilyFacts:
    """What conflict rules need to know of a family."""
    return conflicts.FamilyFacts(
        family=family.name,
        title=family.title,
        prediction="flow" if family.prediction == "flow_matching" else family.prediction,
        guidance_input=family.guidance_input,
        supports=family.spec.supports,
        masks=family.masks_attention(config),
        having=_Having(),
    )


class _Having(dict[str, str]):
    """Way of control: the families that have it, looked up where a message wants them, as that imports all families."""

    def __missing__(self, method: str) -> str:
        return ", ".join(list_families_with(method))


@functools.cache
def list_families_with(method: str) -> list[str]:
    """The families with a flavour that has this way of control."""
    loaded = [families.load(name) for name in families.names()]
    return [f.name for f in loaded if any(method in resolve_flavour(f, flavour).supports for flavour in f.flavours)]
