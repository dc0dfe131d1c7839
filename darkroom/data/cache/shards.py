"""Encoded samples on disk, each under the hash of what made it.

Entries are dicts of named tensors, kept in safetensors shards of `write_batch` entries. A shard appears by
renaming, so a run
that is killed leaves whole shards and at most a temporary file, which the next start removes. Every shard carries
a checksum per
entry; one that fails its checks is set aside (`.damaged`), reported, and its entries count as missing.

Entries of a plain shard are tensors named `key/name`; those of a compressed one are uint8 tensors named `key` that
hold the zlib
stream of a small safetensors file. Both kinds are always readable. Listing keys needs no torch.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import struct
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import xxhash

from darkroom.core import files
from darkroom.core.errors import DataError, DiskFullError
from darkroom.core.units import show_size

if TYPE_CHECKING:
    from safetensors import safe_open
    from torch import Tensor

Item = TypeVar("Item")
Tensors = dict[str, "Tensor"]

VERSION = 2
FORMAT = "darkroom-cache"
KEY = 32  # hex digits of a key: 128 bits
ENDING = ".shard.safetensors"
HANDLES = 512  # shards kept open; each is a memory map and a parsed header, but no file handle
SECONDS = 60.0  # what a kill can cost: a shard is written after this time even if it is not full
CHECKED_AT_START = 1 << 30  # caches up to this many bytes are read through and checked when they are opened for filling


def cache_key(**parts: object) -> str:
    """The name of an entry: a hash of everything that made it."""
    return files.digest({"cache_version": VERSION, **parts})[:KEY]


class DamagedEntry(DataError):
    """A cache entry does not match its checksum. Its shard was set aside and will be made again at the next start."""


class ShardCache:
    """A folder of shards, written by one process or several, read by any number.

    `on_shard` is told the name of every shard that was written, for those who keep a copy elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        *,
        compress: bool = False,
        write_batch: int = 128,
        on_warn: Callable[[str], None] | None = None,
        on_shard: Callable[[str], None] | None = None,
    ):
        self._on_shard = on_shard or (lambda name: None)
        self.folder, self.compress, self.write_batch = Path(folder), compress, max(1, write_batch)
        self._warn = on_warn or (lambda message: None)
        self._pending: dict[str, Tensors] = {}
        self._since = time.monotonic()
        self._shards: list[str] = []
        self._handles: OrderedDict[int, tuple[ShardHeader, safe_open]] = OrderedDict()
        self._lock = threading.RLock()
        self._keys, self._shard_numbers = np.zeros(0, f"S{KEY}"), np.zeros(0, np.int32)
        self._sizes = np.zeros(0, np.int64)
        self._recent: dict[bytes, tuple[int, int]] = {}  # written since the last sort: key to (shard, bytes)
        self.refresh()

    # ------------------------------------------------------------------ what is there

    def refresh(self) -> None:
        """Read the headers of all shards, as after another process wrote some."""
        with self._lock:
            self._close()
            self._recent.clear()
            self._shards, rows = [], []
            for path in sorted(self.folder.glob(f"*{ENDING}")) if self.folder.is_dir() else []:
                try:
                    entries = read_header(path).entries
                except ValueError as cause:
                    self._set_aside(path, str(cause))
                    continue
                rows += [(key.encode(), len(self._shards), size) for key, size in entries.items()]
                self._shards.append(path.name)
            self._sort(rows)

    def _sort(self, rows: list[tuple[bytes, int, int]]) -> None:
        keys = np.array([row[0] for row in rows], f"S{KEY}")
        self._keys, first = np.unique(keys, return_index=True)
        self._shard_numbers = np.array([row[1] for row in rows], np.int32)[first]
        self._sizes = np.array([row[2] for row in rows], np.int64)[first]

    def _find(self, key: str) -> int:
        """The shard of a key, or -1."""
        raw = key.encode()
        if raw in self._recent:
            return self._recent[raw][0]
        at = int(np.searchsorted(self._keys, np.bytes_(raw)))
        return int(self._shard_numbers[at]) if at < len(self._keys) and self._keys[at] == raw else -1

    def has(self, key: str) -> bool:
        """Whether an entry is there, written or waiting to be."""
        return key in self._pending or self._find(key) >= 0

    def has_all(self, keys: np.ndarray) -> np.ndarray:
        """(n,) bool for (n,) S32 keys; the same question for many at once."""
        is_present = np.isin(keys, self._keys)
        extra = [*self._recent, *(k.encode() for k in self._pending)]
        return is_present | np.isin(keys, np.array(extra, f"S{KEY}")) if extra else is_present

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that are not there, in the given order, each once."""
        return [key for key in dict.fromkeys(keys) if not self.has(key)]

    def keys(self) -> list[str]:
        """All keys that are there, sorted."""
        return sorted({*(k.decode() for k in self._keys.tolist()), *(k.decode() for k in self._recent), *self._pending})

    def bytes_of(self, keys: Iterable[str]) -> int:
        """Bytes on disk of the given entries; those that are not written count nothing."""
        total = 0
        for key in keys:
            raw = key.encode()
            at = int(np.searchsorted(self._keys, np.bytes_(raw)))
            if raw in self._recent:
                total += self._recent[raw][1]
            elif at < len(self._keys) and self._keys[at] == raw:
                total += int(self._sizes[at])
        return total

    # ------------------------------------------------------------------ reading

    def get(self, key: str) -> Tensors:
        """The tensors of an entry. Raises KeyError when it is not there, DamagedEntry when it fails its checksum."""
        with self._lock:
            if key in self._pending:
                return dict(self._pending[key])
            shard = self._find(key)
            if shard < 0:
                raise KeyError(key)
            header, handle = self._open(shard)
            tensors = {name: handle.get_tensor(name) for name in header.names[key]}
            if not matches(tensors, header.sums.get(key)):
                raise self._handle_damaged(shard, key)
        return unpack(key, tensors)

    def _open(self, shard: int) -> tuple[ShardHeader, safe_open]:
        """Header and memory-mapped tensors of a shard, kept for the next call."""
        from safetensors import safe_open

        if shard in self._handles:
            self._handles.move_to_end(shard)
            return self._handles[shard]
        path = self.folder / self._shards[shard]
        try:
            pair = read_header(path), safe_open(str(path), framework="pt")
        except (OSError, ValueError) as cause:
            raise DataError(
                f"The cache shard {path} cannot be read any more: {cause}\n  Start again: what is missing is made anew."
            ) from cause
        except Exception as cause:  # safetensors has an exception class of its own
            raise DataError(
                f"The cache shard {path} is damaged: {cause}\n  Start again: what is missing is made anew."
            ) from cause
        self._handles[shard] = pair
        if len(self._handles) > HANDLES:
            self._handles.popitem(last=False)
        return pair

    def _handle_damaged(self, shard: int, key: str) -> DamagedEntry:
        path = self.folder / self._shards[shard]
        self._handles.pop(shard, None)
        self._set_aside(path, f"entry {key} does not match its checksum")
        return DamagedEntry(
            f"The cache shard {path} is damaged: entry {key} does not match its checksum.\n"
            f"  It was set aside as {path.name}.damaged. Start again: its entries are made anew."
        )

    def _set_aside(self, path: Path, reason: str) -> None:
        with suppress(OSError):
            os.replace(path, path.with_name(path.name + ".damaged"))
        self._warn(f"The cache shard {path} is damaged ({reason}); it was set aside and its entries are made again.")

    def verify(self) -> list[str]:
        """Read every entry and compare checksums. Shards that fail are set aside; returns the keys that were lost."""
        with self._lock:
            before = set(self.keys())
            for number, name in enumerate(self._shards):
                problem = validate_shard(self.folder / name)
                if problem:
                    self._handles.pop(number, None)
                    self._set_aside(self.folder / name, problem)
            self.refresh()
            return sorted(before - set(self.keys()))

    def total_bytes(self) -> int:
        """Bytes of all entries on disk."""
        return int(self._sizes.sum()) + sum(size for _, size in self._recent.values())

    # ------------------------------------------------------------------ writing

    def put(self, key: str, tensors: Tensors) -> None:
        """Add an entry. It is on disk after `flush`, which happens by itself when a shard is full or a minute old."""
        if len(key) != KEY:
            raise ValueError(f"a cache key has {KEY} hex digits, not '{key}'")
        with self._lock:
            if self.has(key):
                return
            if not self._pending:
                self._since = time.monotonic()
            self._pending[key] = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
            if len(self._pending) >= self.write_batch or time.monotonic() - self._since > SECONDS:
                self.flush()

    def flush(self) -> None:
        """Write the waiting entries as one shard. Raises DiskFullError; what was written before stays."""
        with self._lock:
            if not self._pending:
                return
            entries = sorted(self._pending)
            name = hashlib.sha256("".join(entries).encode()).hexdigest()[:24] + ENDING
            sizes = self._write(self.folder / name, {key: self._pending[key] for key in entries})
            self._shards.append(name)
            self._recent |= {key.encode(): (len(self._shards) - 1, size) for key, size in sizes.items()}
            self._pending.clear()
            self._on_shard(name)
            if len(self._recent) > 16 * self.write_batch:
                self._merge_recent()

    def _merge_recent(self) -> None:
        rows = [(key, shard, size) for key, (shard, size) in self._recent.items()]
        rows += list(zip(self._keys.tolist(), self._shard_numbers.tolist(), self._sizes.tolist(), strict=True))
        self._recent.clear()
        self._sort(rows)

    def _write(self, path: Path, entries: dict[str, Tensors]) -> dict[str, int]:
        """One shard, all or nothing. Returns the bytes of each entry."""
        from safetensors.torch import save_file

        flat: Tensors = {}
        sums, sizes = {}, {}
        for key, tensors in entries.items():
            packed = pack(key, tensors, self.compress)
            sums[key] = checksum(packed)
            sizes[key] = sum(t.numel() * t.element_size() for t in packed.values())
            flat |= packed
        # one entry only: the library writes several in the random order of a hash table
        facts = {FORMAT: json.dumps({"version": VERSION, "sums": sums})}
        with files.write_atomically(path) as temporary:
            save_file(flat, str(temporary), metadata=facts)
        return sizes

    def sweep(self) -> None:
        """Remove temporary files of writers that are no longer alive. Only a writer calls this."""
        for path in self.folder.glob(".*.tmp") if self.folder.is_dir() else []:
            owner = path.name.split(".")[-2]
            if not (owner.isdigit() and _is_alive(int(owner))):
                path.unlink(missing_ok=True)

    def _close(self) -> None:
        self._handles.clear()


@dataclass(frozen=True)
class ShardHeader:
    """What a shard's header says: tensors and bytes per key, and checksums."""

    names: dict[str, list[str]]
    entries: dict[str, int]
    sums: dict[str, str]


