"""Listing a folder of pictures: which files there are, how large and how old, without opening one."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from stat import S_ISREG

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from darkroom.media.images import EXTENSIONS


@dataclass
class Listing:
    """The files below a folder, sorted by path. `problems` counts what could not be listed, by reason."""

    paths: pa.Array  # (n,) string, relative, with forward slashes
    size: np.ndarray  # (n,) int64, bytes
    mtime: np.ndarray  # (n,) int64, nanoseconds
    texts: pa.Array  # (m,) string, the .txt files, relative and without their ending
    text_size: np.ndarray  # (m,) int64
    text_mtime: np.ndarray  # (m,) int64
    problems: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    folders: int = 0
    others: int = 0
    stored: bool = False  # taken from an index instead of the folder; text files are as they were

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: np.ndarray) -> None:
        """Keep only these pictures."""
        self.paths, self.size, self.mtime = self.paths.take(pa.array(rows)), self.size[rows], self.mtime[rows]


def list_pictures(root: Path) -> Listing:
    """Everything below `root`, hidden names apart. Links to folders are followed, except where they would lead in
    circles."""
    found: list[tuple[str, int, int]] = []
    texts: list[tuple[str, int, int]] = []
    listing = Listing(pa.array([], pa.string()), *_numbers([]), pa.array([], pa.string()), *_numbers([]))
    for path, entry in _walk(root, listing):
        ending = PurePosixPath(path).suffix.lower()
        if ending not in EXTENSIONS and ending != ".txt":
            listing.others += 1
            continue
        try:
            path.encode()
            stat = entry.stat()
        except UnicodeEncodeError:
            listing.problems["file name is not UTF-8"] += 1
            continue
        except OSError as cause:
            listing.problems["broken link" if entry.is_symlink() else "unreadable"] += 1
            listing.notes.append(f"{path!r}: {cause.strerror or cause}")
            continue
        if not S_ISREG(stat.st_mode):
            listing.problems["not a file"] += 1  # a pipe or a device: opening it could wait for ever
            listing.notes.append(f"{path!r}: a pipe, socket or device")
            continue
        (texts if ending == ".txt" else found).append((path, stat.st_size, stat.st_mtime_ns))
    found.sort()
    texts.sort()
    listing.paths = pa.array([row[0] for row in found], pa.string())
    listing.size, listing.mtime = _numbers(found)
    listing.texts = pa.array([row[0][:-4] for row in texts], pa.string())
    listing.text_size, listing.text_mtime = _numbers(texts)
    return listing


def _numbers(rows: list[tuple[str, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    count = len(rows)
    return np.fromiter((r[1] for r in rows), np.int64, count), np.fromiter((r[2] for r in rows), np.int64, count)


def _walk(root: Path, listing: Listing) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files below `root` with their relative path. A folder that is its own ancestor through a link is not entered
    again."""
    stat = root.stat()
    stack: list[tuple[str, str, frozenset[tuple[int, int]]]] = [
        (str(root), "", frozenset([(stat.st_dev, stat.st_ino)]))
    ]
    while stack:
        folder, prefix, ancestors = stack.pop()
        listing.folders += 1
        try:
            with os.scandir(folder) as entries:
                inside = list(entries)
        except OSError as cause:
            listing.problems["unreadable folder"] += 1
            listing.notes.append(f"{prefix or '.'}: {cause.strerror or cause}")
            continue
        for entry in inside:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
                identity = _identity(entry) if is_folder else None
            except OSError as cause:
                listing.problems["link loop" if entry.is_symlink() else "unreadable"] += 1
                listing.notes.append(f"{prefix + entry.name!r}: {cause.strerror or cause}")
                continue
            if identity is None:
                yield prefix + entry.name, entry
            elif identity in ancestors:
                listing.problems["link loop"] += 1
                listing.notes.append(f"{prefix + entry.name}: leads back to a folder above it")
            else:
                stack.append((entry.path, prefix + entry.name + "/", ancestors | {identity}))


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    stat = entry.stat()
    return stat.st_dev, stat.st_ino


def choose_samples(listing: Listing, dataset: str, most: int | None) -> int:
    """Keep at most `most` pictures, always the same ones for the same files and dataset id. Returns how many were
    left out."""
    if most is None or len(listing) <= most:
        return 0
    rows = list(range(len(listing)))  # the listing is sorted by path
    random.Random(dataset).shuffle(rows)
    left = len(listing) - most
    listing.take(np.sort(np.array(rows[:most], np.int64)))
    return left


def without_ending(paths: pa.Array) -> pa.Array:
    """Paths without their last ending: `a.b/c.jpg` to `a.b/c`."""
    return pc.replace_substring_regex(paths, r"\.[^./]*$", "")


def text_of(listing: Listing) -> np.ndarray:
    """(n,) int64: for each picture the row of its text file, or -1."""
    if len(listing.texts) == 0:
        return np.full(len(listing), -1, np.int64)
    rows = pc.index_in(without_ending(listing.paths), listing.texts)
    return pc.fill_null(rows, -1).to_numpy(zero_copy_only=False).astype(np.int64)
