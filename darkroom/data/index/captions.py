"""Captions: where they are read from, and how one raw caption becomes the variants that are encoded.

A source answers for many samples at once. The variants are made afterwards: tags shuffled, the instance prompt put in
front, the text cache's filter applied.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from darkroom.core.registry import Table
from darkroom.core.text import split_lines
from darkroom.data.index.metadata import CAPTIONS, SampleTable, stem_of, without_ending
from darkroom.data.threads import in_chunks
from darkroom.options.datasets import CaptionShuffle, SampleDataset
from darkroom.storage.base import Missing, Refused

if TYPE_CHECKING:
    from darkroom.storage.base import Store


@dataclass(frozen=True)
class CaptionRequest:
    """What a source is asked for: the captions of these samples of a dataset."""

    dataset: SampleDataset
    store: Store
    table: SampleTable
    paths: pa.Array  # (n,) string
    texts: pa.Array  # (n,) string: the text files beside them, null where none is known


@dataclass(frozen=True)
class CaptionColumn:
    """The answer: (n,) list<string>, null where there is none, and the reason for it (n,), "" where there is one."""

    captions: pa.Array
    reasons: np.ndarray  # (n,) of str


Source = Callable[[CaptionRequest], CaptionColumn]
SOURCES: Table[Source] = Table("caption source")


def from_text_file(request: CaptionRequest) -> CaptionColumn:
    """The text file beside the sample: a caption per line, or one when lines are not to be split."""
    dataset, store = request.dataset, request.store

    def read_file(pair: tuple[str, str | None]) -> tuple[list[str] | None, str]:
        path, name = pair
        try:
            text = store.read(name or stem_of(path) + dataset.caption_extension).decode("utf-8-sig")
        except Missing:
            return None, "missing caption"
        except UnicodeDecodeError:
            return None, "caption is not UTF-8"
        except (Refused, OSError):
            return None, "unreadable caption"
        lines = [text.strip()] if dataset.disable_multiline_split else [line.strip() for line in split_lines(text)]
        captions = list(dict.fromkeys(line for line in lines if line))
        if dataset.empty_captions and not captions:
            return [""], ""
        return (captions, "") if captions else (None, "empty caption")

    workers = min(dataset.max_workers, store.connections)
    files = list(zip(request.paths.to_pylist(), request.texts.to_pylist(), strict=True))
    pairs = [pair for chunk in in_chunks(read_file, files, workers, store.remote) for pair in chunk]
    return CaptionColumn(pa.array([texts for texts, _ in pairs], CAPTIONS), np.array([why for _, why in pairs], object))


def from_file_name(request: CaptionRequest) -> CaptionColumn:
    """The file's name, underscores as spaces."""
    stems = pc.replace_substring_regex(without_ending(request.paths), "^.*/", "")
    text = pc.utf8_trim_whitespace(pc.replace_substring(stems, "_", " "))
    empty = pc.equal(text, "").to_numpy(zero_copy_only=False)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(len(text) + 1, dtype=np.int32)), text)
    return CaptionColumn(_set_null(lists, empty), np.where(empty, "empty caption", "").astype(object))


def from_instance_prompt(request: CaptionRequest) -> CaptionColumn:
    """The same prompt, or prompts, for every sample."""
    prompts = list(request.dataset.prompts)
    return CaptionColumn(pa.array([prompts] * len(request.paths), CAPTIONS), np.full(len(request.paths), "", object))


def from_table(request: CaptionRequest) -> CaptionColumn:
    """The row of the table; the instance prompt stands in for a missing row."""
    if len(request.paths) == 0 or request.table.captions is None:
        rows = np.full(len(request.paths), -1, np.int64)
        captions = pa.nulls(len(request.paths), CAPTIONS)
    else:
        rows = request.table.rows_of(request.paths)
        captions = request.table.captions.take(pa.array(np.maximum(rows, 0)))
    lengths = pc.fill_null(pc.list_value_length(captions), 0).to_numpy(zero_copy_only=False)
    if request.dataset.empty_captions:
        is_empty = pa.array((rows >= 0) & (lengths == 0))
        captions = pc.if_else(is_empty, pa.array([[""]] * len(rows), CAPTIONS), captions)
        lengths = np.maximum(lengths, 1)
    bad = (rows < 0) | (lengths == 0)
    if request.dataset.prompts and bad.any():
        instead = pa.array([list(request.dataset.prompts)] * len(request.paths), CAPTIONS)
        return CaptionColumn(pc.if_else(pa.array(bad), instead, captions), np.full(len(rows), "", object))
    reasons = np.where(rows < 0, "not in the table", np.where(bad, "empty caption", "")).astype(object)
    return CaptionColumn(_set_null(captions, bad), reasons)


