"""A JSON-lines file of musubi-tuner: one object per line with the path of a file of this machine and its caption."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from darkroom.core.errors import DataError
from darkroom.core.files import is_there
from darkroom.core.text import ESCAPES, slip_in, texts_in
from darkroom.options.datasets.where import JsonLines
from darkroom.storage.base import Found, Missing, ReadOnly, Refused, Say, ending_of, wanted

if TYPE_CHECKING:
    import pyarrow as pa


class Line(NamedTuple):
    """A file that a line names, its caption, and the sample that it is a layer of, if it is one."""

    place: Path
    caption: str = ""
    whole: str | None = None


class JsonlStore(ReadOnly):
    """The files that the lines name. A sample is called by the path under `name_key`; of equal ones the last counts."""

    remote, connections = False, 8

    def __init__(self, where: JsonLines):
        self.where, self.name = where, str(where.file)

    def identity(self) -> dict[str, Any]:
        """The file and the keys that are read."""
        where = self.where
        return {
            "type": "jsonl",
            "file": str(where.file.absolute()),
            "keys": list(self._keys),
        }

    @cached_property
    def lines(self) -> dict[str, Line]:
        """Every file by its name, read once. Raises DataError that names the line."""
        where, found = self.where, dict[str, Line]()
        try:
            with where.file.open(encoding="utf-8-sig") as text:
                for number, line in enumerate(text, 1):
                    row = self._row(line, number)
                    if where.key in row:  # not every line has every control
                        name, path = str(row.get(where.name_key, "")), str(row[where.key])
                        name = name.replace("\\", "/")
                        found[name] = Line(self._place(path), str(row.get(where.caption_key) or ""))
                        for layer, key in enumerate(where.layer_keys):
                            if key in row:
                                place = self._place(str(row[key]))
                                found[f"{name[: name.rfind('.')]}_{layer}{place.suffix}"] = Line(place, whole=name)
        except UnicodeDecodeError as cause:
            raise DataError(f"{where.file} is not UTF-8: {cause.reason}.\n  Save it as UTF-8.") from None
        except OSError as cause:
            raise DataError(
                f"{where.file} cannot be read: {cause.strerror or cause}.\n  Correct the path of the JSON-lines file."
            ) from None
        return found

    def _row(self, line: str, number: int) -> dict[str, Any]:
        where = self.where
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as cause:
            what = "is blank" if not line.strip() else f"is not JSON ({cause})"
            raise DataError(
                f"Line {number} of {where.file} {what}.\n  Write one JSON object per line, and nothing else."
            ) from None
        if not isinstance(row, dict) or not isinstance(row.get(where.name_key), str):
            keys = ", ".join(row) if isinstance(row, dict) else "it is not an object"
            raise DataError(
                f"Line {number} of {where.file} has no text under '{where.name_key}'; it has: {keys}.\n"
                f"  Every line needs '{where.name_key}' and '{where.caption_key}'."
            )
        for path, text in texts_in({key: row[key] for key in self._keys if key in row}):
            if slip := slip_in(text, one_line=path != (where.caption_key,)):
                raise DataError(f"Line {number} of {where.file}, under '{path[0]}': {slip}\n  {ESCAPES}")
        return row

    @property
    def _keys(self) -> tuple[str, ...]:
        """The keys that are read of a line."""
        where = self.where
        return where.name_key, where.key, where.caption_key, *where.layer_keys

    def _place(self, path: str) -> Path:
        """An absolute path stays; others count from the file's folder, or from where the program runs."""
        beside = self.where.file.parent / path
        return beside if is_there(beside) else Path(path)

    def find(self, endings: frozenset[str], say: Say | None = None) -> Found:
        """The files that are named and there; of a sample that lacks a layer, none of its layers. Raises DataError."""
        found, rows, incomplete = Found([], [], [], folders=1), [], set[str]()
        for name, (place, _, whole) in self.lines.items():
            if not wanted(str(place), endings):
                found.others[ending_of(str(place))] += 1
                continue
            try:
                stat = os.stat(place)  # noqa: PTH116 - per sample
                reason = "" if S_ISREG(stat.st_mode) else "not a file"
            except OSError as cause:
                reason = "missing" if isinstance(cause, FileNotFoundError) else "unreadable"
            if reason:
                found.problems[reason] += 1
                found.notes.append(f"{str(place)!r}: {reason}")
                if whole is not None:
                    incomplete.add(whole)
            else:
                rows.append((name, stat.st_size, stat.st_mtime_ns))
        if say is not None:
            say(len(self.lines), len(self.lines))
        rows = [row for row in rows if self.lines[row[0]].whole not in incomplete]
        return Found.of(rows, problems=found.problems, notes=found.notes, folders=1, others=found.others)

    def rows(self) -> pa.Table:
        """Captions."""
        import pyarrow as pa

        captions = [[line.caption] if line.caption.strip() else [] for line in self.lines.values()]
        return pa.table(
            {
                "path": pa.array(list(self.lines), pa.string()),
                "captions": pa.array(captions, pa.list_(pa.string())),
            }
        )

    def read(self, path: str) -> bytes:
        """A whole file. Raises Missing, Refused."""
        with self.open(path) as file:
            return file.read()

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """The file itself. Raises Missing, Refused."""
        place = self.local(path)
        try:
            if place is None:
                raise FileNotFoundError
            return place.open("rb")
        except FileNotFoundError:
            raise Missing(f"'{path}' is not there") from None
        except OSError as cause:
            raise Refused(f"'{path}': {cause.strerror or cause}") from None

    def local(self, path: str) -> Path | None:
        """Where the file is; None for a name that no line has."""
        line = self.lines.get(path)
        return None if line is None else line.place
