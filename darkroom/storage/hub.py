"""Rows of a Hugging Face dataset, or of a local folder laid out like one, as files named `<row>.<ending>`.

Loaded (the default): the `datasets` library brings everything to its cache once; rows are then read from memory-mapped
files. Streamed: nothing is downloaded whole; single row groups of the Parquet files are fetched when a row of theirs is
read, and a few are kept. That suits reading in order, as caches are filled; a shuffled order fetches a group per row.

Bytes are handed out as they are stored: nothing here decodes them, but for panels, which are cut out.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from darkroom.core import files
from darkroom.core.errors import DarkroomError, DataError, DiskFullError
from darkroom.core.optional import import_optional
from darkroom.options.datasets.locations import HubRows, Panels, RowFilter, UrlFiles
from darkroom.storage.base import (
    FileListing,
    Missing,
    OnProgress,
    ReadOnly,
    Refused,
    Unreachable,
    describe_error,
    ending_of,
    has_ending,
    hash_parts,
)
from darkroom.storage.parallel import for_all
from darkroom.storage.remote import UrlStore
from darkroom.storage.retry import Retry

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import ChunkedArray
    from pyarrow.parquet import FileMetaData

CACHED_BYTES = 1 << 30  # of streamed row groups in memory; at least two are kept
THREADS = 8  # that read footers and plain columns side by side
BATCH = 10_000  # rows that are Python objects at the same time
CONVERTED = "refs/convert/parquet"  # where the hub keeps its own Parquet copy of most datasets


class RowSource(Protocol):
    """Where rows come from. Rows are counted from 0 over all files."""

    columns: list[str]
    count: int

    def table(self, names: Sequence[str]) -> pa.Table:
        """Columns without the media, all rows."""

    def cell(self, row: int) -> object:
        """The media of a row as it is stored: a struct of bytes and path, bytes, or a path."""

    def marks(self) -> tuple[list[int], list[int]]:
        """Bytes (when streamed, about) and stamp of the media of every row."""


class HubStore(ReadOnly):
    """Samples are rows. Read-only."""

    def __init__(self, location: HubRows, retry: Retry | None = None):
        self.location, self.retry = location, retry
        self.name = f"{location.dataset_name} (split {location.split})"
        self.remote, self.connections = location.streaming, THREADS
        self._lock = threading.Lock()
        self._source: RowSource | None = None
        self._row_numbers: list[int] | None = None

    def identity(self) -> dict[str, object]:
        """Everything that decides which rows there are and what is known of them."""
        return self.location.model_dump(mode="json", exclude={"cache_dir"})

    @property
    def source(self) -> RowSource:
        """The opened dataset. The first call may download it. Raises DataError, Unreachable, MissingPackage."""
        with self._lock:
            if self._source is None:
                with _explain_hub_errors(self.location):
                    source = (
                        _StreamedRows(self.location, self.retry)
                        if self.location.streaming
                        else _LoadedRows(self.location)
                    )
                if self.location.media_column not in source.columns:
                    raise self._no_column(
                        self.location.media_column, "image_column, video_column or audio_column", source
                    )
                self._source = source
            return self._source

    # ------------------------------------------------------------------ listing

    def find(self, endings: frozenset[str], on_progress: OnProgress | None = None) -> FileListing:
        """The rows that `filter_func` keeps. Raises DataError, Unreachable, MissingPackage, DiskFullError."""
        row_numbers = self.passing_rows()
        listing = FileListing([], [], [], folders=1)
        left = self.source.count - len(row_numbers)
        if left:
            listing.problems["filter_func"] = left
        if not has_ending(self._path(0), endings):
            listing.other_files[ending_of(self._path(0))] = len(row_numbers)
            return listing
        sizes, stamps = self.source.marks()
        rows = [(self._path(row), sizes[row], stamps[row]) for row in row_numbers]
        if on_progress is not None:
            on_progress(len(rows), len(rows))
        return FileListing.from_rows(rows, problems=listing.problems, folders=1)

    def passing_rows(self) -> list[int]:
        """Rows that pass the filter, ascending."""
        if self._row_numbers is None:
            rule = self.location.filter_func
            self._row_numbers = list(range(self.source.count)) if rule is None else self._find_passing_rows(rule)
        return self._row_numbers

    def rows(self) -> pa.Table:
        """Captions and what columns say about sizes. Raises DataError for a column that is not there."""
        import pyarrow as pa

        location, row_numbers = self.location, self.passing_rows()
        columns: dict[str, pa.Array] = {"path": pa.array([self._path(row) for row in row_numbers], pa.string())}
        named = [*location.caption_column, *location.audio_caption_fields]
        named += [name for name in (location.fallback_caption_column, location.description_column) if name]
        present = [name for name in named if self._top(name) in self.source.columns]
        # a name that somebody wrote must exist; the default may not, as captions can come from elsewhere
        required = set(location.caption_column if "caption_column" in location.model_fields_set else ())
        required |= {location.fallback_caption_column} if location.fallback_caption_column else set()
        for name in sorted(required.difference(present)):
            raise self._no_column(name, "caption_column and fallback_caption_column")
        if present:
            captions = [
                self._captions(row) for row in self._iterate_rows({self._top(name) for name in present}, row_numbers)
            ]
            columns["captions"] = pa.array(captions, pa.list_(pa.string()))
        for key, option, kind in (
            ("width", "width_column", pa.int32()),
            ("height", "height_column", pa.int32()),
            ("frames", "num_frames_column", pa.int32()),
            ("fps", "fps_column", pa.float64()),
        ):
            name = getattr(location, option)
            if name:
                columns[key] = pa.array(self._numbers(name, option, row_numbers, as_integers=kind == pa.int32()), kind)
        if location.panels is not None and location.panels.enabled and "width" in columns:
            widths = columns["width"].to_pylist()
            count = location.panels.image_count
            columns["width"] = pa.array([w // count if w is not None else None for w in widths], pa.int32())
        if location.lyrics_column:
            columns["lyrics"] = pa.array(self._lyrics(location.lyrics_column, row_numbers), pa.string())
        return pa.table(columns)

    # ------------------------------------------------------------------ reading

    def read(self, path: str) -> bytes:
        """The media of a row. Raises Missing, Refused, Unreachable."""
        row = self._row(path)
        data = _bytes_of(self._cell(row), path)
        panels = self.location.panels
        return data if panels is None or not panels.enabled else cut_panel(data, panels, path)

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """As `read`: a row's media comes in one piece, unless it is a file of this machine."""
        local_path = self.local(path)
        if local_path is None:
            return io.BytesIO(self.read(path))
        try:
            return local_path.open("rb")
        except FileNotFoundError:
            raise Missing(f"'{path}' ({local_path}) is not there") from None
        except OSError as cause:
            raise Refused(f"'{path}' ({local_path}): {cause.strerror or cause}") from None

    def local(self, path: str) -> Path | None:
        """The file, in folders of loose files; None where rows hold bytes, and for panels, which exist nowhere."""
        if self.location.streaming or (self.location.panels is not None and self.location.panels.enabled):
            return None
        cell = self._cell(self._row(path))
        file_name = cell if isinstance(cell, str) else cell.get("path") if isinstance(cell, dict) else None
        if isinstance(cell, dict) and cell.get("bytes") is not None:
            return None
        return Path(file_name) if file_name and os.path.isabs(file_name) else None  # noqa: PTH117 - asked per sample

    def _cell(self, row: int) -> object:
        with _explain_hub_errors(self.location):
            return self.source.cell(row)

    # ------------------------------------------------------------------ names

    def _path(self, row: int) -> str:
        return f"{row}.{self.location.file_extension.lstrip('.')}"

    def _row(self, path: str) -> int:
        stem, _, ending = path.partition(".")
        if not stem.isdecimal() or ending != self.location.file_extension.lstrip("."):
            raise Missing(f"'{path}' is not a row of {self.name}")
        if int(stem) >= self.source.count:
            raise Missing(f"'{path}' is not there: {self.name} has {self.source.count} rows")
        return int(stem)

    def _top(self, name: str) -> str:
        """The column that holds a dotted name; a column whose own name has a dot goes first."""
        return name if name in self.source.columns else name.partition(".")[0]

    def _no_column(self, name: str, option: str, source: RowSource | None = None) -> DataError:
        columns = ", ".join((source or self.source).columns)
        return DataError(f"{self.name} has no column '{name}'; it has: {columns}.\n  Correct {option}.")

    # ------------------------------------------------------------------ columns

    def _iterate_rows(self, names: set[str], row_numbers: Sequence[int]) -> Iterator[dict[str, object]]:
        """These columns of these rows, as dicts; few at a time."""
        with _explain_hub_errors(self.location):
            table = self.source.table(sorted(names))
        everything = len(row_numbers) == len(table)
        for start in range(0, len(row_numbers), BATCH):
            rows = row_numbers[start : start + BATCH]
            part = table.slice(start, len(rows)) if everything else table.take(list(rows))
            yield from part.to_pylist()

    def _captions(self, row: dict[str, object]) -> list[str]:
        location = self.location
        captions = [text for name in location.caption_column for text in _texts(_get_nested(row, name))]
        if not captions and location.audio_caption_fields:
            parts = [text for name in location.audio_caption_fields for text in _texts(_get_nested(row, name))]
            captions = [", ".join(parts)] if parts else []
        for name in (location.fallback_caption_column, location.description_column):
            if not captions and name:
                captions = _texts(_get_nested(row, name))
        return captions

    def _numbers(self, name: str, option: str, row_numbers: Sequence[int], as_integers: bool) -> list[object]:
        if self._top(name) not in self.source.columns:
            raise self._no_column(name, option)
        values = (_number(_get_nested(row, name)) for row in self._iterate_rows({self._top(name)}, row_numbers))
        return [None if value is None else int(value) if as_integers else value for value in values]

    def _lyrics(self, name: str, row_numbers: Sequence[int]) -> list[str | None]:
        if self._top(name) not in self.source.columns:
            name = "norm_lyrics" if "norm_lyrics" in self.source.columns else name
        if self._top(name) not in self.source.columns:
            raise self._no_column(name, "lyrics_column")
        return [
            "\n".join(_texts(_get_nested(row, name))) or None
            for row in self._iterate_rows({self._top(name)}, row_numbers)
        ]

    def _find_passing_rows(self, rule: RowFilter) -> list[int]:
        location = self.location
        sides = (
            (location.width_column or "width", rule.min_width),
            (location.height_column or "height", rule.min_height),
        )
        columns = {name for name, minimum in sides if minimum is not None}
        columns |= {"collection"} if rule.collection else set()
        columns |= {rule.quality_column} if rule.quality_thresholds else set()
        for name in sorted(columns):
            if self._top(name) not in self.source.columns:
                raise self._no_column(name, "filter_func")
        if not columns:
            return list(range(self.source.count))

        def passes(row: dict[str, object]) -> bool:
            if rule.collection and _get_nested(row, "collection") not in rule.collection:
                return False
            if any(least is not None and (_number(_get_nested(row, name)) or 0) < least for name, least in sides):
                return False
            if not rule.quality_thresholds:
                return True
            metrics = _get_nested(row, rule.quality_column)
            return isinstance(metrics, dict) and all(
                (_number(metrics.get(name)) or 0) >= least for name, least in rule.quality_thresholds.items()
            )

        everything = range(self.source.count)
        rows = self._iterate_rows({self._top(name) for name in columns}, everything)
        return [number for number, row in zip(everything, rows, strict=True) if passes(row)]


