"""Captions: where they are read from, and how one raw caption becomes the variants that are encoded.

A source is a function of (dataset, table, relative path) that returns the raw captions of one picture, or raises
BadCaption.
The variants are made afterwards: tags shuffled, the instance prompt put in front, the text cache's filter applied.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from darkroom.core.errors import DataError
from darkroom.core.registry import Table, nearest
from darkroom.options.dataset import CaptionShuffle, ImageDataset, ParquetTable


class BadCaption(Exception):
    """A picture without a usable caption; `reason` is a short, countable phrase."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail
        super().__init__(reason)


@dataclass(frozen=True)
class CaptionTable:
    """A captions table in memory: identifier to raw captions and, where the table has them, (width, height)."""

    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    aspects: dict[str, float] = field(default_factory=dict)
    with_ending: bool = False

    def key(self, path: str) -> str:
        """The identifier under which a picture is looked up."""
        return path if self.with_ending else str(PurePosixPath(path).with_suffix(""))


Source = Callable[[ImageDataset, CaptionTable, str], tuple[str, ...]]
SOURCES: Table[Source] = Table("caption source")


def from_text_file(dataset: ImageDataset, table: CaptionTable, path: str) -> tuple[str, ...]:
    """The `.txt` file beside the picture: a caption per line, or one when lines are not to be split."""
    try:
        text = (dataset.instance_data_dir / path).with_suffix(".txt").read_bytes().decode("utf-8-sig")
    except FileNotFoundError as cause:
        raise BadCaption("missing caption") from cause
    except UnicodeDecodeError as cause:
        raise BadCaption("caption is not UTF-8", str(cause)) from cause
    except OSError as cause:
        raise BadCaption("unreadable caption", str(cause)) from cause
    lines = [text.strip()] if dataset.disable_multiline_split else [line.strip() for line in text.splitlines()]
    return _some(lines)


def from_file_name(dataset: ImageDataset, table: CaptionTable, path: str) -> tuple[str, ...]:
    """The file's name, underscores as spaces."""
    return _some([PurePosixPath(path).stem.replace("_", " ").strip()])


def from_instance_prompt(dataset: ImageDataset, table: CaptionTable, path: str) -> tuple[str, ...]:
    """The same prompt, or prompts, for every picture."""
    return dataset.prompts


def from_table(dataset: ImageDataset, table: CaptionTable, path: str) -> tuple[str, ...]:
    """The row of the captions table; the instance prompt stands in for a missing row."""
    found = table.captions.get(table.key(path))
    if found:
        return found
    if dataset.prompts:
        return dataset.prompts
    raise BadCaption("not in the table" if found is None else "empty caption")


def _some(captions: Iterable[str]) -> tuple[str, ...]:
    kept = tuple(dict.fromkeys(c for c in captions if c))
    if not kept:
        raise BadCaption("empty caption")
    return kept


SOURCES.add("textfile", from_text_file)
SOURCES.add("filename", from_file_name)
SOURCES.add("instanceprompt", from_instance_prompt)
SOURCES.add("parquet", from_table)


def source_name(dataset: ImageDataset) -> str:
    """The source in use: a dataset of only instance prompts reads nothing else."""
    return "instanceprompt" if dataset.only_instance_prompt else dataset.caption_strategy


# ---------------------------------------------------------------------- variants


def variants(
    captions: Sequence[str], dataset: ImageDataset, filters: Sequence[Callable[[str], str]], seed: int
) -> tuple[str, ...]:
    """Every text that one picture may be trained with, in a stable order, each once."""
    made: Iterable[str] = captions
    if dataset.caption_shuffle.enable:
        made = [v for caption in made for v in shuffled(caption, dataset.caption_shuffle, seed)]
    if (
        dataset.prepend_instance_prompt
        and not dataset.only_instance_prompt
        and dataset.caption_strategy != "instanceprompt"
    ):
        made = [f"{prompt} {caption}" for caption in made for prompt in dataset.prompts]
    for change in filters:
        made = [change(caption) for caption in made]
    return tuple(dict.fromkeys(made))


