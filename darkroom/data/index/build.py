"""Bring a dataset's index up to date: list, read what changed, decide."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from darkroom.core import files
from darkroom.core import log as logs
from darkroom.data.index import captions as cap
from darkroom.data.index import metadata
from darkroom.data.index.assign import assign_sizes
from darkroom.data.index.clips import Clipping, cut_clips
from darkroom.data.index.listing import (
    Listing,
    are_clips,
    choose_samples,
    endings_of,
    list_samples,
    list_table,
    other_endings,
    separate_layers,
    text_of,
    text_paths,
)
from darkroom.data.index.metadata import SampleTable
from darkroom.data.index.probe import Saver, probe_samples
from darkroom.data.index.sizing import sizing_of
from darkroom.data.index.table import (
    CODE,
    DECISIONS,
    FACTS,
    NUMBERS,
    TRANSIENT,
    VERSION,
    Index,
    OnProgress,
    index_file,
    load,
)
from darkroom.data.process_group import SINGLE_PROCESS, ProcessGroup
from darkroom.data.requirements import DataRequirements
from darkroom.data.threads import CHUNK
from darkroom.media.resize import Size, Sizing
from darkroom.options.datasets import SampleDataset
from darkroom.storage.base import Store

log = logs.logger(__name__)


@dataclass(frozen=True)
class IndexTerms:
    """What a survey depends on beside the dataset itself."""

    requirements: DataRequirements
    folder: Path  # of the indexes
    seed: int
    alignment: int
    rounding: int = 2
    filters: Sequence[str] = ()
    sizes_table: dict[float, Size] = field(default_factory=dict)
    process_group: ProcessGroup = SINGLE_PROCESS
    keep_vanished: bool = False  # go on with samples whose files disappeared, from the cache
    save_seconds: float = 3600.0  # between two saves of what a long scan has read
    telling: bool = False  # log the name of every file, and how it finds its bucket


def build_index(
    dataset: SampleDataset,
    store: Store,
    terms: IndexTerms,
    *,
    on_progress: OnProgress | None = None,
    on_warn: Callable[[str], None] | None = None,
) -> Index:
    """The index of a dataset as it is now. Raises DataError, DiskFullError."""
    table = metadata.read(dataset, store) if _has_table(dataset) else SampleTable()
    sizing = sizing_of(
        dataset,
        alignment=terms.alignment,
        rounding=terms.rounding,
        requirements=terms.requirements,
        table=terms.sizes_table,
    )
    clipping = Clipping(dataset.video, terms.requirements) if dataset.video is not None else None
    settings = _settings(dataset, sizing, terms, clipping)
    file = index_file(terms.folder, dataset, store)
    old = load(file, store, settings["version"])
    process_group = terms.process_group
    listing = _agree_on_listing(
        _listing(dataset, store, old, table, terms, on_progress) if process_group.is_first else None,
        file,
        process_group,
    )
    if not _has_table(dataset):  # a list of links knows its files once they are here
        table = table_of(dataset, store)
        if table.captions is not None:
            settings["captions"] = files.digest([settings["captions"], _content_of(table.captions)])
    if not dataset.layers:
        listing.layers = None
    elif listing.layers is None:
        separate_layers(listing)
    left_out = choose_samples(listing, dataset.id, dataset.max_num_samples)
    index = _start(dataset, store, listing, file, settings)
    index.problems, index.left_out = listing.problems, left_out
    index.other_files, index.leaving = other_endings(listing.other_files, dataset.dataset_type), listing.leaving
    stale, stale_text = _reuse(index, old, listing)
    index.numbers["bad"][stale] = CODE["unreadable"]  # until it is read: what is saved meanwhile must say so
    saver = Saver(index, terms.save_seconds) if process_group.size == 1 else None
    probe_samples(index, process_group.share(stale, CHUNK), dataset, table, on_progress, saver)
    _share_columns(index, stale, FACTS, process_group)
    _read_captions(index, process_group.share(stale_text, CHUNK), dataset, table, text_paths(listing))
    _share_captions(index, stale_text, process_group)
    clips = are_clips(index.paths)
    same = old is not None and old.settings.get("decisions") == settings["decisions"] and not clips.any()
    index.numbers["unfit"][clips] = 0
    cut_clips(index, clipping, clips)
    if index.layers is not None:
        index.numbers["count"] += pc.list_value_length(index.layers).to_numpy().astype(np.int32)
    assign_sizes(index, stale if same else np.arange(len(index)), dataset, sizing, (terms.seed, 0), table)
    if terms.telling:
        _tell_buckets(index)
    finish_captions(index, dataset, terms.filters, terms.seed, on_warn)
    fresh = old is None or old.settings != settings or len(stale) > 0 or len(stale_text) > 0
    index.changed = index.changed or fresh
    if process_group.is_first:
        index.save()
    index.changed = False
    process_group.wait()
    return index


def table_of(dataset: SampleDataset, store: Store) -> SampleTable:
    """The table that knows the samples: the storage's own rows, or the one of the parquet block."""
    if _has_table(dataset):
        return metadata.read(dataset, store)
    rows = store.rows()
    return SampleTable() if rows is None else metadata.from_rows(rows)