# ---------------------------------------------------------------------- values


def _get_nested(row: dict[str, object], name: str) -> object:
    """A column, or a nested field by its dotted name. Lists are gone through."""
    if name in row:
        return row[name]
    value: object = row
    for part in name.split("."):
        if isinstance(value, list):
            value = [item.get(part) for item in value if isinstance(item, dict)]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _texts(value: object) -> list[str]:
    """The texts in a cell that say something: of a list, each is a variant."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []


def _number(value: object) -> float | None:
    """A number, a numeric text, or a list that holds one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    try:
        number = float(cast(str, value))
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 2**31 else None  # also leaves out infinities, and NaN, which compares false


def _bytes_of(cell: object, path: str) -> bytes:
    if isinstance(cell, dict) and cell.get("bytes") is not None:
        cell = cell["bytes"]
    elif isinstance(cell, dict):
        cell = cell.get("path")
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return bytes(cell)
    if not isinstance(cell, str) or not cell:
        raise Missing(f"'{path}' is an empty cell")
    if "://" in cell:
        raise Refused(f"'{path}' holds a link, not the file; a table of links can be read with type csv")
    try:
        return Path(cell).read_bytes()
    except FileNotFoundError:
        raise Missing(f"'{path}' ({cell}) is not there") from None
    except OSError as cause:
        raise Refused(f"'{path}' ({cell}): {cause.strerror or cause}") from None


