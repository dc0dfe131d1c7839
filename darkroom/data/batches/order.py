"""Which samples make which batch: a pure function of the seed and the epoch.

Within a dataset every bucket deals each of its samples (repeats + 1) times per epoch, shuffled anew for each pass;
the last
batch is filled with samples of the same bucket that were already dealt. Buckets take turns. Between datasets, each
micro-batch draws one by weight, until all are exhausted. Nothing here remembers anything between calls, so a
checkpoint needs
only an epoch (from 1) and a position, the number of the micro-batch inside it (from 0).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator, Philox

from darkroom.core.errors import DataError

MODES = ("uniform", "auto-weighting")
_CHUNK = 1 << 16
_GROUPS = 3  # slider: positive, negative, neutral


@dataclass(frozen=True, eq=False)
class DatasetShape:
    """What the order needs to know of one dataset. `scheduled` overrides how many samples each bucket deals."""

    id: str
    bucket_sizes: np.ndarray  # (buckets,) int64
    batch_size: int = 1
    repeats: int = 0
    probability: float = 1.0
    start_epoch: int = 1
    end_epoch: int | None = None
    start_step: int = 0
    end_step: int | None = None
    disable_after_epoch_step: int | None = None
    slider_strength: float | None = None
    scheduled: np.ndarray | None = None  # (buckets,) int64
    short: bool = False  # the last batch of a bucket stays short instead of being filled

    @property
    def deals(self) -> np.ndarray:
        """(buckets,) samples dealt per epoch before filling."""
        return self.bucket_sizes * (self.repeats + 1) if self.scheduled is None else self.scheduled

    def batches(self, ranks: int) -> np.ndarray:
        """(buckets,) micro-batches per rank."""
        return -(-self.deals // (self.batch_size * ranks))

    @property
    def weight(self) -> int:
        """Its length for auto-weighting: batches of one process over all buckets together."""
        return math.ceil(int(self.bucket_sizes.sum()) * (self.repeats + 1) / self.batch_size)

    @property
    def group(self) -> int:
        """Slider group: 0 positive, 1 negative, 2 neutral."""
        strength = self.slider_strength or 0.0
        return 0 if strength > 0 else 1 if strength < 0 else 2


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """One micro-batch of one rank: `members` are sample numbers inside the bucket."""

    dataset: int
    bucket: int
    members: np.ndarray  # (B,) int64
    filled: np.ndarray  # (B,) bool: dealt again only to fill the batch


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """All micro-batches of one epoch, as arrays of four to six bytes a sample."""

    epoch: int
    datasets: np.ndarray  # (n,) int16
    buckets: np.ndarray  # (n,) int32
    ranks: int
    _starts: np.ndarray  # (n,) int64: first member in the dataset's row
    _members: tuple[np.ndarray, ...]
    _filled: tuple[np.ndarray, ...]
    _sizes: tuple[int, ...]  # batch size of each dataset
    _short: tuple[bool, ...]  # whether its last batches stay short

    def __len__(self) -> int:
        return len(self.datasets)

    def batch(self, position: int, rank: int = 0) -> BatchPlan:
        """The micro-batch at `position` for one rank."""
        dataset = int(self.datasets[position])
        size = self._sizes[dataset]
        start = int(self._starts[position]) + rank * size
        rows = slice(start, start + size)
        members, filled = self._members[dataset][rows].astype(np.int64), self._filled[dataset][rows]
        if self._short[dataset] and not filled.all():  # a process with nothing of its own repeats, as all take part
            members, filled = members[~filled], filled[~filled]
        return BatchPlan(dataset, int(self.buckets[position]), members, filled)


@dataclass(frozen=True)
class Lengths:
    """How long epochs are. Micro-batches are counted per rank."""

    batches_per_epoch: int
    steps_per_epoch: int
    by_dataset: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """Where the data of a run are what they are now: steps finished before, and the first epoch since (from 1)."""

    step: int = 0
    epoch: int = 1


START = Base()


def make_generator(seed: int, *path: object) -> Generator:
    """A generator of its own for one purpose: Philox keyed by the seed and what it is for."""
    key = hashlib.blake2b("\0".join(map(str, (seed, *path))).encode(), digest_size=16).digest()
    return Generator(Philox(key=int.from_bytes(key, "little")))


def steps_and_epochs(
    batches_per_epoch: int,
    accumulation: int,
    max_train_steps: int | None,
    num_train_epochs: float | None,
    base: Base = START,
) -> tuple[int, int]:
    """Optimizer steps and epochs of a run when one of them is left open; one epoch when neither is given.

    Epochs are this long from `base` on. Raises DataError when both are 0.
    """
    if max_train_steps is None and num_train_epochs is None:
        num_train_epochs = 1
    steps_per_epoch = max(1, math.ceil(batches_per_epoch / accumulation))
    if max_train_steps:
        left = max(0, max_train_steps - base.step)
        return int(max_train_steps), base.epoch - 1 + math.ceil(left / steps_per_epoch)
    if num_train_epochs:
        left_epochs = max(0, num_train_epochs - (base.epoch - 1))
        return base.step + math.ceil(left_epochs * steps_per_epoch), math.ceil(num_train_epochs)
    raise DataError("Nothing says how long to train.\n  Set max_train_steps or num_train_epochs.")


class Order:
    """The order of batches of a run. `epoch(n)` gives the same answer whenever and wherever it is asked."""

    def __init__(
        self,
        datasets: Sequence[DatasetShape],
        *,
        seed: int,
        ranks: int = 1,
        accumulation: int = 1,
        mode: str = "auto-weighting",
        by_epoch: Callable[[int], Sequence[DatasetShape]] | None = None,
        base: Base = START,
    ):
        if mode not in MODES:
            raise DataError(
                f"data_backend_sampling = '{mode}'\n  There is no such way of mixing datasets.\n  Choose one "
                f"of {', '.join(MODES)}."
            )
        self.datasets, self.seed, self.ranks, self.accumulation, self.mode = (
            list(datasets),
            seed,
            ranks,
            accumulation,
            mode,
        )
        self.base = base
        self._by_epoch = by_epoch or (lambda epoch: self.datasets)
        self._last: EpochPlan | None = None
        self._lengths: dict[int, int] = {}
        if all(d.probability == 0 for d in self.datasets):
            raise DataError(
                "No dataset can be drawn: every probability is 0.\n  Give at least one a probability above 0."
            )

    def epoch(self, n: int) -> EpochPlan:
        """All micro-batches of epoch `n` (from 1)."""
        if self._last is None or self._last.epoch != n:
            self._last = self._plan(n)
            self._lengths[n] = len(self._last)
        return self._last

    def length(self, n: int) -> int:
        """Micro-batches per rank in epoch `n`."""
        if n in self._lengths:
            return self._lengths[n]
        sampled = [d for d in self._by_epoch(n) if d.probability > 0]
        if any(d.start_step > 1 or d.end_step is not None or d.disable_after_epoch_step is not None for d in sampled):
            self._lengths[n] = len(self._plan(n))  # only playing it through tells what a schedule of steps leaves
        else:
            self._lengths[n] = sum(int(d.batches(self.ranks).sum()) for d in sampled if _in_epoch(d, n))
        return self._lengths[n]

    def steps_before(self, n: int) -> int:
        """Optimizer steps taken in the epochs before `n`."""
        epochs = range(self.base.epoch, n)
        return self.base.step + sum(math.ceil(self.length(e) / self.accumulation) for e in epochs)

    def lengths(self, n: int = 1) -> Lengths:
        """Nominal lengths in epoch `n`, without any schedule of steps."""
        by = {d.id: int(d.batches(self.ranks).sum()) for d in self.datasets if d.probability > 0 and d.start_epoch <= n}
        total = sum(by.values())
        return Lengths(total, max(1, math.ceil(total / self.accumulation)), by)

    # ------------------------------------------------------------------ inside a dataset

    def _deal(self, d: DatasetShape, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One dataset's epoch: members (batches * size * ranks,), filled (same), bucket of each batch (batches,)."""
        width = d.batch_size * self.ranks
        members, filled, turns = [], [], []
        for bucket, (size, deals) in enumerate(zip(d.bucket_sizes.tolist(), d.deals.tolist(), strict=True)):
            if size == 0:
                continue
            dealt = self._passes(d.id, bucket, size, deals, epoch)
            missing = -deals % width
            fill = (
                make_generator(self.seed, epoch, "fill", d.id, bucket).permutation(size)
                if missing
                else np.zeros(0, np.int64)
            )
            members.append(
                np.concatenate([dealt, np.resize(_avoid(fill, dealt, width - missing), missing)]).reshape(-1, width)
            )
            marks = np.zeros((len(members[-1]), width), bool)
            marks.reshape(-1)[deals:] = True
            filled.append(marks)
            turns.append(np.stack([np.arange(len(marks)), np.full(len(marks), bucket)], 1))
        if not members:
            return np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0, np.int32)
        turn = np.concatenate(turns)
        order = np.lexsort((turn[:, 1], turn[:, 0]))  # every bucket once, then every bucket again, ...
        return (
            np.concatenate(members)[order].astype(np.int32).reshape(-1),
            np.concatenate(filled)[order].reshape(-1),
            turn[order, 1].astype(np.int32),
        )

    def _passes(self, dataset: str, bucket: int, size: int, deals: int, epoch: int) -> np.ndarray:
        """(deals,) members: whole shuffled passes, and the start of one more when oversubscribed."""
        passes = -(-deals // size)
        parts = [
            make_generator(self.seed, epoch, "pass", dataset, bucket, number).permutation(size)
            for number in range(passes)
        ]
        return np.concatenate(parts)[:deals]

    # ------------------------------------------------------------------ between datasets

    def _plan(self, epoch: int) -> EpochPlan:
        datasets = self._by_epoch(epoch)
        rows = [
            self._deal(d, epoch)
            if d.probability > 0 and _in_epoch(d, epoch)
            else (np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0, np.int32))
            for d in datasets
        ]
        counts = np.array([len(turns) for _, _, turns in rows], np.int64)
        mixture = self._mix(epoch, counts, datasets)
        buckets, starts = np.zeros(len(mixture), np.int32), np.zeros(len(mixture), np.int64)
        for i, (_, _, turns) in enumerate(rows):
            at = np.flatnonzero(mixture == i)
            buckets[at] = turns[: len(at)]
            starts[at] = np.arange(len(at)) * datasets[i].batch_size * self.ranks
        return EpochPlan(
            epoch,
            mixture,
            buckets,
            self.ranks,
            starts,
            tuple(m for m, _, _ in rows),
            tuple(f for _, f, _ in rows),
            tuple(d.batch_size for d in datasets),
            tuple(d.short for d in datasets),
        )

    def _mix(self, epoch: int, counts: np.ndarray, datasets: Sequence[DatasetShape]) -> np.ndarray:
        """(n,) int16: the dataset of each micro-batch.

        Weights hold until a dataset runs out, so whole stretches are drawn at once.
        """
        if not counts.any():
            raise DataError(
                f"No dataset can be drawn in epoch {epoch}.\n  Adjust start_epoch, end_epoch or probability "
                f"of the datasets."
            )
        names = np.argsort([d.id for d in self.datasets], kind="stable")
        left, position, turn = counts.copy(), 0, 0
        sequence: list[np.ndarray] = []
        before = self.steps_before(epoch) if self._has_steps() else 0
        values = make_generator(self.seed, epoch, "mixture").random(int(counts.sum()))
        while left.any():
            limit = min(_CHUNK, len(values) - position)
            steps = before + (position + np.arange(limit)) // self.accumulation + 1
            weights = self._weights(datasets, steps, left)
            stop = np.flatnonzero(weights.sum(1) == 0)
            limit = int(stop[0]) if len(stop) else limit
            if limit == 0:
                break  # what is left is not active any more, or not yet
            part, turn = self._draw(weights[:limit], values[position : position + limit], names, left, turn)
            sequence.append(part)
            position += len(part)
        if not sequence:
            raise DataError(
                f"No dataset can be drawn at the start of epoch {epoch}.\n  Adjust the start and end settings "
                f"of the datasets."
            )
        return np.concatenate(sequence).astype(np.int16)

    def _has_steps(self) -> bool:
        return any(
            d.start_step > 1 or d.end_step is not None or d.disable_after_epoch_step is not None for d in self.datasets
        )

    def _weights(self, datasets: Sequence[DatasetShape], steps: np.ndarray, left: np.ndarray) -> np.ndarray:
        """(n, datasets) float64: the weight of each dataset at each step; 0 when it is exhausted or not active."""
        lengths = np.array([d.weight for d in datasets], np.float64)
        weights = np.zeros((len(steps), len(datasets)))
        for i, d in enumerate(datasets):
            if left[i] == 0:
                continue
            weight = np.full(len(steps), d.probability)
            if self.mode == "auto-weighting":
                weight *= lengths[i] / lengths.sum()
                if d.disable_after_epoch_step:
                    weight *= np.maximum(0.0, 1.0 - steps / d.disable_after_epoch_step)
            weight[steps < d.start_step] = 0.0
            if d.end_step is not None:
                weight[steps > d.end_step] = 0.0
            weights[:, i] = weight
        return weights

    def _draw(
        self, weights: np.ndarray, values: np.ndarray, names: np.ndarray, left: np.ndarray, turn: int
    ) -> tuple[np.ndarray, int]:
        """Draw a stretch, cut after the batch that exhausts a dataset; `left` is counted down."""
        groups = np.array([d.group for d in self.datasets])
        if (groups != _GROUPS - 1).any():
            weights, turns = _rotate(weights, groups, turn)
        else:
            turns = np.zeros(len(weights), np.int64)
        sums = np.cumsum(weights[:, names], axis=1)
        below = np.minimum(
            values[:, None] * sums[:, -1:], np.nextafter(sums[:, -1:], 0)
        )  # rounding up must not pass all
        selected = names[np.minimum((below >= sums).sum(1), len(names) - 1)]
        cut = len(selected)
        for i in np.flatnonzero(left):
            at = np.flatnonzero(selected == i)
            if len(at) >= left[i]:
                cut = min(cut, int(at[left[i] - 1]) + 1)
        selected = selected[:cut]
        left -= np.bincount(selected, minlength=len(left))
        return selected, int(turns[cut - 1] + 1) % _GROUPS