def _has_table(dataset: SampleDataset) -> bool:
    return dataset.metadata_backend == "parquet" or cap.source_name(dataset) == "parquet"


def _content_of(captions: pa.Array) -> str:
    """A hash that tells whether a storage's own captions changed."""
    sums = hashlib.sha256()
    for part in captions.buffers():
        sums.update(part or b"")
    return sums.hexdigest()


def _tell_buckets(index: Index) -> None:
    """Every sample's way to its bucket, into the log."""
    for row in index.usable.tolist():
        s = index.sizes(row)
        log.info(
            "%s: %s is %dx%d, resized to %dx%d, cropped at %s to %dx%d, bucket %s",
            index.dataset, index.describe_row(row), *s.original, *s.intermediary, index.crop(row), *s.target, s.aspect,
        )  # fmt: skip


def _listing(
    dataset: SampleDataset,
    store: Store,
    old: Index | None,
    table: SampleTable,
    terms: IndexTerms,
    on_progress: OnProgress | None,
) -> Listing:
    """What there is, or what the user asks to believe."""
    if _is_trusted(dataset):
        if old is not None:
            return _as_listing(old)
        if dataset.metadata_backend == "parquet" and table.with_ending:
            return list_table(table)
    listing = list_samples(store, endings_of(dataset.dataset_type), dataset.caption_extension, on_progress)
    return listing.with_those_of(old.paths, old.numbers, old.hashes) if terms.keep_vanished and old else listing


def _agree_on_listing(listing: Listing | None, file: Path, process_group: ProcessGroup) -> Listing:
    """The listing of the first process, in all of them: what is there may change while they look."""
    if process_group.size == 1:
        assert listing is not None
        return listing
    none = pa.table({"paths": pa.array([], pa.string())})
    tables = [none, none] if listing is None else listing.as_tables()
    return Listing.from_tables(
        *(process_group.exchange_tables(file.with_name(f"{file.name}.{i}"), t)[0] for i, t in enumerate(tables))
    )


def _share_columns(index: Index, rows: np.ndarray, names: Iterable[str], process_group: ProcessGroup) -> None:
    """What every process read of `rows`, in all of them."""
    if process_group.size == 1:
        return
    share = process_group.share(rows, CHUNK)
    table = pa.table({"row": share, **{name: index.numbers[name][share] for name in names}})
    for part in process_group.exchange_tables(index.file.with_name(f"{index.file.name}.facts"), table):
        at = part["row"].to_numpy()
        for name in names:
            index.numbers[name][at] = part[name].to_numpy()


def _share_captions(index: Index, rows: np.ndarray, process_group: ProcessGroup) -> None:
    if process_group.size == 1:
        return
    share = process_group.share(rows, CHUNK)
    table = pa.table({"row": share, "bad": index.numbers["caption_bad"][share], "raw": index.raw.take(pa.array(share))})
    captions = pa.concat_tables(
        process_group.exchange_tables(index.file.with_name(f"{index.file.name}.captions"), table)
    )
    at = captions["row"].to_numpy()
    index.numbers["caption_bad"][at] = captions["bad"].to_numpy()
    index.raw = replace_rows(index.raw, at, captions["raw"].combine_chunks())


def replace_rows(column: pa.Array, rows: np.ndarray, values: pa.Array) -> pa.Array:
    """The column with `values` in `rows`."""
    positions = np.arange(len(column))
    positions[rows] = len(column) + np.arange(len(rows))
    return pa.concat_arrays([column, values]).take(pa.array(positions))


def _settings(dataset: SampleDataset, sizing: Sizing, terms: IndexTerms, clipping: Clipping | None) -> dict[str, str]:
    """What the stored columns depend on, as digests that tell whether they still hold."""
    table = _stamp(files.expand_home(dataset.parquet.path)) if dataset.parquet else None
    block = dataset.parquet.model_dump(mode="json") if dataset.parquet else None
    reads = {
        "source": cap.source_name(dataset),
        "ending": dataset.caption_extension,
        "whole": dataset.disable_multiline_split,
        "prompts": dataset.prompts,
        "table": table,
        "block": block,
    }
    decides = {
        "sizing": {**vars(sizing), "table": sorted(sizing.table.items()), "kohya": repr(sizing.kohya)},
        "seed": terms.seed,
        "id": dataset.id,
        "table": table,
        "limits": [
            dataset.minimum_image_size,
            dataset.minimum_aspect_ratio,
            dataset.maximum_aspect_ratio,
            dataset.resolution_type,
        ],
        "clips": [
            dataset.video.model_dump(mode="json") if dataset.video else None,
            _describe_requirements(terms.requirements),
        ]
        if clipping
        else None,
    }
    return {
        "version": str(VERSION),
        "captions": files.digest(reads),
        "decisions": files.digest(decides),
        "sizes": files.digest([dataset.metadata_backend, table, block, dataset.crop_style == "face"]),
    }