def cut_panel(data: bytes, panels: Panels, path: str) -> bytes:
    """One panel of a horizontal strip, as PNG, or as TIFF where PNG has no such pixels. Raises Refused for a damaged
    strip.

    Bytes that are no image at all come back as they are, so that whoever reads them names the reason.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as strip:
            # upright first: panels lie side by side as a person sees the strip
            upright = ImageOps.exif_transpose(strip)
            width = upright.width // panels.image_count
            left = width * panels.select_index
            if width == 0 or left + width > upright.width:
                raise Refused(
                    f"'{path}' is {upright.width} pixels wide, which holds no panel {panels.select_index} of "
                    f"{panels.image_count}"
                )
            cut = upright.crop((left, 0, left + width, upright.height))
            kind, save_options = "png", {"compress_level": 1}
            if cut.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
                kind, save_options = "tiff", {}
            if profile := strip.info.get("icc_profile"):
                save_options |= {"icc_profile": profile}
            out = io.BytesIO()
            cut.save(out, kind, **save_options)
    except UnidentifiedImageError:
        return data
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        raise Refused(f"'{path}' is damaged: {describe_error(cause)}") from None
    return out.getvalue()


# ---------------------------------------------------------------------- the datasets library


def _library() -> ModuleType:
    return import_optional("datasets", "hub", "A dataset of type huggingface")


def _arguments(location: HubRows) -> dict[str, object]:
    folder = files.expand_home(location.dataset_name)
    path = str(folder.absolute()) if folder.is_dir() else location.dataset_name
    cache = str(location.cache_dir) if location.cache_dir else None
    return {"path": path, "cache_dir": cache, "revision": location.revision}


@contextlib.contextmanager
def _explain_hub_errors(location: HubRows) -> Iterator[None]:
    """Turn what `datasets` and the hub's client raise into errors that say what to do."""
    try:
        yield
    except (DarkroomError, Missing, Refused):
        raise
    except Exception as cause:
        number = files.disk_full_errno(cause) or (files.disk_full_errno(cause.__cause__) if cause.__cause__ else None)
        if number is not None:
            folder = location.cache_dir or Path.home()
            raise DiskFullError(files.disk_full_message(folder, location.dataset_name, number)) from cause
        explained = _explain_error(cause, location.dataset_name)
        if explained is None:
            raise
        raise explained from cause


