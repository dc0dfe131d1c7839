"""What is known about each sample of a dataset, in one Parquet file, so that a second start opens no sample.

Two kinds of columns: facts read from files (size on disk, age, width, height, frames, caption, content hash), which are
refreshed for exactly the files that changed; and decisions computed from facts and settings (target, crop, bucket, why
it is left out), which are made again when a setting that affects them changes. In memory everything is a numpy or
pyarrow column, a row per sample. A clip of which several parts are trained on has several rows, next to each other.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from darkroom.core import files
from darkroom.media.images import READERS, UNKNOWN_KIND
from darkroom.media.resize import Sizes
from darkroom.options.datasets import SampleDataset
from darkroom.storage.base import Store

VERSION = 3
REASONS = (
    "",
    "empty file",
    "not a picture",
    "damaged",
    "truncated",
    "unreadable",
    "too many pixels",
    "vanished",
    "size differs",
    "missing caption",
    "empty caption",
    "caption is not UTF-8",
    "unreadable caption",
    "not in the table",
    "resolution_filter",
    "below_min_aspect_ratio",
    "above_max_aspect_ratio",
    "insufficient_for_batch",
    "not a video",
    "no video stream",
    "too_short",
    "too_long",
    "missing companion",
    "no audio stream",
    "no layers",
    "missing layer",
    "damaged layer",
    "layer of another size",
    "layer without alpha",
    "too thin",
    "pixel values out of range",
    UNKNOWN_KIND,
    *(reader.missing for reader in READERS),
    *(reader.failing for reader in READERS),
)
"""Why a sample is left out, by code; 0 means that it is used. New reasons are added at the end."""

CODE = {reason: code for code, reason in enumerate(REASONS)}
DAMAGED = ("damaged", "truncated", "empty file", "not a picture", "not a video", "no video stream")
"""Reasons for which `delete_problematic_images` removes a file."""
TRANSIENT = [CODE[r] for r in ("unreadable", "vanished", "unreadable caption", *(r.missing for r in READERS))]
"""Reasons that may pass without the file changing: such files are looked at again at every start."""

FACTS = {
    "width": np.int32,
    "height": np.int32,
    "frames": np.int32,  # of the clip as it is stored; 1 for an image
    "fps": np.float64,
    "duration": np.float64,  # seconds
    "focus_x": np.float32,  # centre of the face, as shares of width and height; -1 when none was looked for or found
    "focus_y": np.float32,
    "traits": np.int8,  # of an image's header, see media/images.py
    "bad": np.int8,
}
"""What is read from a sample, and its type."""

DECISIONS = {
    "target_width": np.int32,
    "target_height": np.int32,
    "inter_width": np.int32,
    "inter_height": np.int32,
    "top": np.int32,
    "left": np.int32,
    "aspect": np.float64,
    "unfit": np.int8,
    "part": np.int32,  # of the clip, from 0
    "start": np.int32,  # first frame, counted as the clip is trained on
    "count": np.int32,  # frames; 1 for an image, and one more for each of its layers
}
STAMPS = {"size": np.int64, "mtime": np.int64, "caption_size": np.int64, "caption_mtime": np.int64}
NUMBERS = {**STAMPS, **FACTS, "caption_bad": np.int8, **DECISIONS}
"""Numeric columns and their types."""

OnProgress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass
class Index:
    """One dataset's samples. Row numbers are valid for one start; rows are sorted by path."""

    dataset: str
    store: Store
    paths: pa.Array  # (n,) string
    numbers: dict[str, np.ndarray]  # (n,) each, see NUMBERS
    hashes: np.ndarray  # (n,) S32: hex content hash, empty until the bytes were read
    raw: pa.Array  # (n,) list<string>: captions as read
    file: Path
    settings: dict[str, str]
    layers: pa.Array | None = None  # (n,) list<string>: paths of each sample's layers, in order; None without any
    captions: pa.Array | None = None  # (n,) list<string>: variants to train with; None = `constant` for every row
    constant: tuple[str, ...] = ()
    opened: int = 0  # files opened by the scan that made this
    problems: Counter[str] | None = None  # what could not be listed
    left_out: int = 0  # by max_num_samples
    other_files: Counter[str] = field(
        default_factory=Counter
    )  # files of other kinds, by the reason why they are no samples
    leaving: list[str] = field(default_factory=list)  # links that lead out of the folder, and where to
    changed: bool = False
    area_down: bool = False  # shrunk by averaging areas instead of Lanczos
    convert: bool = True  # colors are brought to sRGB
    origin: tuple[Index, np.ndarray] | None = None  # of a selection: where facts are kept, and the rows there

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def is_dropped(self) -> np.ndarray:
        """(n,) int8 codes of REASONS; 0 where the sample is used."""
        bad, text, unfit = (self.numbers[name] for name in ("bad", "caption_bad", "unfit"))
        return np.where(bad != 0, bad, np.where(text != 0, text, unfit))

    @property
    def usable(self) -> np.ndarray:
        """Row numbers of the samples that are used."""
        return np.flatnonzero(self.is_dropped == 0)

    def path(self, row: int) -> str:
        """Path of a row, relative to the storage's root."""
        return self.paths[int(row)].as_py()

    def describe_row(self, row: int) -> str:
        """Path of a row for people, with the frames when it is a part of a clip."""
        start, count = int(self.numbers["start"][row]), int(self.numbers["count"][row])
        if self.layers is not None:
            return f"{self.path(row)} (with {count - 1} layers)"
        return self.path(row) + (f" (frames {start} to {start + count - 1})" if count > 1 or start else "")

    def layers_of(self, row: int) -> list[str]:
        """Paths of a row's layers."""
        return [] if self.layers is None else self.layers[int(row)].as_py()

    def captions_of(self, row: int) -> tuple[str, ...]:
        """All caption variants of a row."""
        return self.constant if self.captions is None else tuple(self.captions[int(row)].as_py())

    def distinct_captions(self) -> list[str]:
        """All captions of usable rows, each once, sorted."""
        if self.captions is None:
            return sorted(set(self.constant)) if len(self.usable) else []
        return sorted(pc.unique(self.captions.take(pa.array(self.usable)).flatten()).to_pylist())

    def sizes(self, row: int) -> Sizes:
        """The sizes planned for a row."""
        at = {name: column[row].item() for name, column in self.numbers.items()}
        return Sizes(
            (at["width"], at["height"]),
            (at["target_width"], at["target_height"]),
            (at["inter_width"], at["inter_height"]),
            at["aspect"],
            self.area_down,
        )

    def crop(self, row: int) -> tuple[int, int]:
        """(top, left) of a row's crop."""
        return int(self.numbers["top"][row]), int(self.numbers["left"][row])

    def parts_of(self, row: int) -> slice:
        """The rows that are parts of the same clip."""
        part = self.numbers["part"]
        first = row - int(part[row])
        last = first + 1
        while last < len(self) and part[last] > 0:
            last += 1
        return slice(first, last)

    def drop(self, row: int, reason: str) -> None:
        """Leave a sample out from now on, until its file changes."""
        self.numbers["bad"][self.parts_of(row) if self.origin is None else row] = CODE.get(reason, CODE["damaged"])
        self.changed = True
        if self.origin is not None:
            self.origin[0].drop(int(self.origin[1][row]), reason)

    def record_hash(self, row: int, content: str) -> None:
        """Remember the hash of a file's bytes."""
        self.hashes[self.parts_of(row) if self.origin is None else row] = content.encode()
        self.changed = True
        if self.origin is not None:
            self.origin[0].record_hash(int(self.origin[1][row]), content)

    def count_reasons(self) -> dict[str, int]:
        """How many samples are left out, by reason."""
        codes, counts = np.unique(self.is_dropped, return_counts=True)
        return {REASONS[code]: int(count) for code, count in zip(codes, counts, strict=True) if code}

    def iterate_dropped(self) -> Iterator[tuple[str, str]]:
        """(path, reason) of each sample that is left out."""
        codes = self.is_dropped
        for row in np.flatnonzero(codes):
            yield self.path(int(row)), REASONS[codes[row]]

    def fingerprint(self) -> str:
        """A hash of what is trained on: paths, contents, captions and crops of the usable rows."""
        rows = self.usable
        sums = hashlib.sha256(repr(self.constant).encode())
        for column in (self.paths, self.raw if self.captions is None else self.captions):
            sums.update("\0".join(map(str, column.take(pa.array(rows)).to_pylist())).encode())
        for name in ("top", "left", "target_width", "target_height", "start", "count"):
            sums.update(self.numbers[name][rows].tobytes())
        sums.update(self.hashes[rows].tobytes())
        return sums.hexdigest()

    def repeat_rows(self, times: np.ndarray) -> None:
        """Each row `times` over, in place; `part` counts the copies."""
        rows = np.repeat(np.arange(len(self)), times)
        self.paths, self.raw = self.paths.take(pa.array(rows)), self.raw.take(pa.array(rows))
        self.layers = None if self.layers is None else self.layers.take(pa.array(rows))
        self.numbers = {name: column[rows] for name, column in self.numbers.items()}
        self.hashes = self.hashes[rows]
        starts = np.cumsum(times) - times
        self.numbers["part"] = (np.arange(len(rows)) - starts[rows]).astype(np.int32)

    def select_rows(self, rows: np.ndarray, absent: str) -> Index:
        """These rows as an index of their own; -1 makes a row without a file, left out as `absent`. Facts that are
        learned about a row are kept here too."""
        is_present, safe = rows >= 0, np.maximum(rows, 0)
        if len(self) == 0:
            numbers = {name: np.zeros(len(rows), kind) for name, kind in NUMBERS.items()}
            paths, hashes = pa.array([""] * len(rows), pa.string()), np.zeros(len(rows), "S32")
        else:
            numbers = {name: column[safe].copy() for name, column in self.numbers.items()}
            paths, hashes = self.paths.take(pa.array(safe)), self.hashes[safe].copy()
        numbers["bad"][~is_present] = CODE[absent]
        numbers["part"][:] = 0
        raw = self.raw.take(pa.array(safe)) if len(self) else pa.nulls(len(rows), pa.list_(pa.string()))
        captions, layers = (
            None if column is None or len(self) == 0 else column.take(pa.array(safe))
            for column in (self.captions, self.layers)
        )
        return replace(
            self,
            paths=paths,
            numbers=numbers,
            hashes=hashes,
            raw=raw,
            layers=layers,
            captions=captions,
            origin=(self, safe),
        )

    def save(self) -> None:
        """Write the index if anything changed. Raises DiskFullError."""
        if self.origin is not None:
            self.origin[0].save()
            return
        if not self.changed:
            return
        rows = np.flatnonzero(self.numbers["part"] == 0)
        is_complete = len(rows) == len(self)
        columns: dict[str, object] = {
            "path": self.paths if is_complete else self.paths.take(pa.array(rows)),
            "hash": _from_bytes(self.hashes if is_complete else self.hashes[rows]),
            "captions": self.raw if is_complete else self.raw.take(pa.array(rows)),
            **{name: column if is_complete else column[rows] for name, column in self.numbers.items()},
        }
        if self.layers is not None:
            columns["layers"] = self.layers if is_complete else self.layers.take(pa.array(rows))
        table = pa.table(columns).replace_schema_metadata({k.encode(): v.encode() for k, v in self.settings.items()})
        with files.write_atomically(self.file) as temporary:
            pq.write_table(table, temporary, compression="zstd", compression_level=1)
        self.changed = False