def read_header(path: Path) -> ShardHeader:
    """The header of a shard. Raises ValueError when the file is torn or not one of ours."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > size - 8:
                raise ValueError("the header is cut off")
            raw = json.loads(file.read(length))
        facts = json.loads(raw.pop("__metadata__", {}).get(FORMAT, "{}"))
        if facts.get("version") != VERSION:
            raise ValueError("not a cache shard of this version")
        names: dict[str, list[str]] = {}
        entries: dict[str, int] = {}
        for name, row in raw.items():
            key = name.split("/", 1)[0]
            begin, end = row["data_offsets"]
            names.setdefault(key, []).append(name)
            entries[key] = entries.get(key, 0) + end - begin
        if 8 + length + sum(entries.values()) != size:
            raise ValueError("the file is not as long as its header says")
        return ShardHeader(names, entries, facts["sums"])
    except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as cause:
        raise ValueError(f"{type(cause).__name__}: {cause}") from cause


def validate_shard(path: Path) -> str:
    """What is wrong with a shard, in words; empty when every entry matches its checksum."""
    from safetensors import safe_open

    try:
        header = read_header(path)
        with safe_open(str(path), framework="pt") as handle:
            for key, names in header.names.items():
                if not matches({name: handle.get_tensor(name) for name in names}, header.sums.get(key)):
                    return f"entry {key} does not match its checksum"
    except Exception as cause:  # whatever the reader raises on damaged bytes
        return f"{type(cause).__name__}: {cause}"
    return ""


def checksum(tensors: Tensors) -> str:
    """XXH3 over names, types, shapes and bytes, as `xxh3:...`."""
    total = xxhash.xxh3_64()
    for part in _bytes_of(tensors):
        total.update(part)
    return f"xxh3:{total.hexdigest()}"


def matches(tensors: Tensors, stored: object) -> bool:
    """Are these the tensors whose checksum was stored? Shards of earlier versions have CRC-32."""
    if not isinstance(stored, str) or stored.startswith("xxh3:"):
        return checksum(tensors) == stored
    return crc32(tensors) == stored


def crc32(tensors: Tensors) -> str:
    """CRC-32 over the same."""
    return f"{functools.reduce(lambda total, part: zlib.crc32(part, total), _bytes_of(tensors), 0):08x}"


def _bytes_of(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """Of each tensor, in the order of their names: name, type and shape, then its bytes."""
    import torch

    for name in sorted(tensors):
        tensor = tensors[name]
        yield f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


def pack(key: str, tensors: Tensors, compress: bool) -> Tensors:
    """An entry as it stands in a shard."""
    if not compress:
        return {f"{key}/{name}": tensor for name, tensor in tensors.items()}
    import torch
    from safetensors.torch import save

    return {key: torch.frombuffer(bytearray(zlib.compress(save(tensors), 1)), dtype=torch.uint8)}


def unpack(key: str, tensors: Tensors) -> Tensors:
    """The inverse of `pack`, for either form."""
    if key in tensors:
        from safetensors.torch import load

        return load(zlib.decompress(tensors[key].numpy().tobytes()))
    return {name.split("/", 1)[1]: tensor for name, tensor in tensors.items()}


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as cause:
        return cause.errno == errno.EPERM
    return True


# ---------------------------------------------------------------------- filling


@dataclass
class FillReport:
    """What filling a cache did: entries made and reused, samples left out with reasons, seconds."""

    encoded: int = 0
    reused: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __add__(self, other: FillReport) -> FillReport:
        return FillReport(
            self.encoded + other.encoded,
            self.reused + other.reused,
            {**self.dropped, **other.dropped},
            self.seconds + other.seconds,
        )


def fill(
    cache: ShardCache,
    groups: Iterable[Sequence[tuple[str, Item]]],
    encode: Callable[[list[Item]], Sequence[Tensors]],
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Encode groups of (key, item) that the cache lacks and store them. Returns how many entries were made.

    It may be stopped anywhere: the next call is handed what is still missing and goes on. Entries that were
    finished when
    something fails are written before the error goes on, unless the disk is full.
    """
    written = 0
    try:
        for group in groups:
            unique = {key: item for key, item in group if not cache.has(key)}
            if unique:
                results = encode(list(unique.values()))
                if len(results) != len(unique):
                    raise ValueError(f"the encoder returned {len(results)} results for {len(unique)} items")
                for key, tensors in zip(unique, results, strict=True):
                    cache.put(key, tensors)
                written += len(unique)
            if on_progress is not None:
                on_progress(len(group))
    except DiskFullError:
        raise
    except BaseException:
        with suppress(OSError, DiskFullError):
            cache.flush()
        raise
    cache.flush()
    return written


def open_for_filling(cache: ShardCache) -> None:
    """What a writer does first: sweep up after a killed one and, where that is quick, check all entries."""
    cache.sweep()
    if cache.total_bytes() <= CHECKED_AT_START:
        cache.verify()


def group_items(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of at most `size` items."""
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def describe(report: FillReport, noun: str, written: int) -> str:
    """One line about a fill."""
    left = f", {len(report.dropped)} left out" if report.dropped else ""
    return f"{noun}: {report.encoded} made, {report.reused} reused{left}, {show_size(written)}"
