"""Tables with a row per sample: captions and sizes that stand in Parquet, JSON lines, a list of links or a hub dataset.

Everything stays in columns, so that a million rows cost what their bytes cost.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from darkroom.core.errors import DataError
from darkroom.core.files import expand_home, is_file
from darkroom.core.registry import find_nearest
from darkroom.core.text import split_lines
from darkroom.options.datasets import MetadataTable, SampleDataset
from darkroom.storage.base import Missing, Refused

if TYPE_CHECKING:
    from darkroom.storage.base import Store

CAPTIONS = pa.list_(pa.string())
NUMBERS = {"width": np.int64, "height": np.int64, "frames": np.int64, "fps": np.float64, "aspect": np.float64}
"""Columns that a table may have beside captions; 0 or NaN where a row has none."""

MAX_INT32 = 2**31 - 1
"""A larger size or number of frames is no such thing."""


@dataclass(frozen=True)
class SampleTable:
    """Rows by identifier. Without `with_ending` a sample is looked up by its path less the ending."""

    keys: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    captions: pa.Array | None = None  # (n,) list<string>; an empty list where a row has no caption
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)  # (n,) each
    with_ending: bool = True

    def __len__(self) -> int:
        return len(self.keys)

    def rows_of(self, paths: pa.Array) -> np.ndarray:
        """(m,) int64: the row of each path, or -1."""
        if len(self) == 0:
            return np.full(len(paths), -1, np.int64)
        names = paths if self.with_ending else without_ending(paths)
        positions = pc.index_in(names, self.keys)
        return pc.fill_null(positions, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def without_ending(paths: pa.Array) -> pa.Array:
    """Paths without their last ending: `a.b/c.jpg` to `a.b/c`."""
    return pc.replace_substring_regex(paths, r"\.[^./]*$", "")


def stem_of(path: str) -> str:
    """One path without its last ending."""
    dot = path.rfind(".")
    return path[:dot] if dot > path.rfind("/") else path


def from_rows(rows: pa.Table) -> SampleTable:
    """The table of a store that knows its own rows."""
    names = {name: name for name in NUMBERS if name in rows.column_names}
    numbers = {name: _numbers(_combine_chunks(rows[column]), name) for name, column in names.items()}
    captions = _combine_chunks(rows["captions"]).cast(CAPTIONS) if "captions" in rows.column_names else None
    return SampleTable(_combine_chunks(rows["path"]), captions, numbers)


def read(dataset: SampleDataset, store: Store) -> SampleTable:
    """The table of a dataset's parquet block. Raises DataError naming the dataset, the table and what is wrong."""
    block = dataset.parquet
    assert block is not None
    column_names = _list_columns(dataset, block)
    table = _load(dataset, block, store, column_names)
    _require_column(table.column_names, block.filename_column, dataset, block)
    keys = _identifiers(_combine_chunks(table[block.filename_column]), dataset, block, store)
    captions = None
    if dataset.caption_strategy == "parquet" and not dataset.only_instance_prompt:
        for column in (*block.caption_columns, *filter(None, [block.fallback_caption_column])):
            _require_column(table.column_names, column, dataset, block)
        captions = _captions(table, keys, dataset, block)
    for column in column_names:
        _require_column(table.column_names, column, dataset, block)
    columns = {
        "width": block.width_column,
        "height": block.height_column,
        "frames": block.num_frames_column,
        "fps": block.fps_column,
        "aspect": block.aspect_ratio_column,
    }
    numbers = {
        name: _numbers(_combine_chunks(table[column]), name)
        for name, column in columns.items()
        if column is not None and column in column_names
    }
    return SampleTable(keys, captions, numbers, block.identifier_includes_extension)


