"""What every place of samples offers: list, read and, where it can be done, write. One class per kind of place.

Missing                      this one file is not there; the sample is skipped and counted
Refused                      this one file may not or cannot be read or written; str() says why
Unreachable (a DataError)    the place as a whole does not answer, after all attempts; the run stops and says so
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import urlsplit, urlunsplit

from darkroom.core.errors import DataError
from darkroom.core.log import redact

if TYPE_CHECKING:
    import pyarrow as pa

OnProgress = Callable[[int, int], None]
"""Called with (done, total) while something long is under way; total is 0 while nobody can know it."""

ANY = frozenset({"*"})
"""As `endings`: files with any name."""

REMEDY = "Check its address and the network, and start again: what was made so far is kept."


class Missing(Exception):
    """This one file is not there (any more)."""


class Refused(Exception):
    """This one file may not or cannot be read or written. `str()` says why, without secrets."""


class Unreachable(DataError):
    """A place did not answer, however often it was asked. `cause` is the last thing that went wrong, in words."""

    def __init__(self, store: str, attempts: int, seconds: float, cause: str, remedy: str = REMEDY):
        self.store, self.attempts, self.cause = store, attempts, cause
        times = "1 attempt" if attempts == 1 else f"{attempts} attempts in {seconds:.0f} s"
        super().__init__(f"{store} does not answer after {times}: {cause}\n  {remedy}")


@dataclass
class FileListing:
    """The files of a store, sorted by path. `problems` counts what could not be listed, by reason."""

    paths: list[str]  # relative to the store, with forward slashes
    sizes: list[int]  # bytes
    stamps: list[int]  # modification time in ns, or 63 bits of a hash: another number means other content
    problems: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    folders: int = 0
    other_files: Counter[str] = field(default_factory=Counter)  # files with other endings, by ending
    leaving: list[str] = field(default_factory=list)  # links that lead out of the store, and where to

    @classmethod
    def from_rows(cls, rows: list[tuple[str, int, int]], **fields: object) -> FileListing:
        """From rows of (path, bytes, stamp) in any order; `fields` are those that have defaults."""
        rows.sort()
        columns = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
        return cls(*columns, **fields)  # type: ignore[arg-type] # each as it is declared

    def __len__(self) -> int:
        return len(self.paths)


class Store(Protocol):
    """A place of samples or of cached files. Paths are relative, with forward slashes, as in `Found.paths`."""

    name: str  # for people: a folder or a URL; never a secret
    writable: bool
    remote: bool  # waiting, not computing, is what takes time
    connections: int  # how many threads may read at once

    def identity(self) -> dict[str, object]:
        """What makes this store this store, as JSON and without secrets; names the index file."""

    def find(self, endings: frozenset[str], on_progress: OnProgress | None = None) -> FileListing:
        """All files with these lower-case endings (`.jpg`, also `.txt`). Hidden names, and what is in hidden folders,
        are left out. Raises DataError (Unreachable among them)."""

    def read(self, path: str) -> bytes:
        """A whole file. Raises Missing, Refused, Unreachable."""

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """A seekable file that brings only what is read. `size` in bytes saves asking for it. Raises as `read`, also
        later while the file is read."""

    def local(self, path: str) -> Path | None:
        """Where the file lies on this machine, if it does."""

    def delete(self, path: str) -> None:
        """Remove a file. Raises Missing, Refused (always, where nothing can be written), Unreachable."""

    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all. Raises Refused, Unreachable, DiskFullError."""

    def upload(self, path: str, source: Path) -> None:
        """Write a file from one on this machine, in pieces. Raises as `write`."""

    def rows(self) -> pa.Table | None:
        """What the store knows about its samples besides their bytes, one row each, else None.

        Column `path` (string, as in `Found.paths`) and any of `captions` list<string>, `width`, `height`, `frames`
        int32, `fps` float64, `lyrics` string.
        """


class ReadOnly:
    """The writing half of a store that cannot be written."""

    name: str
    writable = False

    def delete(self, path: str) -> None:
        """Always Refused."""
        raise Refused(f"'{path}' cannot be deleted: {self.name} can only be read")

    def write(self, path: str, data: bytes) -> None:
        """Always Refused."""
        raise Refused(f"'{path}' cannot be written: {self.name} can only be read")

    def upload(self, path: str, source: Path) -> None:
        """Always Refused."""
        raise Refused(f"'{path}' cannot be written: {self.name} can only be read")


# ---------------------------------------------------------------------- names


def has_ending(path: str, endings: frozenset[str]) -> bool:
    """Does the name end in one of `endings`?"""
    return "*" in endings or ending_of(path) in endings


def ending_of(path: str) -> str:
    """The lower-case ending with its dot, as pathlib tells it, or nothing. Called per file, so without pathlib."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def is_hidden(path: str) -> bool:
    """Does any part of the path start with a dot?"""
    return path.startswith(".") or "/." in path


def is_plain_path(path: str) -> bool:
    """Is this a relative path without empty parts and steps upwards? Only such names stay inside their store."""
    return bool(path) and not any(part in ("", ".", "..") for part in path.split("/"))


def validate_plain_path(path: str) -> None:
    """Raises Refused for a path that leads out of its store."""
    if not is_plain_path(path):
        raise Refused(f"'{path}' is not a relative path inside the store")


def hash_parts(*parts: object) -> int:
    """63 bits that stand for these parts: a stamp for stores without modification times."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 1


# ---------------------------------------------------------------------- nothing secret in words


def hide_url_secrets(url: str) -> str:
    """A URL as it may be shown: without user, password, query and fragment, which can carry credentials."""
    try:
        parts = urlsplit(url)
    except ValueError:  # an address in brackets that is none
        return url.split("?")[0]
    if not parts.netloc:
        return url.split("?")[0] if "://" in url else url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def describe_error(cause: BaseException, secrets: Iterable[str] = (), limit: int = 300) -> str:
    """What an exception says, on one line, shortened, without the given secrets and without signed parts of URLs."""
    text = re.sub(r"\s+", " ", str(cause)).strip() or type(cause).__name__
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = re.sub(r"(\w+://[^\s?'\"]+)\?[^\s'\"]+", r"\1?***", text)
    text = redact(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
