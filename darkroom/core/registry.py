"""Tables of named things: choose by name, suggest the nearest name, import late, extend by entry points."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

Row = TypeVar("Row")


def find_nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` names that a mistyped `name` may have meant, best first."""
    return difflib.get_close_matches(name, list(names), n=count, cutoff=0.55)


def import_path(path: str) -> object:
    """The object at `package.module.Name` or `package.module:Name`. Raises ImportError naming the path."""
    module, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (AttributeError, ValueError) as cause:
        raise ImportError(f"nothing can be imported from '{path}'") from cause


class Table(Mapping[str, Row], Generic[Row]):
    """Names to rows, with aliases. `table["x"]` raises KeyError with suggestions."""

    def __init__(self, kind: str, entry_points: str | None = None):
        self.kind = kind
        self._rows: dict[str, Row] = {}
        self._aliases: dict[str, str] = {}
        self._entry_points = entry_points

    def add(self, name: str, row: Row, aliases: Iterable[str] = ()) -> Row:
        """Register a row. A name may stand only once, aliases included."""
        for key in (name, *aliases):
            if key in self._rows or key in self._aliases:
                raise ValueError(f"{self.kind} '{key}' is registered twice")
        self._rows[name] = row
        self._aliases.update(dict.fromkeys(aliases, name))
        return row

    def _discover(self) -> None:
        """Load out-of-tree rows once: entry points of the group call `add` or are rows themselves."""
        if self._entry_points is None:
            return
        group, self._entry_points = self._entry_points, None
        for point in importlib.metadata.entry_points(group=group):
            if point.name not in self._rows:
                self.add(point.name, point.load())

    def __getitem__(self, name: str) -> Row:
        self._discover()
        key = self._aliases.get(name, name)
        if key not in self._rows:
            hint = find_nearest(name, [*self._rows, *self._aliases])
            raise KeyError(f"no {self.kind} '{name}'" + (f"; did you mean {', '.join(hint)}?" if hint else ""))
        return self._rows[key]

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(self._rows)

    def __len__(self) -> int:
        self._discover()
        return len(self._rows)