def _from_bytes(hashes: np.ndarray) -> pa.Array:
    """S32 to a fixed-size binary column."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(hashes), [None, pa.py_buffer(hashes.tobytes())])


def _combine_chunks(column: pa.ChunkedArray) -> pa.Array:
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks)
        if column.num_chunks
        else pa.array([], column.type)
    )


def load(file: Path, store: Store, version: str) -> Index | None:
    """The index of an earlier start, or None when there is none that can be used."""
    try:
        table = pq.read_table(file, memory_map=False)
        table.validate(full=True)
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if metadata.get("version") != version:
            return None
        numbers = {name: table[name].to_numpy().astype(kind) for name, kind in NUMBERS.items()}
        raw_hash = _combine_chunks(table["hash"])
        hashes = np.frombuffer(raw_hash.buffers()[1] or b"", "S32", len(table), raw_hash.offset * 32).copy()
        layers = _combine_chunks(table["layers"]) if "layers" in table.column_names else None
        paths, raw = _combine_chunks(table["path"]), _combine_chunks(table["captions"])
        if not (paths.type == pa.string() and raw.type == pa.list_(pa.string()) and raw_hash.type == pa.binary(32)):
            return None
        return Index("", store, paths, numbers, hashes, raw, file, metadata, layers)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError):
        return None  # a damaged index is only a lost shortcut


def index_file(folder: Path, dataset: SampleDataset, store: Store) -> Path:
    """Where a dataset's index lives: one file per dataset, place and way of reading it."""
    settings = {
        "store": store.identity(),
        "suffix": dataset.cache_file_suffix,
        "metadata": dataset.metadata_backend,
        "most": dataset.max_num_samples,
    }
    return folder / f"{files.safe_name(dataset.id, 60)}-{files.digest(settings)[:12]}.parquet"


def unique_pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs, sorted, (m, 2), and for each input pair the number of its distinct one, (n,)."""
    codes, inverse = np.unique(first.astype(np.int64) << 32 | second.astype(np.int64), return_inverse=True)
    return np.stack([codes >> 32, codes & 0xFFFFFFFF], 1), inverse.reshape(-1)
