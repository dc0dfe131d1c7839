"""Samples to buckets: of one target size and length, with companions of one size: what a batch can be made of.

A bucket is known to people by its aspect (`1.75`), clips of one dataset with several lengths by size and frames
(`832x480@49`), and to the code by everything that its samples have in common, so that two sizes whose rounded aspects
agree can never meet in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from darkroom.core.errors import DataError
from darkroom.data.index.conditioning import ConditioningDataset, shape_columns
from darkroom.data.index.table import CODE, Index, unique_pairs
from darkroom.data.requirements import DataRequirements
from darkroom.media.resize import Size
from darkroom.options.datasets import SampleDataset


@dataclass(frozen=True, eq=False)
class Bucket:
    """One bucket: its name, target size, frames, and the index rows in it, sorted by path."""

    aspect: float
    target: Size
    rows: np.ndarray  # (n,) int64
    frames: int = 1
    by_length: bool = False

    @property
    def key(self) -> str:
        """The aspect as people read it; with the frames where they tell buckets apart."""
        return f"{self.target[0]}x{self.target[1]}@{self.frames}" if self.by_length else str(self.aspect)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Buckets:
    """A dataset's buckets, sorted by aspect, and what was pruned: (bucket, count)."""

    buckets: tuple[Bucket, ...]
    pruned: tuple[Bucket, ...] = ()

    @property
    def sizes(self) -> np.ndarray:
        """(buckets,) int64: how many images each holds."""
        return np.array([len(b) for b in self.buckets], np.int64)

    @property
    def count(self) -> int:
        """How many images there are in all buckets."""
        return int(self.sizes.sum())


def make_buckets(
    index: Index,
    dataset: SampleDataset,
    conditioning: Sequence[ConditioningDataset] = (),
    *,
    prune: bool,
    oversubscribe: bool = False,
) -> Buckets:
    """Group the usable rows. With `prune`, buckets that cannot fill one batch are left out and their rows marked.

    Buckets that oversubscription will fill, and those of a dataset whose batches may be short, are kept.
    """
    at = index.numbers
    at["unfit"][at["unfit"] == CODE["insufficient_for_batch"]] = 0
    rows = index.usable
    groups = _groups([column[rows] for column in shape_columns(index, conditioning)])
    order = np.argsort(groups, kind="stable")
    parts = np.split(rows[order], np.cumsum(np.bincount(groups))[:-1]) if len(rows) else []
    by_frames = dataset.video is not None and dataset.video.bucket_strategy == "resolution_frames"
    by_length = by_frames or len(np.unique(at["count"][rows])) > 1
    buckets = [
        Bucket(
            float(at["aspect"][part[0]]),
            (int(at["target_width"][part[0]]), int(at["target_height"][part[0]])),
            part,
            int(at["count"][part[0]]),
            by_length,
        )
        for part in parts
    ]
    buckets.sort(key=lambda b: (b.aspect, b.target, b.frames, int(b.rows[0])))
    keeps = not prune or not dataset.is_training or dataset.short_batches or (oversubscribe and not dataset.has_repeats)
    small = [] if keeps else [b for b in buckets if len(b) * (dataset.repeats + 1) < dataset.train_batch_size]
    for bucket in small:
        at["unfit"][bucket.rows] = CODE["insufficient_for_batch"]
    return Buckets(tuple(b for b in buckets if b not in small), tuple(small))


def _groups(columns: list[np.ndarray]) -> np.ndarray:
    """(n,) int64: a number for each row, equal where all columns agree."""
    groups = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        groups = unique_pairs(groups, column)[1]
    return groups


def schedule_buckets(buckets: Buckets, dataset: SampleDataset, effective: int, oversubscribe: bool) -> np.ndarray:
    """(buckets,) int64: how many samples of each bucket an epoch deals out, before the last batch is filled."""
    counts = buckets.sizes * (dataset.repeats + 1)
    if oversubscribe and not dataset.has_repeats:
        short = counts < effective
        counts = np.where(short, -(-counts // effective) * effective, counts)
    return counts


def validate_feasible(
    dataset: SampleDataset, buckets: Buckets, *, ranks: int, accumulation: int, oversubscribe: bool
) -> None:
    """Every bucket must fill one effective batch. Raises DataError naming each that does not, and the ways out."""
    if not dataset.is_training or dataset.short_batches or (oversubscribe and not dataset.has_repeats):
        return
    effective = dataset.train_batch_size * ranks * accumulation
    short = [b for b in buckets.buckets if len(b) * (dataset.repeats + 1) < effective]
    if not short:
        return
    lines = [
        f"    bucket {b.key} ({b.target[0]}x{b.target[1]}): {len(b)} samples, needs repeats "
        f"{math.ceil(effective / len(b)) - 1} or more"
        for b in short
    ]
    repeats = max(math.ceil(effective / len(b)) - 1 for b in short)
    raise DataError(
        f"Dataset '{dataset.id}' cannot fill an effective batch of {effective} in {len(short)} of "
        f"{len(buckets.buckets)} buckets.\n"
        f"  {buckets.count} pictures, repeats {dataset.repeats}; batch {dataset.train_batch_size} x {ranks} "
        f"processes x "
        f"{accumulation} accumulation steps = {effective}.\n" + "\n".join(lines) + "\n"
        f"  Change one of: train_batch_size to a smaller value; gradient_accumulation_steps to a smaller "
        f"value; fewer processes; "
        f"repeats of '{dataset.id}' to {repeats}; more pictures of these shapes; allow_dataset_oversubscription to "
        "true; "
        "crop with crop_aspect square, which makes one bucket of all."
    )


def validate_sizes(dataset: SampleDataset, buckets: Buckets, requirements: DataRequirements) -> None:
    """Raises DataError for the first bucket whose size the model's network cannot be given."""
    for bucket in buckets.buckets:
        width, height = bucket.target
        change = "Lower the dataset's resolution, or crop its samples to a shape nearer to a square."
        if requirements.pixels and width * height > requirements.pixels:
            takes = f"at most {requirements.pixels} pixels"
        elif requirements.edge and max(width, height) > requirements.edge:
            takes = f"edges of at most {requirements.edge} pixels"
        elif width % requirements.step or height % requirements.step:
            takes = f"edges that are multiples of {requirements.step} pixels"
            change = f"Give the dataset a resolution that is a multiple of {requirements.step}, or let buckets be made."
        else:
            continue
        raise DataError(
            f"Dataset '{dataset.id}' has a bucket of {width}x{height}, and {requirements.display_name} takes "
            f"{takes}.\n  {change}"
        )
