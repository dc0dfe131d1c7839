"""What goes with a sample: references, control images and masks out of other datasets, found by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow.compute as pc

from darkroom.data.index.listing import are_clips
from darkroom.data.index.metadata import without_ending
from darkroom.data.index.table import CODE, Index
from darkroom.options.datasets import SampleDataset

COPIED = ("target_width", "target_height", "inter_width", "inter_height", "top", "left", "aspect", "start")
"""Decisions that a pixel-aligned companion takes from the sample it belongs to."""


@dataclass(eq=False)
class ConditioningDataset:
    """A conditioning dataset beside one source: `index` has a row for every row of the source."""

    entry: SampleDataset
    index: Index

    @property
    def role(self) -> str:
        """What it is to the model: "mask", "control" or "reference"."""
        kind = self.entry.conditioning_type
        return "control" if kind == "controlnet" else "reference" if str(kind).startswith("reference") else "mask"

    @property
    def has_captions(self) -> bool:
        """Whether its captions replace those of the sample."""
        return self.entry.caption_strategy is not None

    @property
    def present(self) -> np.ndarray:
        """(n,) bool: which rows of the source have it."""
        return self.index.is_dropped == 0


def pair_conditioning(source: Index, files_index: Index, entry: SampleDataset) -> ConditioningDataset:
    """The companion of every sample of `source` among the files in `own`."""
    rows = _by_prefix(source, files_index, entry.number) if entry.pairing == "prefix" else _by_path(source, files_index)
    index = files_index.select_rows(rows, absent="missing companion")
    if entry.is_aligned:
        for name in COPIED:
            index.numbers[name] = source.numbers[name].copy()
        clips = are_clips(index.paths)
        index.numbers["count"] = np.where(clips, source.numbers["count"], 1).astype(np.int32)
        index.numbers["unfit"][:] = 0
        index.area_down = source.area_down
    return ConditioningDataset(entry, index)


def _by_path(source: Index, files_index: Index) -> np.ndarray:
    """(n,) int64: rows with the same path, with one more ending (as generated images have), or with another ending;
    -1 where there is none."""
    stems = without_ending(files_index.paths)
    exact = pc.index_in(source.paths, files_index.paths)
    longer = pc.index_in(source.paths, stems)
    other = pc.index_in(without_ending(source.paths), stems)
    return pc.fill_null(pc.coalesce(exact, longer, other), -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _by_prefix(source: Index, files_index: Index, number: int) -> np.ndarray:
    """musubi-tuner's way: `cat.png` has the controls `cat.*` and `cat_0.*`, `cat_1.*`...; the `number`-th of them."""
    targets = without_ending(source.paths).to_pylist()
    stems = set(targets)
    by_prefix: dict[str, list[tuple[int, int]]] = {}
    for row, path in enumerate(files_index.paths.to_pylist()):
        stem = str(PurePosixPath(path).with_suffix(""))
        numbered = re.fullmatch(r"(.*)_(\d+)", stem)
        if stem in stems:
            by_prefix.setdefault(stem, []).append((-1, row))
        elif numbered and numbered[1] in stems:
            by_prefix.setdefault(numbered[1], []).append((int(numbered[2]), row))
    rows = np.full(len(source), -1, np.int64)
    for i, stem in enumerate(targets):
        controls = sorted(by_prefix.get(stem, []))
        rows[i] = controls[number][1] if number < len(controls) else -1
    return rows


def drop_incomplete_samples(source: Index, conditioning: Sequence[ConditioningDataset], combined: bool) -> None:
    """Mark the samples that lack what they need: every mask, and all images (`combined`) or at least one of them."""
    unfit = source.numbers["unfit"]
    unfit[unfit == CODE["missing companion"]] = 0
    if not conditioning:
        return
    lacking = np.zeros(len(source), bool)
    for c in conditioning:
        if c.role == "mask" or (combined and not c.entry.optional):
            lacking |= ~c.present
    present_images = [c.present for c in conditioning if c.role != "mask" and not c.entry.optional]
    if present_images and not combined:
        lacking |= ~np.logical_or.reduce(present_images)
    unfit[lacking & (unfit == 0)] = CODE["missing companion"]


def shape_columns(index: Index, conditioning: Sequence[ConditioningDataset]) -> list[np.ndarray]:
    """What samples of one batch have in common: their own size and frames, and those of everything beside them."""
    at = index.numbers
    columns = [at["target_width"], at["target_height"], at["count"]]
    for c in conditioning:
        present = c.present
        if c.entry.is_aligned and present.all() and not c.entry.optional:
            continue
        columns += [np.where(present, c.index.numbers[name], 0) for name in ("target_width", "target_height", "count")]
    return columns
