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
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from darkroom.core import files
from darkroom.core.errors import DarkroomError, DataError, DiskFullError
from darkroom.core.optional import need
from darkroom.options.datasets.where import HubRows, Panels, RowFilter, UrlFiles
from darkroom.storage.base import Found, Missing, ReadOnly, Refused, Say, Unreachable, ending_of, hashed, wanted, words
from darkroom.storage.parallel import for_all
from darkroom.storage.remote import UrlStore
from darkroom.storage.retry import Retry

if TYPE_CHECKING:
    import pyarrow as pa

KEPT_BYTES = 1 << 30  # of streamed row groups in memory; at least two are kept
THREADS = 8  # that read footers and plain columns side by side
BATCH = 10_000  # rows that are Python objects at the same time
CONVERTED = "refs/convert/parquet"  # where the hub keeps its own Parquet copy of most datasets


class Source(Protocol):
    """Where rows come from. Rows are counted from 0 over all files."""

    columns: list[str]
    count: int

    def table(self, names: Sequence[str]) -> pa.Table:
        """Columns without the media, all rows."""

    def cell(self, row: int) -> Any:
        """The media of a row as it is stored: a struct of bytes and path, bytes, or a path."""

    def marks(self) -> tuple[list[int], list[int]]:
        """Bytes (when streamed, about) and stamp of the media of every row."""