def _explain_error(cause: Exception, name: str) -> Exception | None:
    """The error that a person can act on, or None when this is a mistake of ours."""
    text, kind = describe_error(cause), type(cause).__name__
    if "Gated" in kind or "gated" in text:
        return DataError(
            f"The dataset '{name}' is only given to people who accepted its terms.\n"
            "  Accept them on its page of the hub, and set HF_TOKEN or log in with `hf auth login`."
        )
    if kind == "OfflineModeIsEnabled" or isinstance(cause, ConnectionError):
        remedy = "Check the network; or download it first where there is one, and keep its cache_dir."
        if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE"):
            remedy = "Offline mode is on and it is not in the cache: unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE."
        return Unreachable(f"The Hugging Face hub, asked for '{name}',", 1, 0, text, remedy)
    if isinstance(cause, FileNotFoundError) or kind == "DatasetNotFoundError":
        return DataError(
            f"There is no dataset '{name}' on the Hugging Face hub, and no folder of that name with data: {text}\n"
            "  Correct dataset_name or revision; for a private dataset set HF_TOKEN."
        )
    if isinstance(cause, (ValueError, RuntimeError, OSError)) or type(cause).__module__.startswith("datasets"):
        return DataError(f"The dataset '{name}' cannot be loaded: {text}\n  Correct dataset_name, split or revision.")
    return None