def drop_nuls(column: CaptionColumn) -> CaptionColumn:
    """The same without captions that hold a NUL: no text has one, but UTF-16 and UTF-32 read as UTF-8 do."""
    flat, rows = column.captions.flatten(), pc.list_parent_indices(column.captions)
    bad = np.zeros(len(column.captions), bool)
    bad[rows.filter(pc.match_substring(flat, "\0")).to_numpy(zero_copy_only=False)] = True
    if not bad.any():
        return column
    return CaptionColumn(
        _set_null(column.captions, bad), np.where(bad, "caption is not UTF-8", column.reasons).astype(object)
    )


def _set_null(captions: pa.Array, is_null: np.ndarray) -> pa.Array:
    return pc.if_else(pa.array(is_null), pa.nulls(len(captions), CAPTIONS), captions) if is_null.any() else captions


SOURCES.add("textfile", from_text_file)
SOURCES.add("filename", from_file_name)
SOURCES.add("instanceprompt", from_instance_prompt)
SOURCES.add("parquet", from_table, aliases=("csv", "huggingface", "jsonl"))


def source_name(dataset: SampleDataset) -> str:
    """The source in use: a dataset of only instance prompts reads nothing else, one of controls may have none."""
    return "instanceprompt" if dataset.only_instance_prompt else dataset.caption_strategy or "none"


# ---------------------------------------------------------------------- variants


def variants(
    captions: Sequence[str], dataset: SampleDataset, filters: Sequence[Callable[[str], str]], seed: int
) -> tuple[str, ...]:
    """Every text that one image may be trained with, in a stable order, each once."""
    captions_out: Iterable[str] = captions
    if dataset.caption_shuffle.enable:
        captions_out = [v for caption in captions_out for v in shuffle_caption(caption, dataset.caption_shuffle, seed)]
    if (
        dataset.prepend_instance_prompt
        and not dataset.only_instance_prompt
        and dataset.caption_strategy != "instanceprompt"
    ):
        captions_out = [f"{prompt} {caption}" for caption in captions_out for prompt in dataset.prompts]
    for change in filters:
        captions_out = [change(caption) for caption in captions_out]
    return tuple(dict.fromkeys(captions_out))


def changes_captions(dataset: SampleDataset, filters: Sequence[Callable[[str], str]]) -> bool:
    """Whether `variants` would do anything."""
    return bool(filters) or dataset.caption_shuffle.enable or dataset.prepend_instance_prompt


def shuffle_caption(caption: str, options: CaptionShuffle, seed: int) -> tuple[str, ...]:
    """The caption with its tags in other orders; the first `position_start` tags stay."""
    mark, joint = {"comma": (",", ", "), "space": (" ", " "), "period": (".", ". ")}[options.split_on]
    tags = [tag.strip() for tag in caption.split(mark) if tag.strip()]
    fixed, loose = tags[: options.position_start], tags[options.position_start :]
    if len(loose) <= 1:
        return (caption,)
    shuffles = [caption] if options.include_original else []
    base = (seed if options.seed is None else options.seed) + int(hashlib.md5(caption.encode()).hexdigest(), 16) % 2**32
    for i in range(options.count):
        order = list(loose)
        random.Random(base + i).shuffle(order)
        shuffles.append(joint.join(fixed + order))
    return tuple(dict.fromkeys(shuffles))


def compile_filters(entries: Sequence[str]) -> tuple[list[Callable[[str], str]], list[str]]:
    """The caption filter as functions of one text, and a sentence for each entry that is skipped."""
    filters: list[Callable[[str], str]] = []
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
            filters.append(lambda text, literal=entry: text.replace(literal, ""))  # type: ignore[misc]
            continue
        if search is None:
            filters.append(lambda text, literal=entry, rule=compiled: rule.sub("", text.replace(literal, "")))  # type: ignore[misc]
        else:
            filters.append(lambda text, rule=compiled, to=replace: rule.sub(to, text))  # type: ignore[misc]
    return filters, skipped


def _substitution(entry: str) -> tuple[str | None, str]:
    """`s/a/b` and `s/a/b/` to (a, b); anything else is no substitution."""
    parts = entry.split("/")
    if len(parts) == 3 or (len(parts) == 4 and parts[3] == ""):
        return parts[1], parts[2]
    return None, ""