def _avoid(fill: np.ndarray, dealt: np.ndarray, partial: int) -> np.ndarray:
    """`fill` with the members of the unfinished batch last, so that a batch repeats an image only when it must."""
    if len(fill) == 0:
        return fill
    repeated = np.isin(fill, dealt[len(dealt) - partial :])
    return np.concatenate([fill[~repeated], fill[repeated]])


def _in_epoch(d: DatasetShape, epoch: int) -> bool:
    return d.start_epoch <= epoch and (d.end_epoch is None or epoch <= d.end_epoch)


def _rotate(weights: np.ndarray, groups: np.ndarray, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Slider groups in a fixed cycle from `turn`; groups without weight are skipped. Returns weights and the group
    of each row."""
    alive = np.stack([weights[:, groups == g].sum(1) > 0 for g in range(_GROUPS)], 1)
    turns = np.zeros(len(weights), np.int64)
    for row, is_alive in enumerate(alive):
        turns[row] = next(g % _GROUPS for g in range(turn, turn + _GROUPS) if is_alive[g % _GROUPS])
        turn = turns[row] + 1
    return np.where(groups[None, :] == turns[:, None], weights, 0.0), turns


def draw_caption_values(seed: int, epoch: int, position: int, count: int) -> np.ndarray:
    """(count, 2) numbers in 0..1, a row per slot of a micro-batch over all ranks: variant, dropout."""
    return make_generator(seed, epoch, "captions", position).random((count, 2))


def draw_conditioning_values(seed: int, epoch: int, position: int, count: int) -> np.ndarray:
    """(count,) numbers in 0..1, one per slot of a micro-batch over all ranks: whether what is beside it is left out."""
    return make_generator(seed, epoch, "conditioning", position).random(count)


def draw_mask_values(seed: int, epoch: int, position: int, count: int) -> np.ndarray:
    """(count,) numbers in 0..1, one per slot of a micro-batch over all ranks: whether a segmentation masks the loss."""
    return make_generator(seed, epoch, "masks", position).random(count)