def _list_columns(dataset: SampleDataset, block: MetadataTable) -> list[str]:
    """The columns that are read, each once."""
    columns = [block.filename_column]
    if dataset.caption_strategy == "parquet" and not dataset.only_instance_prompt:
        columns += [*block.caption_columns, *filter(None, [block.fallback_caption_column])]
    if dataset.metadata_backend == "parquet":
        columns += [block.width_column, block.height_column]
        columns += filter(None, [block.num_frames_column, block.fps_column] if dataset.video else [])
    if block.aspect_ratio_column:
        columns.append(block.aspect_ratio_column)
    return list(dict.fromkeys(columns))


def _load(dataset: SampleDataset, block: MetadataTable, store: Store, columns: Sequence[str]) -> pa.Table:
    """The wanted columns, from a local path or from the dataset's own storage."""
    try:
        data = _bytes(store, block.path)
        if block.path.lower().endswith(".jsonl"):
            return _from_lines(data.decode("utf-8") if isinstance(data, bytes) else data.read_text(encoding="utf-8"))
        file = pq.ParquetFile(io.BytesIO(data) if isinstance(data, bytes) else data)
        available = file.schema_arrow.names
        table = file.read(columns=list(columns)) if set(columns) <= set(available) else file.read()
        table.validate(full=True)
        return table
    except FileNotFoundError as cause:
        raise DataError(
            f"Dataset '{dataset.id}': the table {block.path} does not exist.\n  Correct 'path' in its parquet block."
        ) from cause
    except (
        OSError,
        ValueError,
        AttributeError,
        TypeError,
        OverflowError,
        RecursionError,
        MemoryError,
        pa.ArrowException,
    ) as cause:
        raise DataError(
            f"Dataset '{dataset.id}': the table {block.path} cannot be read: {str(cause)[:200]}\n"
            "  It must be a Parquet file, or a .jsonl file with one JSON object per line."
        ) from cause


def _bytes(store: Store, path: str) -> bytes | Path:
    """The table as a file of this machine, or its bytes out of the dataset's storage."""
    local = expand_home(path)
    if is_file(local):
        return local
    try:
        return store.read(path)
    except (Missing, Refused) as cause:
        raise FileNotFoundError(str(cause)) from cause


def _from_lines(text: str) -> pa.Table:
    lines = [json.loads(line) for line in split_lines(text) if line.strip()]
    names = list(dict.fromkeys(key for line in lines for key in line))
    return pa.table({name: pa.array([line.get(name) for line in lines]) for name in names})


