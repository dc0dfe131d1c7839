"""What is known about each picture of a dataset, in one Parquet file, so that a second start opens no picture.

Two kinds of columns: facts read from files (size on disk, age, width, height, caption, content hash), which are
refreshed for
exactly the files that changed; and decisions computed from facts and settings (target, crop, bucket, why it is
left out),
which are made again when a setting that affects them changes. In memory everything is a numpy or pyarrow column.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from darkroom.core import files
from darkroom.core.errors import DataError
from darkroom.data import captions as cap
from darkroom.data.scan import Listing, choose_samples, list_pictures, text_of
from darkroom.media.images import BadPicture, read_size
from darkroom.media.resize import Size, Sizes, Sizing, measure, plan_sizes, square_edge, stable_draws
from darkroom.options.dataset import ImageDataset

VERSION = 1
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
)
"""Why a picture is left out, by code; 0 means that it is used. New reasons are added at the end."""

CODE = {reason: code for code, reason in enumerate(REASONS)}
TRANSIENT = [CODE[reason] for reason in ("unreadable", "vanished", "unreadable caption")]
"""Reasons that may pass without the file changing: such files are looked at again at every start."""

NUMBERS = {
    "size": np.int64,
    "mtime": np.int64,
    "width": np.int32,
    "height": np.int32,
    "bad": np.int8,
    "caption_size": np.int64,
    "caption_mtime": np.int64,
    "caption_bad": np.int8,
    "target_width": np.int32,
    "target_height": np.int32,
    "inter_width": np.int32,
    "inter_height": np.int32,
    "top": np.int32,
    "left": np.int32,
    "aspect": np.float64,
    "unfit": np.int8,
}
"""Numeric columns and their types."""

CHUNK = 64
"""Files per task of a reading thread: large enough that handing tasks over costs nothing against opening files."""

SLOW = 0.5e-3
"""Seconds per file above which waiting, not computing, is what takes the time."""

Item = TypeVar("Item")
Result = TypeVar("Result")

Say = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass
class Index:
    """One dataset's pictures. Row numbers are valid for one start; rows are sorted by path."""

    dataset: str
    root: Path
    paths: pa.Array  # (n,) string
    numbers: dict[str, np.ndarray]  # (n,) each, see NUMBERS
    hashes: np.ndarray  # (n,) S32: hex content hash, empty until the bytes were read
    raw: pa.Array  # (n,) list<string>: captions as read
    file: Path
    settings: dict[str, str]
    captions: pa.Array | None = None  # (n,) list<string>: variants to train with; None = `constant` for every row
    constant: tuple[str, ...] = ()
    opened: int = 0  # pictures opened by the scan that made this
    problems: Counter[str] | None = None  # what could not be listed
    left_out: int = 0  # by max_num_samples
    changed: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def dropped(self) -> np.ndarray:
        """(n,) int8 codes of REASONS; 0 where the picture is used."""
        bad, text, unfit = (self.numbers[name] for name in ("bad", "caption_bad", "unfit"))
        return np.where(bad != 0, bad, np.where(text != 0, text, unfit))

    @property
    def usable(self) -> np.ndarray:
        """Row numbers of the pictures that are used."""
        return np.flatnonzero(self.dropped == 0)

    def path(self, row: int) -> str:
        """Path of a row, relative to `root`."""
        return self.paths[int(row)].as_py()

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
        )

    def crop(self, row: int) -> tuple[int, int]:
        """(top, left) of a row's crop."""
        return int(self.numbers["top"][row]), int(self.numbers["left"][row])

    def drop(self, row: int, reason: str) -> None:
        """Leave a picture out from now on, until its file changes."""
        self.numbers["bad"][row] = CODE.get(reason, CODE["damaged"])
        self.changed = True

    def record_hash(self, row: int, content: str) -> None:
        """Remember the hash of a file's bytes."""
        self.hashes[row] = content.encode()
        self.changed = True

    def reasons(self) -> dict[str, int]:
        """How many pictures are left out, by reason."""
        codes, counts = np.unique(self.dropped, return_counts=True)
        return {REASONS[code]: int(count) for code, count in zip(codes, counts, strict=True) if code}

    def left_out_rows(self) -> Iterator[tuple[str, str]]:
        """(path, reason) of each picture that is left out."""
        codes = self.dropped
        for row in np.flatnonzero(codes):
            yield self.path(int(row)), REASONS[codes[row]]

    def fingerprint(self) -> str:
        """A hash of what is trained on: paths, contents, captions and crops of the usable rows."""
        rows = self.usable
        sums = hashlib.sha256(repr(self.constant).encode())
        for column in (self.paths, self.raw if self.captions is None else self.captions):
            sums.update("\0".join(map(str, column.take(pa.array(rows)).to_pylist())).encode())
        for name in ("top", "left", "target_width", "target_height"):
            sums.update(self.numbers[name][rows].tobytes())
        sums.update(self.hashes[rows].tobytes())
        return sums.hexdigest()

    def save(self) -> None:
        """Write the index if anything changed. Raises DiskFullError."""
        if not self.changed:
            return
        columns: dict[str, Any] = {
            "path": self.paths,
            "hash": _from_bytes(self.hashes),
            "captions": self.raw,
            **self.numbers,
        }
        table = pa.table(columns).replace_schema_metadata({k.encode(): v.encode() for k, v in self.settings.items()})
        with files.atomic(self.file) as temporary:
            pq.write_table(table, temporary, compression="zstd", compression_level=1)
        self.changed = False