def changes_captions(dataset: ImageDataset, filters: Sequence[Callable[[str], str]]) -> bool:
    """Whether `variants` would do anything."""
    return bool(filters) or dataset.caption_shuffle.enable or dataset.prepend_instance_prompt


def shuffled(caption: str, options: CaptionShuffle, seed: int) -> tuple[str, ...]:
    """The caption with its tags in other orders; the first `position_start` tags stay."""
    mark, joint = {"comma": (",", ", "), "space": (" ", " "), "period": (".", ". ")}[options.split_on]
    tags = [tag.strip() for tag in caption.split(mark) if tag.strip()]
    fixed, loose = tags[: options.position_start], tags[options.position_start :]
    if len(loose) <= 1:
        return (caption,)
    made = [caption] if options.include_original else []
    base = (seed if options.seed is None else options.seed) + int(hashlib.md5(caption.encode()).hexdigest(), 16) % 2**32
    for i in range(options.count):
        order = list(loose)
        random.Random(base + i).shuffle(order)
        made.append(joint.join(fixed + order))
    return tuple(dict.fromkeys(made))


def compile_filters(entries: Sequence[str]) -> tuple[list[Callable[[str], str]], list[str]]:
    """The caption filter as functions of one text, and a sentence for each entry that is skipped."""
    made: list[Callable[[str], str]] = []
    skipped: list[str] = []
    for entry in entries:
        if not entry:
            continue
        search, replace = _substitution(entry) if entry.startswith("s/") else (None, "")
        pattern = entry if search is None else search
        try:
            compiled = re.compile(pattern)
        except re.error as cause:
            skipped.append(
                f"'{entry}' is not a valid regular expression ({cause}); it is removed where it stands literally."
            )
            made.append(lambda text, literal=entry: text.replace(literal, ""))  # type: ignore[misc]
            continue
        if search is None:
            made.append(lambda text, literal=entry, rule=compiled: rule.sub("", text.replace(literal, "")))  # type: ignore[misc]
        else:
            made.append(lambda text, rule=compiled, to=replace: rule.sub(to, text))  # type: ignore[misc]
    return made, skipped


def _substitution(entry: str) -> tuple[str | None, str]:
    """`s/a/b` and `s/a/b/` to (a, b); anything else is no substitution."""
    parts = entry.split("/")
    if len(parts) == 3 or (len(parts) == 4 and parts[3] == ""):
        return parts[1], parts[2]
    return None, ""


# ---------------------------------------------------------------------- tables


def read_table(dataset: ImageDataset) -> CaptionTable:
    """The captions table of a dataset. Raises DataError naming the dataset, the table and what is wrong."""
    block = dataset.parquet
    assert block is not None
    rows = _rows(block.path, dataset.id)
    _need(rows, block.filename_column, dataset, block.path)
    names = [_identifier(value, block, dataset) for value in rows[block.filename_column]]
    wants_captions = source_name(dataset) == "parquet"
    captions = _captions(rows, names, block, dataset) if wants_captions else {}
    sizes = _sizes(rows, names, block, dataset) if dataset.metadata_backend == "parquet" else {}
    aspects: dict[str, float] = {}
    if block.aspect_ratio_column:
        _need(rows, block.aspect_ratio_column, dataset, block.path)
        aspects = {n: float(v) for n, v in zip(names, rows[block.aspect_ratio_column], strict=True) if v}
    return CaptionTable(captions, sizes, aspects, block.identifier_includes_extension)


def _rows(path: Path, dataset: str) -> dict[str, list[Any]]:
    """A `.parquet` or `.jsonl` table as columns of Python values."""
    try:
        if path.suffix.lower() == ".jsonl":
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            names = list(dict.fromkeys(key for line in lines for key in line))
            return {name: [line.get(name) for line in lines] for name in names}
        return pq.read_table(path).to_pydict()
    except FileNotFoundError as cause:
        raise DataError(
            f"Dataset '{dataset}': the table {path} does not exist.\n  Correct 'path' in its parquet block."
        ) from cause
    except (OSError, ValueError, AttributeError, TypeError, pa.ArrowException) as cause:
        raise DataError(
            f"Dataset '{dataset}': the table {path} cannot be read: {str(cause)[:200]}\n"
            "  It must be a Parquet file, or a .jsonl file with one JSON object per line."
        ) from cause


