"""What reading a dataset file found: problems, told all at once, and warnings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from darkroom.core.errors import ConfigError, ConfigErrors
from darkroom.core.registry import find_nearest


@dataclass
class Notes:
    """Collected while a file is read. `lenient` turns what a later release will read into warnings."""

    path: Path
    lenient: bool = False
    problems: list[ConfigError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, entry: str, key: str, value: object, problem: str, change: str) -> None:
        """Something that the user must change."""
        self.problems.append(ConfigError(key, value, f"{self.path}, dataset '{entry}'", problem, change))

    def warn(self, entry: str, message: str) -> None:
        """Something that the user should know."""
        self.warnings.append(f"Dataset '{entry}': {message}")

    def refuse_entry(self, entry: str, key: str, value: object, reason: str) -> None:
        """An entry that is known and cannot be used: an error, or left out with a warning."""
        if self.lenient:
            self.warnings.append(f"Dataset '{entry}' is left out: {reason}.")
        else:
            change = "Remove the entry, set its 'disabled' to true, or set ignore_unsupported."
            self.problem(entry, key, value, sentence(reason), change)

    def refuse_key(self, entry: str, key: str, value: object, reason: str) -> None:
        """A key that is known and cannot be used, unless it asks for nothing."""
        if value in (None, False, "", [], {}):
            return
        if self.lenient:
            self.warn(entry, f"{key} is ignored; {reason}.")
        else:
            self.problem(entry, key, value, sentence(reason), "Remove the key, or set ignore_unsupported.")

    def unknown_key(self, entry: str, key: str, value: object, names: Iterable[str]) -> None:
        """A key that nobody knows."""
        hint = find_nearest(key, names)
        advice = f"Did you mean {' or '.join(hint)}?" if hint else "See docs/datasets.md for all keys."
        if self.lenient:
            self.warn(entry, f"the unknown key {key} is ignored. {advice}")
        else:
            self.problem(entry, key, value, "There is no such key.", advice)

    def list_problem_keys(self, entry: str) -> set[str]:
        """The keys of an entry that problems were found with."""
        return {e.option for e in self.problems if e.source.endswith(f"dataset '{entry}'")}

    def raise_if_any(self) -> None:
        """Raise ConfigError or ConfigErrors when there is a problem."""
        if self.problems:
            raise self.problems[0] if len(self.problems) == 1 else ConfigErrors(self.problems)


def sentence(reason: str) -> str:
    """A reason as a sentence."""
    return reason[0].upper() + reason[1:] + "."


def choose(choices: Iterable[str], value: str) -> str:
    """The choices, and the one that was probably meant."""
    names = list(choices)
    hint = find_nearest(value, names, 1)
    return f"Choose one of {', '.join(names)}." + (f" Did you mean {hint[0]}?" if hint else "")