class HubStore(ReadOnly):
    """Samples are rows. Read-only."""

    def __init__(self, where: HubRows, retry: Retry | None = None):
        self.where, self.retry = where, retry
        self.name = f"{where.dataset_name} (split {where.split})"
        self.remote, self.connections = where.streaming, THREADS
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._kept: list[int] | None = None

    def identity(self) -> dict[str, Any]:
        """Everything that decides which rows there are and what is known of them."""
        return self.where.model_dump(mode="json", exclude={"cache_dir"})

    @property
    def source(self) -> Source:
        """The opened dataset. The first call may download it. Raises DataError, Unreachable, MissingPackage."""
        with self._lock:
            if self._source is None:
                with _plain_words(self.where):
                    source = _Streamed(self.where, self.retry) if self.where.streaming else _Loaded(self.where)
                if self.where.media_column not in source.columns:
                    raise self._no_column(self.where.media_column, "image_column, video_column or audio_column", source)
                self._source = source
            return self._source

    # ------------------------------------------------------------------ listing

    def find(self, endings: frozenset[str], say: Say | None = None) -> Found:
        """The rows that `filter_func` keeps. Raises DataError, Unreachable, MissingPackage, DiskFullError."""
        kept = self.kept()
        found = Found([], [], [], folders=1)
        left = self.source.count - len(kept)
        if left:
            found.problems["filter_func"] = left
        if not wanted(self._path(0), endings):
            found.others[ending_of(self._path(0))] = len(kept)
            return found
        sizes, stamps = self.source.marks()
        rows = [(self._path(row), sizes[row], stamps[row]) for row in kept]
        if say is not None:
            say(len(rows), len(rows))
        return Found.of(rows, problems=found.problems, folders=1)

    def kept(self) -> list[int]:
        """Rows that pass the filter, ascending."""
        if self._kept is None:
            rule = self.where.filter_func
            self._kept = list(range(self.source.count)) if rule is None else self._passing(rule)
        return self._kept

    def rows(self) -> pa.Table:
        """Captions and what columns say about sizes. Raises DataError for a column that is not there."""
        import pyarrow as pa

        where, kept = self.where, self.kept()
        columns: dict[str, pa.Array] = {"path": pa.array([self._path(row) for row in kept], pa.string())}
        named = [*where.caption_column, *where.audio_caption_fields]
        named += [name for name in (where.fallback_caption_column, where.description_column) if name]
        there = [name for name in named if self._top(name) in self.source.columns]
        # a name that somebody wrote must exist; the default may not, as captions can come from elsewhere
        asked = set(where.caption_column if "caption_column" in where.model_fields_set else ())
        asked |= {where.fallback_caption_column} if where.fallback_caption_column else set()
        for name in sorted(asked.difference(there)):
            raise self._no_column(name, "caption_column and fallback_caption_column")
        if there:
            captions = [self._captions(row) for row in self._some({self._top(name) for name in there}, kept)]
            columns["captions"] = pa.array(captions, pa.list_(pa.string()))
        for key, option, kind in (
            ("width", "width_column", pa.int32()),
            ("height", "height_column", pa.int32()),
            ("frames", "num_frames_column", pa.int32()),
            ("fps", "fps_column", pa.float64()),
        ):
            name = getattr(where, option)
            if name:
                columns[key] = pa.array(self._numbers(name, option, kept, whole=kind == pa.int32()), kind)
        if where.panels is not None and where.panels.enabled and "width" in columns:
            widths = columns["width"].to_pylist()
            count = where.panels.image_count
            columns["width"] = pa.array([w // count if w is not None else None for w in widths], pa.int32())
        if where.lyrics_column:
            columns["lyrics"] = pa.array(self._lyrics(where.lyrics_column, kept), pa.string())
        return pa.table(columns)

    # ------------------------------------------------------------------ reading

    def read(self, path: str) -> bytes:
        """The media of a row. Raises Missing, Refused, Unreachable."""
        row = self._row(path)
        data = _bytes_of(self._cell(row), path)
        panels = self.where.panels
        return data if panels is None or not panels.enabled else panel(data, panels, path)

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """As `read`: a row's media comes in one piece, unless it is a file of this machine."""
        place = self.local(path)
        if place is None:
            return io.BytesIO(self.read(path))
        try:
            return place.open("rb")
        except FileNotFoundError:
            raise Missing(f"'{path}' ({place}) is not there") from None
        except OSError as cause:
            raise Refused(f"'{path}' ({place}): {cause.strerror or cause}") from None

    def local(self, path: str) -> Path | None:
        """The file, in folders of loose files; None where rows hold bytes, and for panels, which exist nowhere."""
        if self.where.streaming or (self.where.panels is not None and self.where.panels.enabled):
            return None
        cell = self._cell(self._row(path))
        given = cell if isinstance(cell, str) else cell.get("path") if isinstance(cell, dict) else None
        if isinstance(cell, dict) and cell.get("bytes") is not None:
            return None
        return Path(given) if given and os.path.isabs(given) else None  # noqa: PTH117 - asked per sample

    def _cell(self, row: int) -> Any:
        with _plain_words(self.where):
            return self.source.cell(row)

    # ------------------------------------------------------------------ names

    def _path(self, row: int) -> str:
        return f"{row}.{self.where.file_extension.lstrip('.')}"

    def _row(self, path: str) -> int:
        stem, _, ending = path.partition(".")
        if not stem.isdecimal() or ending != self.where.file_extension.lstrip("."):
            raise Missing(f"'{path}' is not a row of {self.name}")
        if int(stem) >= self.source.count:
            raise Missing(f"'{path}' is not there: {self.name} has {self.source.count} rows")
        return int(stem)

    def _top(self, name: str) -> str:
        """The column that holds a dotted name; a column whose own name has a dot goes first."""
        return name if name in self.source.columns else name.partition(".")[0]

    def _no_column(self, name: str, option: str, source: Source | None = None) -> DataError:
        columns = ", ".join((source or self.source).columns)
        return DataError(f"{self.name} has no column '{name}'; it has: {columns}.\n  Correct {option}.")

    # ------------------------------------------------------------------ columns

    def _some(self, names: set[str], kept: Sequence[int]) -> Iterator[dict[str, Any]]:
        """These columns of these rows, as dicts; few at a time."""
        with _plain_words(self.where):
            table = self.source.table(sorted(names))
        everything = len(kept) == len(table)
        for start in range(0, len(kept), BATCH):
            rows = kept[start : start + BATCH]
            part = table.slice(start, len(rows)) if everything else table.take(list(rows))
            yield from part.to_pylist()

    def _captions(self, row: dict[str, Any]) -> list[str]:
        where = self.where
        found = [text for name in where.caption_column for text in _texts(_dig(row, name))]
        if not found and where.audio_caption_fields:
            parts = [text for name in where.audio_caption_fields for text in _texts(_dig(row, name))]
            found = [", ".join(parts)] if parts else []
        for name in (where.fallback_caption_column, where.description_column):
            if not found and name:
                found = _texts(_dig(row, name))
        return found

    def _numbers(self, name: str, option: str, kept: Sequence[int], whole: bool) -> list[Any]:
        if self._top(name) not in self.source.columns:
            raise self._no_column(name, option)
        values = (_number(_dig(row, name)) for row in self._some({self._top(name)}, kept))
        return [None if value is None else int(value) if whole else value for value in values]

    def _lyrics(self, name: str, kept: Sequence[int]) -> list[str | None]:
        if self._top(name) not in self.source.columns:
            name = "norm_lyrics" if "norm_lyrics" in self.source.columns else name
        if self._top(name) not in self.source.columns:
            raise self._no_column(name, "lyrics_column")
        return ["\n".join(_texts(_dig(row, name))) or None for row in self._some({self._top(name)}, kept)]

    def _passing(self, rule: RowFilter) -> list[int]:
        where = self.where
        sides = ((where.width_column or "width", rule.min_width), (where.height_column or "height", rule.min_height))
        needed = {name for name, least in sides if least is not None}
        needed |= {"collection"} if rule.collection else set()
        needed |= {rule.quality_column} if rule.quality_thresholds else set()
        for name in sorted(needed):
            if self._top(name) not in self.source.columns:
                raise self._no_column(name, "filter_func")
        if not needed:
            return list(range(self.source.count))

        def passes(row: dict[str, Any]) -> bool:
            if rule.collection and _dig(row, "collection") not in rule.collection:
                return False
            if any(least is not None and (_number(_dig(row, name)) or 0) < least for name, least in sides):
                return False
            if not rule.quality_thresholds:
                return True
            metrics = _dig(row, rule.quality_column)
            return isinstance(metrics, dict) and all(
                (_number(metrics.get(name)) or 0) >= least for name, least in rule.quality_thresholds.items()
            )

        everything = range(self.source.count)
        rows = self._some({self._top(name) for name in needed}, everything)
        return [number for number, row in zip(everything, rows, strict=True) if passes(row)]


# ---------------------------------------------------------------------- values


def _dig(row: dict[str, Any], name: str) -> Any:
    """A column, or a nested field by its dotted name. Lists are gone through."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, list):
            value = [item.get(part) for item in value if isinstance(item, dict)]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _texts(value: Any) -> list[str]:
    """The texts in a cell that say something: of a list, each is a variant."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    """A number, a numeric text, or a list that holds one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 2**31 else None  # also leaves out infinities, and NaN, which compares false


def _bytes_of(cell: Any, path: str) -> bytes:
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


def panel(data: bytes, panels: Panels, path: str) -> bytes:
    """One panel of a horizontal strip, as PNG, or as TIFF where PNG has no such pixels. Raises Refused for a damaged
    strip.

    Bytes that are no picture at all come back as they are, so that whoever reads them names the reason.
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
            kind, more = "png", {"compress_level": 1}
            if cut.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
                kind, more = "tiff", {}
            if profile := strip.info.get("icc_profile"):
                more |= {"icc_profile": profile}
            out = io.BytesIO()
            cut.save(out, kind, **more)
    except UnidentifiedImageError:
        return data
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        raise Refused(f"'{path}' is damaged: {words(cause)}") from None
    return out.getvalue()


# ---------------------------------------------------------------------- the datasets library


def _library() -> Any:
    return need("datasets", "hub", "A dataset of type huggingface")


def _arguments(where: HubRows) -> dict[str, Any]:
    folder = files.home_of(where.dataset_name)
    path = str(folder.absolute()) if folder.is_dir() else where.dataset_name
    cache = str(where.cache_dir) if where.cache_dir else None
    return {"path": path, "cache_dir": cache, "revision": where.revision}


@contextlib.contextmanager
def _plain_words(where: HubRows) -> Iterator[None]:
    """Turn what `datasets` and the hub's client raise into errors that say what to do."""
    try:
        yield
    except (DarkroomError, Missing, Refused):
        raise
    except Exception as cause:
        number = files.full_disk(cause) or (files.full_disk(cause.__cause__) if cause.__cause__ else None)
        if number is not None:
            place = where.cache_dir or Path.home()
            raise DiskFullError(files.disk_full_message(place, where.dataset_name, number)) from cause
        said = _said(cause, where.dataset_name)
        if said is None:
            raise
        raise said from cause


def _said(cause: Exception, name: str) -> Exception | None:
    """The error that a person can act on, or None when this is a mistake of ours."""
    text, kind = words(cause), type(cause).__name__
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


class _Loaded:
    """A dataset in the library's cache, memory-mapped."""

    def __init__(self, where: HubRows):
        self._rows = _library().load_dataset(**_arguments(where), split=where.split)
        self.columns: list[str] = list(self._rows.column_names)
        self.count = len(self._rows)
        # in this format the library hands out what is stored and decodes nothing
        known = [where.media_column] if where.media_column in self.columns else []
        self._media = self._rows.select_columns(known).with_format("arrow")

    def table(self, names: Sequence[str]) -> pa.Table:
        return self._rows.select_columns(list(names)).with_format("arrow")[:]

    def cell(self, row: int) -> Any:
        return self._media[row].column(0)[0].as_py()

    def marks(self) -> tuple[list[int], list[int]]:
        """Lengths come from the offsets of the column; for loose files, from the files."""
        mark = self._rows._fingerprint  # changes with the source files, stays from start to start
        sizes, stamps = _lengths(self._media[:].column(0)), []
        for row, (size, place) in enumerate(sizes):
            try:
                stat = os.stat(place) if size is None and place else None  # noqa: PTH116 - per sample
            except OSError:
                stat = None  # reading it will say that it is missing
            stamps.append(stat.st_mtime_ns if stat else hashed(mark, row))
            sizes[row] = (stat.st_size if stat else size or 0, place)
        return [size or 0 for size, _ in sizes], stamps


def _lengths(column: Any) -> list[tuple[int | None, str | None]]:
    """(bytes, path) of every cell; only offsets and paths are touched."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    names = [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    nothing: list[Any] = [None] * len(column)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return list(zip(nothing, column.to_pylist(), strict=True))
    if not names:
        binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return list(zip(pc.binary_length(column).to_pylist() if binary else nothing, nothing, strict=True))
    sizes = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist() if "bytes" in names else nothing
    paths = pc.struct_field(column, "path").to_pylist() if "path" in names else nothing
    return list(zip(sizes, paths, strict=True))


# ---------------------------------------------------------------------- streaming


class _Streamed:
    """Parquet files that stay where they are; footers are read at the start, row groups when they are wanted."""

    def __init__(self, where: HubRows, retry: Retry | None):
        self.where, self.retry = where, retry
        self._files = self._parquet_files()
        self._places: dict[str, UrlStore] = {}
        self._lock = threading.Lock()
        self._footers: list[Any] = [None] * len(self._files)
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
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._busy: dict[int, threading.Lock] = {}

    def _parquet_files(self) -> list[str]:
        """The files of the split, as the library finds them. Raises DataError when they are not Parquet."""
        where = self.where
        builder = _library().load_dataset_builder(**_arguments(where))
        splits = {str(name): [str(file) for file in found] for name, found in (builder.config.data_files or {}).items()}
        if splits and where.split not in splits:
            raise DataError(
                f"The dataset '{where.dataset_name}' has no split '{where.split}'; it has: {', '.join(splits)}.\n"
                "  Correct split. While streaming it names a whole split, without a part in brackets."
            )
        found = splits.get(where.split, [])
        if not found or not all(file.endswith(".parquet") for file in found):
            raise DataError(
                f"The dataset '{where.dataset_name}' cannot be streamed: its files are not Parquet, and only Parquet "
                f"files can be read at any row.\n  Turn streaming off; or try revision '{CONVERTED}', where the hub "
                "keeps a Parquet copy of most datasets."
            )
        return found

    def _open(self, number: int) -> BinaryIO:
        url = self._files[number]
        if "://" not in url:
            try:
                return open(url, "rb")
            except OSError as cause:
                raise Refused(f"'{url}': {cause.strerror or cause}") from None
        folder, _, name = url.rpartition("/")
        with self._lock:
            place = self._places.get(folder) or UrlStore(UrlFiles(url=folder), self.retry)
            self._places[folder] = place
        return place.open(name)

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

        parts: list[Any] = [None] * len(self._files)

        def one(number: int) -> None:
            parts[number] = self._read(number, range(self._footers[number].num_row_groups), names)

        for_all(one, range(len(self._files)), THREADS, len(self._files))
        return pa.concat_tables(parts, promote_options="permissive").select(list(names))

    def cell(self, row: int) -> Any:
        place = bisect_right(self._starts, row) - 1
        return self._group(place)[row - self._starts[place]].as_py()

    def _group(self, place: int) -> Any:
        """The media column of a row group. Threads that want the same one wait for the first."""
        with self._lock:
            busy = self._busy.setdefault(place, threading.Lock())
        with busy:
            with self._lock:
                if place in self._kept:
                    self._kept.move_to_end(place)
                    return self._kept[place]
            number, group = self._groups[place]
            column = self._read(number, [group], [self.where.media_column]).column(0)
            with self._lock:
                self._kept[place] = column
                while len(self._kept) > 2 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
                    self._kept.popitem(last=False)
            return column

    def marks(self) -> tuple[list[int], list[int]]:
        """The size is the mean of the row group, as single lengths would have to be fetched with the bytes."""
        sizes: list[int] = []
        stamps: list[int] = []
        for place, (number, group) in enumerate(self._groups):
            footer = self._footers[number].row_group(group)
            chunks = [footer.column(i) for i in range(footer.num_columns)]
            mine = [c for c in chunks if c.path_in_schema.partition(".")[0] == self.where.media_column]
            size = sum(c.total_uncompressed_size for c in mine) // footer.num_rows
            mark = (self._files[number], *self._changed(number), *(c.total_compressed_size for c in mine))
            sizes += [size] * footer.num_rows
            stamps += [hashed(*mark, self._starts[place] + i) for i in range(footer.num_rows)]
        return sizes, stamps

    def _changed(self, number: int) -> tuple[int, ...]:
        """What changes with a local file; the address of a file on the hub holds its commit."""
        url = self._files[number]
        return () if "://" in url else (os.stat(url).st_mtime_ns,)  # noqa: PTH116