def _combine_chunks(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _plain(column: pa.Array) -> pa.Array:
    """Texts and lists in Arrow's plain kinds: large ones, views, and those behind a dictionary or of a fixed length."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.dictionary_decode())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _plain(pa.array([], kind.value_type)).type
        return pa.array(column.to_pylist(), pa.list_(inner))
    return column


def _require_column(available: Sequence[str], column: str, dataset: SampleDataset, block: MetadataTable) -> None:
    if column not in available:
        hint = find_nearest(column, available)
        raise DataError(
            f"Dataset '{dataset.id}': the table {block.path} has no column '{column}'; it has "
            f"{', '.join(available) or 'none'}.\n"
            "  Correct the parquet block" + (f"; did you mean {' or '.join(hint)}?" if hint else ".")
        )


def _identifiers(column: pa.Array, dataset: SampleDataset, block: MetadataTable, store: Store) -> pa.Array:
    """Names of samples, relative to the dataset's root, with forward slashes."""
    text = _plain(column)
    if pa.types.is_integer(text.type):
        text = text.cast(pa.string())
    if not pa.types.is_string(text.type):
        raise DataError(
            f"Dataset '{dataset.id}': column '{block.filename_column}' of {block.path} holds {column.type} values.\n"
            "  A name is a text, one for each row; name another filename_column in the parquet block."
        )
    if text.null_count or pc.any(pc.equal(text, "")).as_py():
        raise DataError(
            f"Dataset '{dataset.id}': column '{block.filename_column}' of {block.path} has rows without a name.\n"
            "  Every row needs the name of its picture."
        )
    text = pc.replace_substring(text, "\\", "/")
    for start in (store.name.rstrip("/") + "/", "./"):
        begins = pc.starts_with(text, start)
        text = pc.if_else(begins, pc.utf8_slice_codeunits(text, len(start)), text)
    return text


def _captions(table: pa.Table, keys: pa.Array, dataset: SampleDataset, block: MetadataTable) -> pa.Array:
    """Captions of all caption columns, the fallback column where those are empty; each row a list."""
    lenient = block.fallback_caption_column is not None
    parts = [
        _cells(_combine_chunks(table[column]), column, lenient, dataset, block) for column in block.caption_columns
    ]
    captions = parts[0] if len(parts) == 1 else _join_columns(parts)
    if block.fallback_caption_column:
        column = block.fallback_caption_column
        instead = _cells(_combine_chunks(table[column]), column, lenient, dataset, block)
        captions = pc.if_else(pc.equal(pc.list_value_length(captions), 0), instead, captions)
    empty = np.flatnonzero(pc.equal(pc.list_value_length(captions), 0).to_numpy(zero_copy_only=False))
    if len(empty) and not lenient:
        raise DataError(
            f"Dataset '{dataset.id}': {len(empty)} of {len(captions)} rows of {block.path} have no caption in "
            f"'{', '.join(block.caption_columns)}', for example '{keys[int(empty[0])].as_py()}'.\n"
            "  Fill them, or name a fallback_caption_column in the parquet block."
        )
    return captions


def _cells(column: pa.Array, name: str, lenient: bool, dataset: SampleDataset, block: MetadataTable) -> pa.Array:
    """A column of texts, or of lists of texts, as lists of stripped texts that are not empty, each once."""
    column = _plain(column)
    lists = pa.types.is_list(column.type)
    kind = column.type.value_type if lists else column.type
    texts = pa.types.is_string(kind) or pa.types.is_null(kind)  # lists of nothing
    if not texts:
        raise DataError(
            f"Dataset '{dataset.id}': column '{name}' of {block.path} holds {column.type} values.\n"
            "  A caption cell is a text or a list of texts."
        )
    if not lists:
        text = pc.fill_null(pc.utf8_trim_whitespace(column.cast(pa.string())), "")
        return _as_lists(text)
    flat = column.flatten()
    if flat.null_count and not lenient:
        raise DataError(
            f"Dataset '{dataset.id}': column '{name}' of {block.path} has lists with missing captions.\n"
            "  Fill them, or name a fallback_caption_column in the parquet block."
        )
    cells = [list(dict.fromkeys(s for t in cell or [] if t and (s := t.strip()))) for cell in column.to_pylist()]
    return pa.array(cells, CAPTIONS)


def _as_lists(text: pa.Array) -> pa.Array:
    """Each text as a list of one, an empty one as an empty list."""
    has_text = pc.not_equal(text, "")
    lengths = has_text.cast(pa.int32()).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), text.filter(has_text))


def _join_columns(parts: Sequence[pa.Array]) -> pa.Array:
    rows = zip(*(part.to_pylist() for part in parts), strict=True)
    return pa.array([list(dict.fromkeys(text for cell in row for text in cell)) for row in rows], CAPTIONS)


def _numbers(column: pa.Array, name: str) -> np.ndarray:
    """Numbers, numeric texts, or lists that hold one, as an array; 0 (NaN for floats) where there is none."""
    kind = NUMBERS[name]
    column = _plain(column)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)
    else:
        values = np.array([_number(value) for value in column.to_pylist()], np.float64)
    if kind is np.float64:
        return values
    return np.where((values >= 0) & (values <= MAX_INT32), values, 0).astype(kind)


def _number(value: object) -> float:
    """A number, or the first of a list; NaN for what is none."""
    try:
        return float(cast(str, value[0] if isinstance(value, list) and value else value))
    except (TypeError, ValueError, OverflowError):
        return float("nan")