def _from_bytes(hashes: np.ndarray) -> pa.Array:
    """S32 to a fixed-size binary column."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(hashes), [None, pa.py_buffer(hashes.tobytes())])


def _combined(column: pa.ChunkedArray) -> pa.Array:
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks)
        if column.num_chunks
        else pa.array([], column.type)
    )


def _load(file: Path, settings: dict[str, str]) -> Index | None:
    """The index of an earlier start, or None when there is none that can be used."""
    try:
        table = pq.read_table(file, memory_map=False)
        found = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if found.get("version") != settings["version"]:
            return None
        numbers = {name: table[name].to_numpy().astype(kind) for name, kind in NUMBERS.items()}
        raw_hash = _combined(table["hash"])
        hashes = np.frombuffer(raw_hash.buffers()[1] or b"", "S32", len(table), raw_hash.offset * 32).copy()
        return Index("", Path(), _combined(table["path"]), numbers, hashes, _combined(table["captions"]), file, found)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None  # a damaged index is only a lost shortcut


def index_file(folder: Path, dataset: ImageDataset) -> Path:
    """Where a dataset's index lives: one file per dataset, folder and way of reading it."""
    what = {
        "root": str(dataset.instance_data_dir.absolute()),
        "suffix": dataset.cache_file_suffix,
        "metadata": dataset.metadata_backend,
        "most": dataset.max_num_samples,
    }
    return folder / f"{files.safe_name(dataset.id, 60)}-{files.digest(what)[:12]}.parquet"


# ---------------------------------------------------------------------- scanning


def scan(
    dataset: ImageDataset,
    sizing: Sizing,
    folder: Path,
    seed: int,
    *,
    filters: Sequence[str] = (),
    on_progress: Say | None = None,
    on_warn: Callable[[str], None] | None = None,
) -> Index:
    """List a dataset's folder and bring its index up to date. Raises DataError, DiskFullError.

    `folder` holds the indexes, `filters` is the caption filter of the dataset's text cache.
    """
    table = cap.CaptionTable()
    if dataset.metadata_backend == "parquet" or cap.source_name(dataset) == "parquet":
        table = cap.read_table(dataset)
    settings = _settings(dataset, sizing, seed)
    file = index_file(folder, dataset)
    old = _load(file, settings)
    trusted = old is not None and _is_trusted(dataset)
    listing = _as_listing(old) if old is not None and trusted else list_pictures(dataset.instance_data_dir)
    left_out = choose_samples(listing, dataset.id, dataset.max_num_samples)
    index = _start(dataset, listing, file, settings)
    index.problems, index.left_out = listing.problems, left_out
    stale, stale_text = _reuse(index, old, listing)
    _read_facts(index, stale, dataset, table, on_progress)
    _read_captions(index, stale_text, dataset, table)
    same = old is not None and old.settings.get("decisions") == settings["decisions"]
    _decide(index, stale if same else np.arange(len(index)), dataset, sizing, seed, table)
    _finish_captions(index, dataset, filters, seed, on_warn)
    index.changed = index.changed or old is None or old.settings != settings or len(stale) > 0 or len(stale_text) > 0
    index.save()
    return index


