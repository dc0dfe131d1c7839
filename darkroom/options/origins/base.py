"""What the reader knows of a program whose configs it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

Defaults = Mapping[str, Any]
"""Option name to the value that holds when a config leaves it out."""


@dataclass(frozen=True)
class ConfigTraits:
    """What of a config tells for which program it was written."""

    keys: frozenset[str]  # as they are written: "--model_family" keeps its dashes
    values: Mapping[str, Any]  # option name to the value that the user gave
    path: Path | None  # the config file


@dataclass(frozen=True)
class Origin:
    """A program whose configs Darkroom reads.

    find_evidence      what shows that a config is this program's, as words that follow "because"; empty if nothing does
    defaults           its defaults that differ from Darkroom's
    family_defaults    the same for families, by "family" or by a pattern of "family/flavour"; later rows win
    implied            options that a recognized config sets by being recognized, whatever `defaults` says
    holds              its defaults hold for a recognized config unless `defaults` says otherwise; else they are noted
    """

    name: str
    title: str
    find_evidence: Callable[[ConfigTraits], str]
    defaults: Defaults
    family_defaults: Mapping[str, Defaults] = field(default_factory=dict)
    implied: Defaults = field(default_factory=dict)
    holds: bool = False

    @property
    def source(self) -> str:
        """The source of a value that is this program's default."""
        return f"{self.title} default"

    def defaults_for(self, family: str, flavour: str | None) -> dict[str, Any]:
        """The defaults of this program for one of Darkroom's families and flavours."""
        merged = dict(self.defaults)
        for pattern, defaults in self.family_defaults.items():
            if fnmatchcase(f"{family}/{flavour or ''}", pattern if "/" in pattern else f"{pattern}/*"):
                merged |= defaults
        return merged


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set of names."""
    return frozenset(text.split())


def first_of(keys: Iterable[str], known: Iterable[str]) -> str:
    """The first of `keys`, sorted, that is known; empty if none is."""
    return next(iter(sorted(set(keys) & set(known))), "")
