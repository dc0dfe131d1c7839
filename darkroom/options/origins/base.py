"""What the reader knows of a program whose configs it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

Defaults = Mapping[str, object]
"""Option name to the value that holds when a config leaves it out."""


@dataclass(frozen=True)
class ConfigTraits:
    """What of a config tells for which program it was written."""

    keys: frozenset[str]  # as they are written: "--model_family" keeps its dashes
    values: Mapping[str, object]  # option name to the value that the user gave
    path: Path | None  # the config file


@dataclass(frozen=True)
class ForeignOptions:
    """Options of a program that Darkroom has not, and that share a reason.

    keys       each option and the value at which it does nothing, beside those that mean off
    reason     why Darkroom has it not, as a sentence; for `ignored` rows, why it changes nothing here
    change     what to do instead, as a sentence
    switch     another option that has to be on for these to do anything
    families   the families in which they do anything; empty for all
    ignored    they are accepted with any value, as none changes what is trained
    """

    keys: Mapping[str, object]
    reason: str
    change: str = ""
    switch: str = ""
    families: tuple[str, ...] = ()
    ignored: bool = False

    def is_inert(self, name: str, value: object) -> bool:
        """Does `value` leave the option as if it was not there?"""
        return same_value(value, self.keys[name]) or (is_off(self.keys[name]) and is_off(value))


OFF_WORDS = frozenset({"", "none", "null", "false", "no", "off", "0", "-1", "[]", "{}"})


def is_off(value: object) -> bool:
    """Is this one of the ways in which SimpleTuner writes that something is off?"""
    return not value or value == -1 or (isinstance(value, str) and value.strip().lower() in OFF_WORDS)


def same_value(value: object, other: object) -> bool:
    """Are both the same, however a text file writes them: 1, "1" and 1.0, or true and "true"?"""
    first, second = (str(item).strip().lower() for item in (value, other))
    try:
        return float(first) == float(second)
    except ValueError:
        return first == second


@dataclass(frozen=True)
class Origin:
    """A program whose configs Darkroom reads.

    find_evidence      what shows that a config is this program's, as words that follow "because"; empty if nothing does
    defaults           its defaults that differ from Darkroom's
    family_defaults    the same for families, by "family" or by a pattern of "family/flavour"; later rows win
    foreign            its options that Darkroom has not, row by row
    renamed            its names of options that are called otherwise here
    values             option to values that have another name here; a name may be qualified, as in "wan/i2v"
    implied            options that a recognized config sets by being recognized, whatever `defaults` says
    holds              its defaults hold for a recognized config unless `defaults` says otherwise; else they are noted
    """

    name: str
    title: str
    find_evidence: Callable[[ConfigTraits], str]
    defaults: Defaults
    family_defaults: Mapping[str, Defaults] = field(default_factory=dict)
    implied: Defaults = field(default_factory=dict)
    foreign: tuple[ForeignOptions, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    holds: bool = False

    def find_foreign(self, name: str) -> ForeignOptions | None:
        """The row that knows a key of this program; None for a key that it has not either."""
        return next((row for row in self.foreign if name in row.keys), None)

    @property
    def source(self) -> str:
        """The source of a value that is this program's default."""
        return f"{self.title} default"

    def defaults_for(self, family: str, flavour: str | None) -> dict[str, object]:
        """The defaults of this program for one of Darkroom's families and flavours."""
        merged = dict(self.defaults)
        for pattern, defaults in self.family_defaults.items():
            if fnmatchcase(f"{family}/{flavour or ''}", pattern if "/" in pattern else f"{pattern}/*"):
                merged |= defaults
        return {name: value for name, value in merged.items() if value is not None}


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set of names."""
    return frozenset(text.split())


def first_of(keys: Iterable[str], known: Iterable[str]) -> str:
    """The first of `keys`, sorted, that is known; empty if none is."""
    return next(iter(sorted(set(keys) & set(known))), "")