class _LoadedRows:
    """A dataset in the library's cache, memory-mapped."""

    def __init__(self, location: HubRows):
        self._rows = _library().load_dataset(**_arguments(location), split=location.split)
        self.columns: list[str] = list(self._rows.column_names)
        self.count = len(self._rows)
        # in this format the library hands out what is stored and decodes nothing
        media_columns = [location.media_column] if location.media_column in self.columns else []
        self._media = self._rows.select_columns(media_columns).with_format("arrow")

    def table(self, names: Sequence[str]) -> pa.Table:
        return self._rows.select_columns(list(names)).with_format("arrow")[:]

    def cell(self, row: int) -> object:
        return self._media[row].column(0)[0].as_py()

    def marks(self) -> tuple[list[int], list[int]]:
        """Lengths come from the offsets of the column; for loose files, from the files."""
        mark = self._rows._fingerprint  # changes with the source files, stays from start to start
        sizes, stamps = _lengths(self._media[:].column(0)), []
        for row, (size, path) in enumerate(sizes):
            try:
                stat = os.stat(path) if size is None and path else None  # noqa: PTH116 - per sample
            except OSError:
                stat = None  # reading it will say that it is missing
            stamps.append(stat.st_mtime_ns if stat else hash_parts(mark, row))
            sizes[row] = (stat.st_size if stat else size or 0, path)
        return [size or 0 for size, _ in sizes], stamps