def _describe_requirements(requirements: DataRequirements) -> str:
    """As text, under the names that indexes were first written with, so that these still hold."""
    names = {"text_images": "reads", "audio_format": "sound", "requires_control": "wants_control"}
    values = (f"{names.get(name, name)}={value!r}" for name, value in vars(requirements).items())
    return f"Needs({', '.join(values)})"


def _stamp(path: Path) -> list[int]:
    try:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns]
    except (OSError, ValueError):
        return []


def _is_trusted(dataset: SampleDataset) -> bool:
    """Whether the user asked to skip listing the storage."""
    is_preserved = dataset.preserve_data_backend_cache
    wants = is_preserved is True or (isinstance(is_preserved, str) and "image" in is_preserved)
    return wants or dataset.skips("aspect", "metadata")


def _as_listing(old: Index) -> Listing:
    """The stored index as if it had just been listed, text files included."""
    none = np.zeros(0, np.int64)
    texts = pa.array([], pa.string())
    sizes, ages = old.numbers["size"], old.numbers["mtime"]
    return Listing(old.paths, sizes, ages, texts, none, none, stored=True, layers=old.layers)


def _start(dataset: SampleDataset, store: Store, listing: Listing, file: Path, settings: dict[str, str]) -> Index:
    """An index of nothing but names, sizes and ages."""
    count = len(listing)
    numbers = {name: np.zeros(count, kind) for name, kind in NUMBERS.items()}
    numbers["size"], numbers["mtime"] = np.array(listing.size), np.array(listing.mtime)
    empty = pa.array([], pa.list_(pa.string()))
    index = Index(
        dataset.id, store, listing.paths, numbers, np.zeros(count, "S32"), empty, file, settings, listing.layers
    )
    index.area_down, index.convert = dataset.kohya is not None, dataset.converts_colors
    return index


def _reuse(index: Index, old: Index | None, listing: Listing) -> tuple[np.ndarray, np.ndarray]:
    """Take over what an earlier start knew. Returns the rows whose sample, and whose caption, must be read."""
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
    is_matched = match >= 0
    source = np.where(is_matched, match, 0)
    same = (
        is_matched
        & _equal(index, old, source, ("size", "mtime"))
        & (old.settings.get("sizes") == index.settings["sizes"])
    )
    if listing.stored:
        for name in ("caption_size", "caption_mtime"):
            index.numbers[name] = old.numbers[name][source]
    same_text = is_matched & _equal(index, old, source, ("caption_size", "caption_mtime"))
    same_text &= old.settings.get("captions") == index.settings["captions"]
    same &= _lasting(old, source, "bad")
    same_text &= _lasting(old, source, "caption_bad")
    for name in (*FACTS, *DECISIONS):
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
    """Size and age of each sample's text file; -1 when there is none."""
    rows = text_of(listing)
    has_text = rows >= 0
    for name, values in (("caption_size", listing.text_size), ("caption_mtime", listing.text_mtime)):
        column = np.full(len(index), -1, np.int64)
        column[has_text] = values[rows[has_text]]
        index.numbers[name] = column


def _read_captions(index: Index, rows: np.ndarray, dataset: SampleDataset, table: SampleTable, texts: pa.Array) -> None:
    """Raw captions of `rows`. A sample without one is left out and counted. `texts` (n,) names the text files."""
    if len(rows) == 0 or cap.source_name(dataset) in ("instanceprompt", "none"):
        return
    paths = index.paths if len(rows) == len(index) else index.paths.take(pa.array(rows))
    request = cap.CaptionRequest(dataset, index.store, table, paths, texts.take(pa.array(rows)))
    column = cap.drop_nuls(cap.SOURCES[cap.source_name(dataset)](request))
    words, inverse = np.unique(column.reasons, return_inverse=True)
    index.numbers["caption_bad"][rows] = np.array([CODE[word] for word in words], np.int8)[inverse]
    if len(rows) == len(index):
        index.raw = column.captions
        return
    index.raw = replace_rows(index.raw, rows, column.captions)


def finish_captions(
    index: Index, dataset: SampleDataset, filters: Sequence[str], seed: int, on_warn: Callable[[str], None] | None
) -> None:
    """Raw captions to the variants that are trained with."""
    rules, skipped = cap.compile_filters(filters)
    for sentence in skipped if on_warn is not None else ():
        on_warn(sentence)  # type: ignore[misc]
    if cap.source_name(dataset) in ("instanceprompt", "none"):
        prompts = dataset.prompts if dataset.caption_strategy is not None else ("",)
        index.captions, index.constant = None, cap.variants(prompts, dataset, rules, seed)
    elif not cap.changes_captions(dataset, rules):
        index.captions = index.raw
    else:
        variants = [
            None if texts is None else cap.variants(texts, dataset, rules, seed) for texts in index.raw.to_pylist()
        ]
        index.captions = pa.array(variants, pa.list_(pa.string()))
