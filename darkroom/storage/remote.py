"""Folders behind a network: anything fsspec knows, with retries, and files of which only the needed parts travel."""

from __future__ import annotations

import io
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from darkroom.core.errors import DataError
from darkroom.options.datasets.locations import UrlFiles
from darkroom.storage.base import (
    REMEDY,
    FileListing,
    Missing,
    OnProgress,
    Refused,
    Unreachable,
    describe_error,
    ending_of,
    has_ending,
    hash_parts,
    hide_url_secrets,
    is_hidden,
    is_plain_path,
    validate_plain_path,
)
from darkroom.storage.retry import Passing, Retry

if TYPE_CHECKING:
    import pyarrow as pa
    from _typeshed import WriteableBuffer
    from fsspec import AbstractFileSystem

Result = TypeVar("Result")

HEAD = 64 << 10  # bytes of the first request: holds the header of nearly every JPEG, PNG and WebP
STEP = 256 << 10  # bytes after a jump; doubled while reading goes on from there
MAX_STEP = 8 << 20
CACHED_BLOCKS = 4  # blocks of one open file kept in memory, so that going back and forth costs no request
CONNECTIONS = 16

PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529})
GONE_STATUS = frozenset({404, 410})
NETWORK_PACKAGES = frozenset(
    (
        *("aiohttp", "azure", "botocore", "gcsfs", "google", "h11", "httpcore", "httpcore2", "httpx", "httpx2"),
        *("huggingface_hub", "paramiko", "requests", "smbprotocol", "urllib3"),
    )
)


class RemoteStore(ABC):
    """A folder of a file system of fsspec. Kinds of their own override the methods under "one attempt each"."""

    writable, remote = True, True

    def __init__(self, name: str, connections: int, retry: Retry | None = None, remedy: str = REMEDY):
        self.name, self.connections = name, connections
        self.retry, self.remedy = retry or Retry(), remedy
        self.secrets: tuple[str, ...] = ()
        self._slots = threading.BoundedSemaphore(connections)

    # ------------------------------------------------------------------ what callers use

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Names the folder."""

    def find(self, endings: frozenset[str], on_progress: OnProgress | None = None) -> FileListing:
        """All files, hidden names apart. Raises DataError when the folder may not be listed, Unreachable."""
        rows: list[tuple[str, int, int]] = []
        listing = FileListing([], [], [])
        folders: set[str] = set()
        try:
            for path, size, stamp in self._list(on_progress):
                if is_hidden(path):
                    continue
                folders.add(path.rpartition("/")[0])
                if not has_ending(path, endings):
                    listing.other_files[ending_of(path)] += 1
                elif not is_plain_path(path):
                    listing.problems["unusable name"] += 1
                    listing.notes.append(f"{path!r}: a part of the name is empty, '.' or '..'")
                else:
                    rows.append((path, size, stamp))
        except (Missing, Refused) as cause:
            raise DataError(f"{self.name} cannot be listed: {cause}\n  {self.remedy}") from None
        return FileListing.from_rows(
            rows, problems=listing.problems, notes=listing.notes, folders=len(folders), other_files=listing.other_files
        )

    def read(self, path: str) -> bytes:
        """A whole file. Raises Missing, Refused, Unreachable."""
        validate_plain_path(path)
        return self.attempts(f"reading '{path}'", path, lambda: self._get(path))

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """A seekable file that is fetched in blocks as it is read. Raises Missing, Refused, Unreachable, here or
        while it is read."""
        validate_plain_path(path)
        part, length = self._parts(path)
        return open_ranges(
            lambda start, end: self.attempts(f"reading a part of '{path}'", path, lambda: part(start, end)),
            lambda: self.attempts(f"asking for the size of '{path}'", path, length),
            path,
            size,
        )

    def local(self, path: str) -> Path | None:
        """None: it is elsewhere."""
        return None

    def delete(self, path: str) -> None:
        """Remove a file. Raises Missing, Refused, Unreachable."""
        validate_plain_path(path)
        tried = 0

        def once() -> None:
            nonlocal tried
            tried += 1
            try:
                self._remove(path)
            except FileNotFoundError:
                if tried == 1:  # later it may be gone because the answer to an earlier attempt was lost
                    raise

        self.attempts(f"deleting '{path}'", path, once)

    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all. Raises Refused, Unreachable."""
        validate_plain_path(path)
        self.attempts(f"writing '{path}'", path, lambda: self._put(path, data))

    def upload(self, path: str, source: Path) -> None:
        """Write a file from one on this machine, in pieces. Raises as `write`."""
        validate_plain_path(path)
        with source.open("rb") as file:

            def once() -> None:
                file.seek(0)
                self._put_from(path, file)

            self.attempts(f"writing '{path}'", path, once)

    def rows(self) -> pa.Table | None:
        """None: a folder knows nothing but names."""
        return None

    # ------------------------------------------------------------------ trouble

    def attempts(self, action: str, path: str, work: Callable[[], Result]) -> Result:
        """The result of `work`, repeated as far as that may help. Raises Missing, Refused, Unreachable."""

        def once() -> Result:
            try:
                with self._slots:
                    return work()
            except (Missing, Refused, Passing, Unreachable):
                raise
            except Exception as cause:
                judged = self.classify_error(cause, path)
                if judged is None:
                    raise  # a mistake of ours, not of the network
                raise judged from None  # what was raised may carry a secret in its text

        return self.retry.call(once, action, self.name, self.remedy)

    def classify_error(self, cause: Exception, path: str) -> Exception | None:
        """What an exception of the client means: Missing, Refused, Passing, or None when it is no matter of storage."""
        return classify_error(cause, path, self.secrets)

    # ------------------------------------------------------------------ one attempt each

    @abstractmethod
    def _list(self, on_progress: OnProgress | None) -> list[tuple[str, int, int]]:
        """(path, bytes, stamp) of every file, with retries inside."""

    @abstractmethod
    def _get(self, path: str) -> bytes:
        """A whole file."""

    @abstractmethod
    def _parts(self, path: str) -> tuple[Callable[[int, int], bytes], Callable[[], int]]:
        """Two functions: bytes `start` to `end` of a file (fewer at its end), and its size."""

    @abstractmethod
    def _remove(self, path: str) -> None:
        """Remove a file."""

    @abstractmethod
    def _put(self, path: str, data: bytes) -> None:
        """Write a file."""

    @abstractmethod
    def _put_from(self, path: str, file: BinaryIO) -> None:
        """Write a file from an open one, in pieces."""