def _lengths(column: ChunkedArray) -> list[tuple[int | None, str | None]]:
    """(bytes, path) of every cell; only offsets and paths are touched."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    names = [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    nothing: list[None] = [None] * len(column)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return list(zip(nothing, column.to_pylist(), strict=True))
    if not names:
        binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return list(zip(pc.binary_length(column).to_pylist() if binary else nothing, nothing, strict=True))
    sizes = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist() if "bytes" in names else nothing
    paths = pc.struct_field(column, "path").to_pylist() if "path" in names else nothing
    return list(zip(sizes, paths, strict=True))


# ---------------------------------------------------------------------- streaming


class _StreamedRows:
    """Parquet files that stay where they are; footers are read at the start, row groups when they are wanted."""

    def __init__(self, location: HubRows, retry: Retry | None):
        self.location, self.retry = location, retry
        self._files = self._parquet_files()
        self._places: dict[str, UrlStore] = {}
        self._lock = threading.Lock()
        self._footers = cast("list[FileMetaData]", [None] * len(self._files))  # read below
        for_all(self._footer, range(len(self._files)), THREADS, len(self._files))
        self.columns: list[str] = list(self._footers[0].schema.to_arrow_schema().names)
        self._groups: list[tuple[int, int]] = []  # (file, group in it)
        self._starts: list[int] = []  # first row of each group
        self.count = 0
        for number, footer in enumerate(self._footers):
            for group in range(footer.num_row_groups):
                if footer.row_group(group).num_rows:
                    self._groups.append((number, group))
                    self._starts.append(self.count)
                    self.count += footer.row_group(group).num_rows
        self._groups_cache: OrderedDict[int, ChunkedArray] = OrderedDict()
        self._busy: dict[int, threading.Lock] = {}

    def _parquet_files(self) -> list[str]:
        """The files of the split, as the library finds them. Raises DataError when they are not Parquet."""
        location = self.location
        builder = _library().load_dataset_builder(**_arguments(location))
        splits = {str(name): [str(file) for file in files] for name, files in (builder.config.data_files or {}).items()}
        if splits and location.split not in splits:
            raise DataError(
                f"The dataset '{location.dataset_name}' has no split '{location.split}'; "
                f"it has: {', '.join(splits)}.\n"
                "  Correct split. While streaming it names a whole split, without a part in brackets."
            )
        files = splits.get(location.split, [])
        if not files or not all(file.endswith(".parquet") for file in files):
            raise DataError(
                f"The dataset '{location.dataset_name}' cannot be streamed: its files are not Parquet, and only "
                "Parquet "
                f"files can be read at any row.\n  Turn streaming off; or try revision '{CONVERTED}', where the hub "
                "keeps a Parquet copy of most datasets."
            )
        return files

    def _open(self, number: int) -> BinaryIO:
        url = self._files[number]
        if "://" not in url:
            try:
                return open(url, "rb")
            except OSError as cause:
                raise Refused(f"'{url}': {cause.strerror or cause}") from None
        folder, _, name = url.rpartition("/")
        with self._lock:
            store = self._places.get(folder) or UrlStore(UrlFiles(url=folder), self.retry)
            self._places[folder] = store
        return store.open(name)

    def _footer(self, number: int) -> None:
        import pyarrow.parquet as pq

        with self._open(number) as file:
            self._footers[number] = pq.read_metadata(file)

    def _read(self, number: int, groups: Sequence[int], names: Sequence[str]) -> pa.Table:
        import pyarrow.parquet as pq

        with self._open(number) as file:
            parquet = pq.ParquetFile(file, metadata=self._footers[number], pre_buffer=True)
            return parquet.read_row_groups(list(groups), columns=list(names), use_threads=False)

    def table(self, names: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        parts: list[pa.Table | None] = [None] * len(self._files)

        def read_file(number: int) -> None:
            parts[number] = self._read(number, range(self._footers[number].num_row_groups), names)

        for_all(read_file, range(len(self._files)), THREADS, len(self._files))
        return pa.concat_tables(parts, promote_options="permissive").select(list(names))

    def cell(self, row: int) -> object:
        group_number = bisect_right(self._starts, row) - 1
        return self._group(group_number)[row - self._starts[group_number]].as_py()

    def _group(self, group_number: int) -> ChunkedArray:
        """The media column of a row group. Threads that want the same one wait for the first."""
        with self._lock:
            busy = self._busy.setdefault(group_number, threading.Lock())
        with busy:
            with self._lock:
                if group_number in self._groups_cache:
                    self._groups_cache.move_to_end(group_number)
                    return self._groups_cache[group_number]
            number, group = self._groups[group_number]
            column = self._read(number, [group], [self.location.media_column]).column(0)
            with self._lock:
                self._groups_cache[group_number] = column
                while (
                    len(self._groups_cache) > 2
                    and sum(column_data.nbytes for column_data in self._groups_cache.values()) > CACHED_BYTES
                ):
                    self._groups_cache.popitem(last=False)
            return column

    def marks(self) -> tuple[list[int], list[int]]:
        """The size is the mean of the row group, as single lengths would have to be fetched with the bytes."""
        sizes: list[int] = []
        stamps: list[int] = []
        for group_number, (number, group) in enumerate(self._groups):
            footer = self._footers[number].row_group(group)
            chunks = [footer.column(i) for i in range(footer.num_columns)]
            media_chunks = [c for c in chunks if c.path_in_schema.partition(".")[0] == self.location.media_column]
            size = sum(c.total_uncompressed_size for c in media_chunks) // footer.num_rows
            mark = (self._files[number], *self._file_stamp(number), *(c.total_compressed_size for c in media_chunks))
            sizes += [size] * footer.num_rows
            stamps += [hash_parts(*mark, self._starts[group_number] + i) for i in range(footer.num_rows)]
        return sizes, stamps

    def _file_stamp(self, number: int) -> tuple[int, ...]:
        """What changes with a local file; the address of a file on the hub holds its commit."""
        url = self._files[number]
        return () if "://" in url else (os.stat(url).st_mtime_ns,)  # noqa: PTH116
