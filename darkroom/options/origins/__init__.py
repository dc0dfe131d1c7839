"""The programs whose configs are read: how one is recognized, which defaults it has, and which keys are only its own.

One file for each program, all of it data. `ORIGINS` is what the reader walks; `--defaults NAME` chooses whose defaults
hold, whatever the config was written for.
"""

from __future__ import annotations

from darkroom.options.origins import musubi, simpletuner
from darkroom.options.origins.base import ConfigTraits, Origin, is_off

ORIGINS: dict[str, Origin] = {origin.name: origin for origin in (musubi.ORIGIN, simpletuner.ORIGIN)}

__all__ = ["ORIGINS", "ConfigTraits", "Origin", "is_off", "is_origin_default", "recognize"]


def recognize(traits: ConfigTraits) -> tuple[Origin, str] | None:
    """The program that a config was written for and what shows it; None for one of Darkroom's own."""
    for origin in ORIGINS.values():
        if evidence := origin.find_evidence(traits):
            return origin, evidence
    return None


def is_origin_default(source: str) -> bool:
    """Did a value come from the defaults of another program, and not from the user?"""
    return any(source == origin.source for origin in ORIGINS.values())