def _need(rows: dict[str, list[Any]], column: str, dataset: ImageDataset, path: Path) -> None:
    if column not in rows:
        hint = nearest(column, rows)
        raise DataError(
            f"Dataset '{dataset.id}': the table {path} has no column '{column}'; it has {', '.join(rows) or 'none'}.\n"
            "  Correct the parquet block" + (f"; did you mean {' or '.join(hint)}?" if hint else ".")
        )


def _identifier(value: Any, block: ParquetTable, dataset: ImageDataset) -> str:
    if value is None or str(value) == "":
        raise DataError(
            f"Dataset '{dataset.id}': column '{block.filename_column}' of {block.path} has rows without a name.\n"
            "  Every row needs the name of its picture."
        )
    text = str(value).replace("\\", "/")
    root = dataset.instance_data_dir.as_posix().rstrip("/") + "/"
    return text.removeprefix(root).removeprefix("./")


def _captions(
    rows: dict[str, list[Any]], names: list[str], block: ParquetTable, dataset: ImageDataset
) -> dict[str, tuple[str, ...]]:
    """Identifier to captions of all caption columns, the fallback column where those are empty."""
    columns = [*block.caption_columns, *([block.fallback_caption_column] if block.fallback_caption_column else [])]
    for column in columns:
        _need(rows, column, dataset, block.path)
    found: dict[str, tuple[str, ...]] = {}
    for i, name in enumerate(names):
        texts = [text for column in block.caption_columns for text in _cell(rows[column][i], column, block, dataset)]
        if not texts and block.fallback_caption_column:
            texts = _cell(rows[block.fallback_caption_column][i], block.fallback_caption_column, block, dataset)
        found[name] = tuple(dict.fromkeys(texts))
    empty = [name for name, texts in found.items() if not texts]
    if empty and not block.fallback_caption_column:
        raise DataError(
            f"Dataset '{dataset.id}': {len(empty)} of {len(found)} rows of {block.path} have no caption in "
            f"'{', '.join(block.caption_columns)}', for example '{empty[0]}'.\n"
            "  Fill them, or name a fallback_caption_column in the parquet block."
        )
    return found


def _cell(value: Any, column: str, block: ParquetTable, dataset: ImageDataset) -> list[str]:
    """The captions in one cell: a text, or a list of texts."""
    if value is None:
        return []
    items = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else None
    if items is None or any(not isinstance(item, (str, type(None))) for item in items):
        raise DataError(
            f"Dataset '{dataset.id}': column '{column}' of {block.path} holds {type(value).__name__} values.\n"
            "  A caption cell is a text or a list of texts."
        )
    if None in items and not block.fallback_caption_column:
        raise DataError(
            f"Dataset '{dataset.id}': column '{column}' of {block.path} has lists with missing captions.\n"
            "  Fill them, or name a fallback_caption_column in the parquet block."
        )
    return [item.strip() for item in items if item and item.strip()]


def _sizes(
    rows: dict[str, list[Any]], names: list[str], block: ParquetTable, dataset: ImageDataset
) -> dict[str, tuple[int, int]]:
    for column in (block.width_column, block.height_column):
        _need(rows, column, dataset, block.path)
    found = {}
    for name, width, height in zip(names, rows[block.width_column], rows[block.height_column], strict=True):
        try:
            found[name] = (_pixels(width), _pixels(height))
        except (TypeError, ValueError, IndexError):
            continue  # the picture is then reported as 'not in the table'
    return found


def _pixels(value: Any) -> int:
    number = int(float(value[0] if isinstance(value, (list, tuple)) else value))
    if number < 1:
        raise ValueError("a picture has at least one pixel")
    return number
