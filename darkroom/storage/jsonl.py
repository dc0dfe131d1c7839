"""A JSON-lines file of musubi-tuner: one object per line with the path of a file of this machine and its caption."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from darkroom.core.errors import DataError
from darkroom.core.files import is_folder, path_exists
from darkroom.core.text import ESCAPES, find_slip, iterate_texts
from darkroom.options.datasets.locations import JsonLines
from darkroom.storage.base import FileListing, Missing, OnProgress, ReadOnly, Refused, ending_of, has_ending

if TYPE_CHECKING:
    import pyarrow as pa


class Line(NamedTuple):
    """A file that a line names, its caption, and the sample that it is a layer of, if it is one."""

    path: Path
    caption: str = ""
    composite: str | None = None


FRAMES_ENDING = ".mp4"
"""What stands behind the name of a folder of frames, so that it counts as a clip."""


class JsonlStore(ReadOnly):
    """The files that the lines name. A sample is called by the path under `name_key`; of equal ones the last counts."""

    remote, connections = False, 8

    def __init__(self, location: JsonLines):
        self.location, self.name = location, str(location.file)

    def identity(self) -> dict[str, object]:
        """The file and the keys that are read."""
        location = self.location
        return {
            "type": "jsonl",
            "file": str(location.file.absolute()),
            "keys": list(self._keys),
        }

    @cached_property
    def lines(self) -> dict[str, Line]:
        """Every file by its name, read once. Raises DataError that names the line."""
        location, lines = self.location, dict[str, Line]()
        try:
            with location.file.open(encoding="utf-8-sig") as text:
                for number, line in enumerate(text, 1):
                    row = self._row(line, number)
                    if location.key in row:  # not every line has every control
                        name, path = self._name(str(row.get(location.name_key, ""))), str(row[location.key])
                        lines[name] = Line(self._resolve_path(path), str(row.get(location.caption_key) or ""))
                        for layer, key in enumerate(location.layer_keys):
                            if key in row:
                                layer_path = self._resolve_path(str(row[key]))
                                layer_name = f"{name[: name.rfind('.')]}_{layer}{layer_path.suffix}"
                                lines[layer_name] = Line(layer_path, composite=name)
        except UnicodeDecodeError as cause:
            raise DataError(f"{location.file} is not UTF-8: {cause.reason}.\n  Save it as UTF-8.") from None
        except OSError as cause:
            raise DataError(
                f"{location.file} cannot be read: {cause.strerror or cause}.\n  Correct the path of the JSON-lines "
                "file."
            ) from None
        return lines

    def _row(self, line: str, number: int) -> dict[str, object]:
        location = self.location
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as cause:
            problem = "is blank" if not line.strip() else f"is not JSON ({cause})"
            raise DataError(
                f"Line {number} of {location.file} {problem}.\n  Write one JSON object per line, and nothing else."
            ) from None
        if not isinstance(row, dict) or not isinstance(row.get(location.name_key), str):
            keys = ", ".join(row) if isinstance(row, dict) else "it is not an object"
            raise DataError(
                f"Line {number} of {location.file} has no text under '{location.name_key}'; it has: {keys}.\n"
                f"  Every line needs '{location.name_key}' and '{location.caption_key}'."
            )
        for path, text in iterate_texts({key: row[key] for key in self._keys if key in row}):
            if slip := find_slip(text, single_line=path != (location.caption_key,)):
                raise DataError(f"Line {number} of {location.file}, under '{path[0]}': {slip}\n  {ESCAPES}")
        return row

    @property
    def _keys(self) -> tuple[str, ...]:
        """The keys that are read of a line."""
        location = self.location
        return location.name_key, location.key, location.caption_key, *location.layer_keys

    def _name(self, path: str) -> str:
        """What a sample is called: its path, in lists of clips with the ending of one behind a folder of frames."""
        plain = path.replace("\\", "/")
        is_frames = self.location.name_key.startswith("video") and is_folder(self._resolve_path(path))
        return f"{plain.rstrip('/')}{FRAMES_ENDING}" if is_frames else plain

    def _resolve_path(self, path: str) -> Path:
        """An absolute path stays; others count from the file's folder, or from where the program runs."""
        relative = self.location.file.parent / path
        return relative if path_exists(relative) else Path(path)

    def find(self, endings: frozenset[str], on_progress: OnProgress | None = None) -> FileListing:
        """The files that are named and there; of a sample that lacks a layer, none of its layers. Raises DataError."""
        listing, rows, incomplete = FileListing([], [], [], folders=1), [], set[str]()
        for name, (path, _, composite) in self.lines.items():
            is_frames = name.endswith(FRAMES_ENDING) and is_folder(path)
            if not has_ending(name if is_frames else str(path), endings):
                listing.other_files[ending_of(str(path))] += 1
                continue
            try:
                stat = os.stat(path)  # noqa: PTH116 - per sample
                reason = "" if S_ISREG(stat.st_mode) or is_frames else "not a file"
            except OSError as cause:
                reason = "missing" if isinstance(cause, FileNotFoundError) else "unreadable"
            if reason:
                listing.problems[reason] += 1
                listing.notes.append(f"{str(path)!r}: {reason}")
                if composite is not None:
                    incomplete.add(composite)
            else:
                rows.append((name, stat.st_size, stat.st_mtime_ns))
        if on_progress is not None:
            on_progress(len(self.lines), len(self.lines))
        rows = [row for row in rows if self.lines[row[0]].composite not in incomplete]
        return FileListing.from_rows(
            rows, problems=listing.problems, notes=listing.notes, folders=1, other_files=listing.other_files
        )

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
        local_path = self.local(path)
        try:
            if local_path is None:
                raise FileNotFoundError
            return local_path.open("rb")
        except FileNotFoundError:
            raise Missing(f"'{path}' is not there") from None
        except OSError as cause:
            raise Refused(f"'{path}': {cause.strerror or cause}") from None

    def local(self, path: str) -> Path | None:
        """Where the file is; None for a name that no line has."""
        line = self.lines.get(path)
        return None if line is None else line.path