def classify_error(cause: Exception, path: str, secrets: tuple[str, ...] = ()) -> Exception | None:
    """Sort an exception of fsspec or of a network client: Missing, Refused, Passing, or None (not about storage)."""
    status = getattr(cause, "status", None) or getattr(getattr(cause, "response", None), "status_code", None)
    reason = describe_error(cause, secrets)
    if status in GONE_STATUS or isinstance(cause, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return Missing(f"'{path}' is not there")
    if isinstance(status, int) and 400 <= status < 500 and status not in PASSING_STATUS:
        return Refused(f"'{path}': HTTP {status} ({reason})")
    if isinstance(cause, (PermissionError, NotImplementedError, ValueError, FileExistsError)):
        return Refused(f"'{path}': {reason}")
    if isinstance(cause, (OSError, EOFError)) or type(cause).__module__.partition(".")[0] in NETWORK_PACKAGES:
        return Passing(reason)
    return None


# ---------------------------------------------------------------------- fsspec

# names under which file systems give what changes with the content; "created" last, as most never change it
TIMES = ("mtime", "last_modified", "LastModified", "modified", "updated", "uploaded")
MARKS = ("etag", "ETag", "e_tag", "md5", "md5Hash", "content_md5", "sha256", "oid", "blob_id", "xet_hash")
# options that tell one place from another and are no secret; others may be and stay out of the identity
TELLING = ("endpoint_url", "endpoint", "host", "port", "project", "account_name", "revision", "repo_type")
# here a finished write appears at once; elsewhere it is written beside and renamed
ATOMIC_WRITES = frozenset(["memory", "gs", "gcs", "az", "abfs", "abfss", "adl", "s3", "s3a", "oss", "oci", "hf", "r2"])


class UrlStore(RemoteStore):
    """`memory://`, `hf://`, `gs://`, `sftp://` and whatever else has a client for fsspec."""

    def __init__(self, location: UrlFiles, retry: Retry | None = None):
        super().__init__(hide_url_secrets(location.url), CONNECTIONS, retry)
        self.options = dict(location.options)
        self.secrets = tuple(
            str(value) for key, value in self.options.items() if isinstance(value, str) and key not in TELLING
        )
        self.fs, self.root = self._connect(location.url)
        scheme = location.url.partition("://")[0]
        self._atomic = scheme in ATOMIC_WRITES
        # files of the hub read ahead by themselves, 5 MB for each header; we choose the blocks
        self._exact = {"cache_type": "none"} if scheme == "hf" else {}

    def _connect(self, url: str) -> tuple[AbstractFileSystem, str]:
        from fsspec.core import url_to_fs

        scheme = url.partition("://")[0]
        try:
            fs, root = url_to_fs(url, **self.options)
        except (ImportError, ValueError) as cause:
            remedy = (
                "For S3 and what speaks its protocol use type aws, which needs no further package."
                if scheme in ("s3", "s3a")
                else "Install the package that is named, or use a URL of another kind."
            )
            raise DataError(
                f"{self.name} cannot be opened: {describe_error(cause, self.secrets)}\n  {remedy}"
            ) from None
        except Exception as cause:
            if classify_error(cause, "") is None:
                raise
            raise Unreachable(self.name, 1, 0, describe_error(cause, self.secrets)) from None
        return fs, str(root).rstrip("/")

    def identity(self) -> dict[str, object]:
        """The URL without credentials, and the options that name a place."""
        telling = {key: str(self.options[key]) for key in TELLING if key in self.options}
        return {"type": "url", "url": self.name.rstrip("/"), "options": telling}

    def _list(self, on_progress: OnProgress | None) -> list[tuple[str, int, int]]:
        def once() -> dict[str, dict[str, object]]:
            self.fs.invalidate_cache()
            inside: dict[str, dict[str, object]] = self.fs.find(self.root, detail=True)
            if not inside and not self.fs.exists(self.root or "/"):
                raise Missing("nothing is there")
            return inside

        inside = self.attempts("listing", self.root, once)
        if on_progress is not None:
            on_progress(len(inside), len(inside))
        return [
            (name.removeprefix(self.root).lstrip("/"), int(cast(int, info.get("size") or 0)), _stamp(info))
            for name, info in inside.items()
        ]

    def _get(self, path: str) -> bytes:
        data: bytes = self.fs.cat_file(f"{self.root}/{path}")
        return data

    def _parts(self, path: str) -> tuple[Callable[[int, int], bytes], Callable[[], int]]:
        full = f"{self.root}/{path}"

        def part(start: int, end: int) -> bytes:
            data: bytes = self.fs.cat_file(full, start, end, **self._exact)
            return data

        return part, lambda: int(self.fs.info(full)["size"])

    def _remove(self, path: str) -> None:
        self.fs.rm_file(f"{self.root}/{path}")

    def _put(self, path: str, data: bytes) -> None:
        self._write_atomically(path, lambda full: self.fs.pipe_file(full, data))

    def _put_from(self, path: str, file: BinaryIO) -> None:
        def send(full: str) -> None:
            with self.fs.open(full, "wb") as out:
                while block := file.read(MAX_STEP):
                    out.write(block)

        self._write_atomically(path, send)

    def _write_atomically(self, path: str, send: Callable[[str], None]) -> None:
        full = f"{self.root}/{path}"
        folder, _, name = full.rpartition("/")
        if self._atomic:
            send(full)
            return
        self.fs.makedirs(folder, exist_ok=True)
        send(f"{folder}/.{name}.tmp")
        self.fs.mv(f"{folder}/.{name}.tmp", full)


def _stamp(info: dict[str, object]) -> int:
    """A number that changes with the content, from what a file system tells about a file."""
    for key in (*TIMES, *MARKS, "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return int(value.timestamp() * 1_000_000) * 1000
        if key in TIMES and isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value * 1_000_000_000)
        if value:
            return hash_parts(value)
    return hash_parts(info.get("size"))


# ---------------------------------------------------------------------- files in parts


def open_ranges(
    part: Callable[[int, int], bytes], length: Callable[[], int], path: str, size: int | None = None
) -> BinaryIO:
    """A seekable file over `part(start, end)`. The first request brings 64 KiB, so an image's header costs one."""
    return cast(BinaryIO, io.BufferedReader(_RangeReader(part, length, path, size), 8192))


class _RangeReader(io.RawIOBase):
    """Blocks on demand: small after a jump, larger while reading goes on, a few kept."""

    def __init__(
        self, part: Callable[[int, int], bytes], length: Callable[[], int], path: str, size: int | None = None
    ):
        self._part, self._length, self._path = part, length, path
        self._size = size if size is not None and size >= 0 else None
        self._at, self._step = 0, STEP
        self._blocks: OrderedDict[int, bytes] = OrderedDict()  # start to bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}[whence] if whence != io.SEEK_END else self._get_size()
        if base + offset < 0:
            raise ValueError(f"position {base + offset} is before the start of '{self._path}'")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._size is not None and self._at >= self._size:
            return 0
        start, block = self._block()
        target = memoryview(buffer)
        piece = memoryview(block)[self._at - start : self._at - start + len(target)]
        target[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _get_size(self) -> int:
        if self._size is None:
            self._size = self._length()
        return self._size

    def _block(self) -> tuple[int, bytes]:
        """The block that holds the position, and where it starts; empty at the end."""
        for start, block in self._blocks.items():
            if start <= self._at < start + len(block):
                self._blocks.move_to_end(start)
                return start, block
        start = self._at
        # past the first block the end must be known: to ask for bytes behind it is an error with some servers
        if start and start >= self._get_size():
            return start, b""
        if any(start == begin + len(block) for begin, block in self._blocks.items()):
            self._step = min(self._step * 2, MAX_STEP)
        else:
            self._step = STEP
        end = start + (HEAD if not self._blocks and start == 0 else self._step)
        if self._size is not None:
            end = min(end, self._size)
        block = self._part(start, end)
        if len(block) < end - start:
            if self._size is not None:
                raise Refused(f"'{self._path}' has changed while it was read: it ends at byte {start + len(block)}")
            self._size = start + len(block)
        self._blocks[start] = block
        while len(self._blocks) > CACHED_BLOCKS:
            # the first block goes last: headers are read again and again
            self._blocks.pop(next(begin for begin in self._blocks if begin or len(self._blocks) == 1))
        return start, block