def _settings(dataset: ImageDataset, sizing: Sizing, seed: int) -> dict[str, str]:
    """What the stored columns depend on, as digests that tell whether they still hold."""
    table = _stamp(dataset.parquet.path) if dataset.parquet else None
    block = dataset.parquet.model_dump(mode="json") if dataset.parquet else None
    reads = {
        "source": cap.source_name(dataset),
        "whole": dataset.disable_multiline_split,
        "prompts": dataset.prompts,
        "table": table,
        "block": block,
    }
    decides = {
        "sizing": vars(sizing) | {"table": sorted(sizing.table.items())},
        "seed": seed,
        "id": dataset.id,
        "table": table,
        "limits": [
            dataset.minimum_image_size,
            dataset.minimum_aspect_ratio,
            dataset.maximum_aspect_ratio,
            dataset.resolution_type,
        ],
    }
    return {
        "version": str(VERSION),
        "captions": files.digest(reads),
        "decisions": files.digest(decides),
        "sizes": files.digest([dataset.metadata_backend, table, block]),
    }


def _stamp(path: Path) -> list[int]:
    try:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns]
    except OSError:
        return []


def _is_trusted(dataset: ImageDataset) -> bool:
    """Whether the user asked to skip listing the folder."""
    kept = dataset.preserve_data_backend_cache
    wants = kept is True or (isinstance(kept, str) and "image" in kept)
    return wants or any(word in dataset.skip_file_discovery for word in ("aspect", "metadata"))


def _as_listing(old: Index) -> Listing:
    """The stored index as if it had just been listed, text files included."""
    none = np.zeros(0, np.int64)
    return Listing(
        old.paths, old.numbers["size"], old.numbers["mtime"], pa.array([], pa.string()), none, none, stored=True
    )


def _start(dataset: ImageDataset, listing: Listing, file: Path, settings: dict[str, str]) -> Index:
    """An index of nothing but names, sizes and ages."""
    count = len(listing)
    numbers = {name: np.zeros(count, kind) for name, kind in NUMBERS.items()}
    numbers["size"], numbers["mtime"] = np.array(listing.size), np.array(listing.mtime)
    empty = pa.array([], pa.list_(pa.string()))
    return Index(
        dataset.id, dataset.instance_data_dir, listing.paths, numbers, np.zeros(count, "S32"), empty, file, settings
    )


