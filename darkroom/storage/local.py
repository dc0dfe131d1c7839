"""A folder of this machine."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, BinaryIO

from darkroom.core import files
from darkroom.core.errors import DataError
from darkroom.options.datasets.locations import LocalFiles
from darkroom.storage.base import FileListing, Missing, OnProgress, Refused, ending_of, has_ending, validate_plain_path

if TYPE_CHECKING:
    import pyarrow as pa

EVERY = 1000  # files between two calls of `say`


@dataclass
class _Walk:
    """What a walk met besides files."""

    problems: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    folders: int = 0
    other_files: Counter[str] = field(default_factory=Counter)
    leaving: list[str] = field(default_factory=list)


class LocalStore:
    """Files below a folder; with `recursive` off, only those right inside it."""

    writable, remote, connections = True, False, 8

    def __init__(self, location: LocalFiles):
        self.root, self.recursive = Path(location.root), location.recursive
        self.name = str(self.root)

    def identity(self) -> dict[str, object]:
        """The absolute folder, and whether it is searched deeply."""
        return {"type": "local", "root": str(self.root.absolute()), "recursive": self.recursive}

    def find(self, endings: frozenset[str], on_progress: OnProgress | None = None) -> FileListing:
        """All files, hidden names apart.

        Links to folders are followed, except where they would lead in circles; those that leave the folder are named.
        """
        rows: list[tuple[str, int, int]] = []
        walk = _Walk()
        try:
            for path, entry in _walk(self.root, walk, self.recursive):
                if not has_ending(path, endings):
                    walk.other_files[ending_of(path)] += 1
                    continue
                try:
                    path.encode()
                    stat = entry.stat()
                except UnicodeEncodeError:
                    walk.problems["file name is not UTF-8"] += 1
                    continue
                except OSError as cause:
                    walk.problems["broken link" if entry.is_symlink() else "unreadable"] += 1
                    walk.notes.append(f"{path!r}: {cause.strerror or cause}")
                    continue
                if not S_ISREG(stat.st_mode):
                    walk.problems["not a file"] += 1  # a pipe or a device: opening it could wait for ever
                    walk.notes.append(f"{path!r}: a pipe, socket or device")
                    continue
                if entry.is_symlink():
                    _note_leaving(walk, self.root, path, entry)
                rows.append((path, stat.st_size, stat.st_mtime_ns))
                if on_progress is not None and len(rows) % EVERY == 0:
                    on_progress(len(rows), 0)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"There is no folder {self.root}.\n  Create it, or correct the path.") from None
        return FileListing.from_rows(
            rows,
            problems=walk.problems,
            notes=walk.notes,
            folders=walk.folders,
            other_files=walk.other_files,
            leaving=sorted(walk.leaving),
        )

    def read(self, path: str) -> bytes:
        """A whole file. Raises Missing, Refused."""
        with self.open(path) as file:
            try:
                return file.read()
            except OSError as cause:
                raise Refused(f"'{path}' cannot be read: {cause.strerror or cause}") from None

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """The file itself. Raises Missing, Refused."""
        validate_plain_path(path)
        try:
            return open(f"{self.root}/{path}", "rb")
        except OSError as cause:
            raise _explain_error(cause, path) from None

    def local(self, path: str) -> Path | None:
        """The file's place; it need not be there."""
        validate_plain_path(path)
        return self.root / path

    def delete(self, path: str) -> None:
        """Remove a file. Raises Missing, Refused."""
        validate_plain_path(path)
        try:
            (self.root / path).unlink()
        except OSError as cause:
            raise _explain_error(cause, path) from None

    def write(self, path: str, data: bytes) -> None:
        """Write beside, then rename. Raises Refused, DiskFullError."""
        validate_plain_path(path)
        try:
            with files.write_atomically(self.root / path) as temporary:
                temporary.write_bytes(data)
        except OSError as cause:
            raise Refused(f"'{path}' cannot be written: {cause.strerror or cause}") from None

    def upload(self, path: str, source: Path) -> None:
        """A copy of `source`, made beside and then renamed. Raises Refused, DiskFullError."""
        validate_plain_path(path)
        try:
            with files.write_atomically(self.root / path) as temporary:
                shutil.copyfile(source, temporary)
        except OSError as cause:
            raise Refused(f"'{path}' cannot be written: {cause.strerror or cause}") from None

    def rows(self) -> pa.Table | None:
        """None: a folder knows nothing but names."""
        return None


def _explain_error(cause: OSError, path: str) -> Exception:
    if isinstance(cause, (FileNotFoundError, NotADirectoryError)):
        return Missing(f"'{path}' is not there")
    return Refused(f"'{path}': {cause.strerror or cause}")


def _walk(root: Path, walk: _Walk, recursive: bool) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files below `root` with their relative path. A folder that is its own ancestor through a link is not entered
    again."""
    stat = root.stat()
    stack: list[tuple[str, str, frozenset[tuple[int, int]]]] = [
        (str(root), "", frozenset([(stat.st_dev, stat.st_ino)]))
    ]
    while stack:
        folder, prefix, ancestors = stack.pop()
        walk.folders += 1
        try:
            with os.scandir(folder) as entries:
                inside = list(entries)
        except OSError as cause:
            if not prefix and isinstance(cause, NotADirectoryError):
                raise
            walk.problems["unreadable folder"] += 1
            walk.notes.append(f"{prefix or '.'}: {cause.strerror or cause}")
            continue
        for entry in inside:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
                identity = _identity(entry) if is_folder else None
            except OSError as cause:
                walk.problems["link loop" if entry.is_symlink() else "unreadable"] += 1
                walk.notes.append(f"{prefix + entry.name!r}: {cause.strerror or cause}")
                continue
            if identity is None:
                yield prefix + entry.name, entry
            elif not recursive:
                continue
            elif identity in ancestors:
                walk.problems["link loop"] += 1
                walk.notes.append(f"{prefix + entry.name}: leads back to a folder above it")
            else:
                if entry.is_symlink():
                    _note_leaving(walk, root, prefix + entry.name, entry)
                stack.append((entry.path, prefix + entry.name + "/", ancestors | {identity}))


def _note_leaving(walk: _Walk, root: Path, path: str, entry: os.DirEntry[str]) -> None:
    """Remember a link that leads to something outside the folder; what lies behind a linked folder is named by it."""
    target = Path(entry.path).resolve()
    if not target.is_relative_to(root.resolve()):
        walk.leaving.append(f"{path} -> {target}")


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    stat = entry.stat()
    return stat.st_dev, stat.st_ino