def _reuse(index: Index, old: Index | None, listing: Listing) -> tuple[np.ndarray, np.ndarray]:
    """Take over what an earlier start knew. Returns the rows whose picture, and whose caption, must be read."""
    everything = np.arange(len(index))
    if not listing.stored:
        _stamp_texts(index, listing)
    if old is None:
        index.raw = pa.nulls(len(index), pa.list_(pa.string()))
        return everything, everything
    if index.paths.equals(old.paths):
        match = everything
    else:
        match = pc.fill_null(pc.index_in(index.paths, old.paths), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    known = match >= 0
    source = np.where(known, match, 0)
    same = (
        known & _equal(index, old, source, ("size", "mtime")) & (old.settings.get("sizes") == index.settings["sizes"])
    )
    if listing.stored:
        for name in ("caption_size", "caption_mtime"):
            index.numbers[name] = old.numbers[name][source]
    same_text = known & _equal(index, old, source, ("caption_size", "caption_mtime"))
    same_text &= old.settings.get("captions") == index.settings["captions"]
    same &= _lasting(old, source, "bad")
    same_text &= _lasting(old, source, "caption_bad")
    for name in NUMBERS:
        if name not in ("size", "mtime", "caption_size", "caption_mtime", "caption_bad"):
            index.numbers[name][same] = old.numbers[name][source[same]]
    index.hashes[same] = old.hashes[source[same]]
    index.numbers["caption_bad"][same_text] = old.numbers["caption_bad"][source[same_text]]
    if same_text.all() and match is everything:
        index.raw = old.raw
    else:
        index.raw = old.raw.take(pa.array(match, mask=~same_text))
    index.changed = len(index) != len(old)
    return np.flatnonzero(~same), np.flatnonzero(~same_text)


def _equal(index: Index, old: Index, source: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    if len(old) == 0:
        return np.zeros(len(index), bool)
    return np.logical_and.reduce([index.numbers[name] == old.numbers[name][source] for name in names])


def _lasting(old: Index, source: np.ndarray, name: str) -> np.ndarray:
    """(n,) bool: rows whose reason, if they have one, goes away only when the file changes."""
    return ~np.isin(old.numbers[name], TRANSIENT)[source] if len(old) else np.zeros(len(source), bool)


def _stamp_texts(index: Index, listing: Listing) -> None:
    """Size and age of each picture's text file; -1 when there is none."""
    rows = text_of(listing)
    there = rows >= 0
    for name, values in (("caption_size", listing.text_size), ("caption_mtime", listing.text_mtime)):
        column = np.full(len(index), -1, np.int64)
        column[there] = values[rows[there]]
        index.numbers[name] = column


def _read_facts(
    index: Index, rows: np.ndarray, dataset: ImageDataset, table: cap.CaptionTable, say: Say | None
) -> None:
    """Width and height of `rows`: from the table, or from file headers, read by several threads."""
    if len(rows) == 0:
        return
    paths = index.paths.take(pa.array(rows)).to_pylist()
    if dataset.metadata_backend == "parquet":
        found: Iterator[list[tuple[int, int, int]]] = iter([[_size_in(table, path) for path in paths]])
        _store_facts(index, rows, found, say)
        return
    root = str(dataset.instance_data_dir)
    index.opened = len(paths)
    _store_facts(
        index, rows, in_chunks(lambda name: _header(root, name), paths, dataset.aspect_bucket_worker_count), say
    )


def in_chunks(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[list[Result]]:
    """Results in order, a chunk at a time: by threads where files answer slowly, else in place.

    On a local disk a header costs 0.1 ms of Python, and threads would only wait for each other; on shared storage it
    costs milliseconds of waiting, which threads share. The first chunk tells which it is.
    """
    started = time.monotonic()
    first = [work(item) for item in items[:CHUNK]]
    slow = time.monotonic() - started > SLOW * len(first)
    yield first
    rest = [items[i : i + CHUNK] for i in range(CHUNK, len(items), CHUNK)]
    if not slow or workers == 1:
        yield from ([work(item) for item in chunk] for chunk in rest)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="files") as pool:
        yield from pool.map(lambda chunk: [work(item) for item in chunk], rest)


def _store_facts(index: Index, rows: np.ndarray, found: Iterator[list[tuple[int, int, int]]], say: Say | None) -> None:
    done = 0
    for chunk in found:
        at = rows[done : done + len(chunk)]
        values = np.array(chunk, np.int64).reshape(-1, 3)
        for name, column in zip(("width", "height", "bad"), values.T, strict=True):
            index.numbers[name][at] = column
        done += len(chunk)
        if say is not None:
            say(done, len(rows))


def _header(root: str, name: str) -> tuple[int, int, int]:
    """(width, height, reason code) of one file."""
    try:
        return *read_size(f"{root}/{name}"), 0
    except BadPicture as bad:
        return 0, 0, CODE[bad.reason]


def _size_in(table: cap.CaptionTable, path: str) -> tuple[int, int, int]:
    size = table.sizes.get(table.key(path))
    return (0, 0, CODE["not in the table"]) if size is None else (*size, 0)


def _read_captions(index: Index, rows: np.ndarray, dataset: ImageDataset, table: cap.CaptionTable) -> None:
    """Raw captions of `rows`. A picture without one is left out and counted."""
    if len(rows) == 0 or cap.source_name(dataset) == "instanceprompt":
        return
    read = cap.SOURCES[cap.source_name(dataset)]

    def one(path: str) -> tuple[tuple[str, ...] | None, int]:
        try:
            return read(dataset, table, path), 0
        except cap.BadCaption as bad:
            return None, CODE[bad.reason]

    paths = index.paths.take(pa.array(rows)).to_pylist()
    found = [pair for chunk in in_chunks(one, paths, dataset.max_workers) for pair in chunk]
    fresh = [texts for texts, _ in found]
    index.numbers["caption_bad"][rows] = np.fromiter((code for _, code in found), np.int8, len(found))
    new = pa.array(fresh, pa.list_(pa.string()))
    if len(rows) == len(index):
        index.raw = new
        return
    place = np.arange(len(index))
    place[rows] = len(index) + np.arange(len(rows))
    index.raw = pa.concat_arrays([index.raw, new]).take(pa.array(place))


# ---------------------------------------------------------------------- decisions


def _decide(
    index: Index, rows: np.ndarray, dataset: ImageDataset, sizing: Sizing, seed: int, table: cap.CaptionTable
) -> None:
    """Target, crop and fitness of `rows`."""
    at = index.numbers
    rows = rows[at["bad"][rows] == 0]
    if len(rows) == 0:
        return
    index.changed = True
    by_path = sizing.crop and sizing.crop_aspect == "random"
    wanted = np.stack([at["width"][rows], at["height"][rows]], 1)
    unique, inverse = unique_pairs(wanted[:, 0], wanted[:, 1])
    if by_path:
        names = index.paths.take(pa.array(rows)).to_pylist()
        plans = [
            plan_sizes(_pair(size), sizing, stable_draws(seed, dataset.id, name)[2])
            for size, name in zip(wanted, names, strict=True)
        ]
        inverse = np.arange(len(rows))
        unfit = np.array([_unfit(p, dataset, sizing) for p in plans], np.int8)
    else:
        plans = [plan_sizes(_pair(size), sizing) for size in unique]
        unfit = np.array([_unfit(p, dataset, sizing) for p in plans], np.int8)
    for name, values in _columns(plans).items():
        at[name][rows] = values[inverse]
    at["unfit"][rows] = unfit[inverse]
    if table.aspects:
        _own_aspects(index, rows, table)
    _place_crops(index, rows, dataset, sizing, seed)


def unique_pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs, sorted, (m, 2), and for each input pair the number of its distinct one, (n,)."""
    codes, inverse = np.unique(first.astype(np.int64) << 32 | second.astype(np.int64), return_inverse=True)
    return np.stack([codes >> 32, codes & 0xFFFFFFFF], 1), inverse.reshape(-1)


def _pair(size: np.ndarray) -> Size:
    return int(size[0]), int(size[1])


def _columns(plans: list[Sizes]) -> dict[str, np.ndarray]:
    target = np.array([p.target for p in plans], np.int32).reshape(-1, 2)
    inter = np.array([p.intermediary for p in plans], np.int32).reshape(-1, 2)
    return {
        "target_width": target[:, 0],
        "target_height": target[:, 1],
        "inter_width": inter[:, 0],
        "inter_height": inter[:, 1],
        "aspect": np.array([p.aspect for p in plans]),
    }


def _own_aspects(index: Index, rows: np.ndarray, table: cap.CaptionTable) -> None:
    """Buckets named by the table instead of by arithmetic."""
    for row in rows:
        given = table.aspects.get(table.key(index.path(row)))
        if given is not None:
            index.numbers["aspect"][row] = given


def _unfit(sizes: Sizes, dataset: ImageDataset, sizing: Sizing) -> int:
    """Reason code of the dataset's own limits, 0 when the picture meets them."""
    if _too_small(sizes.original, dataset, sizing):
        return CODE["resolution_filter"]
    if dataset.minimum_aspect_ratio is not None and sizes.aspect < dataset.minimum_aspect_ratio:
        return CODE["below_min_aspect_ratio"]
    if dataset.maximum_aspect_ratio is not None and sizes.aspect > dataset.maximum_aspect_ratio:
        return CODE["above_max_aspect_ratio"]
    return 0


def _too_small(original: Size, dataset: ImageDataset, sizing: Sizing) -> bool:
    least = dataset.in_unit(dataset.minimum_image_size)
    if least is None:
        return False
    square = dataset.crop and dataset.crop_aspect == "square" and sizing.kind == "area"
    return measure(original, sizing.kind) < least or (square and min(original) < int((least * 1e6) ** 0.5))


def _place_crops(index: Index, rows: np.ndarray, dataset: ImageDataset, sizing: Sizing, seed: int) -> None:
    """Crop offsets, as `resize.crop_offset` gives them, for many rows at once."""
    at = index.numbers
    spare_x = np.maximum(0, at["inter_width"][rows] - at["target_width"][rows])
    spare_y = np.maximum(0, at["inter_height"][rows] - at["target_height"][rows])
    at["top"][rows] = at["left"][rows] = 0
    if dataset.crop_style == "corner":
        return
    if dataset.crop_style != "random":
        at["top"][rows], at["left"][rows] = spare_y // 2, spare_x // 2
        return
    some = np.flatnonzero((spare_x > 0) | (spare_y > 0))  # the others have nothing to draw
    names = index.paths.take(pa.array(rows[some])).to_pylist()
    draws = np.array([stable_draws(seed, dataset.id, name) for name in names]).reshape(-1, 3)
    at["top"][rows[some]] = np.minimum(spare_y[some], (draws[:, 0] * (spare_y[some] + 1)).astype(np.int32))
    at["left"][rows[some]] = np.minimum(spare_x[some], (draws[:, 1] * (spare_x[some] + 1)).astype(np.int32))


def _finish_captions(
    index: Index, dataset: ImageDataset, filters: Sequence[str], seed: int, on_warn: Callable[[str], None] | None
) -> None:
    """Raw captions to the variants that are trained with."""
    rules, skipped = cap.compile_filters(filters)
    for sentence in skipped if on_warn is not None else ():
        on_warn(sentence)  # type: ignore[misc]
    if cap.source_name(dataset) == "instanceprompt":
        index.captions, index.constant = None, cap.variants(dataset.prompts, dataset, rules, seed)
    elif not cap.changes_captions(dataset, rules):
        index.captions = index.raw
    else:
        made = [None if texts is None else cap.variants(texts, dataset, rules, seed) for texts in index.raw.to_pylist()]
        index.captions = pa.array(made, pa.list_(pa.string()))


def sizing_of(
    dataset: ImageDataset,
    *,
    alignment: int,
    rounding: int,
    canvas: int | None = None,
    table: dict[float, Size] | None = None,
) -> Sizing:
    """The size arithmetic that a dataset entry asks for."""
    value = dataset.in_unit(dataset.resolution)
    assert value is not None
    return Sizing(
        kind=dataset.size_kind,
        value=value,
        alignment=alignment,
        rounding=rounding,
        crop=dataset.crop,
        crop_aspect=dataset.crop_aspect,
        crop_style=dataset.crop_style,
        aspects=dataset.crop_aspect_buckets,
        weights=dataset.crop_aspect_weights,
        maximum=dataset.in_unit(dataset.maximum_image_size),
        downsample=dataset.in_unit(dataset.target_downsample_size),
        max_upscale=dataset.max_upscale_threshold,
        canvas=canvas,
        table=table or {},
    )


def empty_report(dataset: ImageDataset, index: Index, removed: dict[str, int], effective: int) -> DataError:
    """The error for a dataset without a usable picture: what was found, what was left out, under which limits."""
    found = [f"{count} {reason}" for reason, count in {**removed, **(index.problems or {})}.items()]
    edge = square_edge(sizing_of(dataset, alignment=8, rounding=2))
    least = dataset.minimum_image_size
    return DataError(
        f"Dataset '{dataset.id}' ({dataset.dataset_type}) has no usable picture.\n"
        f"  Folder: {dataset.instance_data_dir.absolute()}\n"
        f"  Pictures found: {len(index)}; left out: {', '.join(found) or 'none'}.\n"
        f"  Asked for: batch {dataset.train_batch_size}, repeats {dataset.repeats}, effective batch {effective}, "
        f"about {edge}x{edge} pixels ({dataset.resolution_type}), minimum size "
        f"{least if least is not None else 'none'}, "
        f"captions by {cap.source_name(dataset)}.\n"
        "  " + _remedy(len(index), removed)
    )


def _remedy(count: int, removed: dict[str, int]) -> str:
    if count == 0:
        return "Put pictures (.jpg, .png, .webp, ...) into the folder or below it, or correct instance_data_dir."
    first = max(removed, key=lambda reason: removed[reason], default="")
    return {
        "missing caption": "Write a .txt file with the same name beside each picture, or choose another "
        "caption_strategy.",
        "empty caption": "Write something into the caption files, or choose another caption_strategy.",
        "resolution_filter": "Lower minimum_image_size, or bring larger pictures.",
        "insufficient_for_batch": "Lower train_batch_size, raise repeats, or add pictures of the same shape.",
        "not in the table": "Check filename_column and identifier_includes_extension in the parquet block.",
    }.get(first, "Replace the pictures that are left out, or remove the limit that excludes them.")
