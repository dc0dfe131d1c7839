"""Batches out of the caches, in the order of the plan, with a thread that keeps some ready."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from darkroom.core.errors import DataError
from darkroom.data.batches.batch import Batch, Cond
from darkroom.data.batches.order import Order, draw_caption_values, draw_conditioning_values, draw_mask_values
from darkroom.data.cache.latents import SampleCache
from darkroom.data.cache.samples import SampleSource
from darkroom.data.debug_log import NO_DEBUG_LOG, DebugLog

Stack = Callable[[list[dict[str, Tensor]]], Cond]


@dataclass(frozen=True)
class RandomChoices:
    """What chance decides for one batch."""

    captions: list[str]
    dropped: list[bool]
    unconditioned: list[bool]  # whether what is beside it is left out
    segmented: list[bool]  # whether a segmentation masks the loss this time


def stack_equal(conditions: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Conditions of equal shapes to (B, ...) tensors. Raises DataError when they differ."""
    stacked = {}
    for name in conditions[0]:
        parts = [condition[name] for condition in conditions]
        if any(part.shape != parts[0].shape for part in parts):
            raise DataError(
                f"The text conditions '{name}' of one batch differ in shape: "
                f"{sorted({tuple(p.shape) for p in parts})}.\n"
                "  This family needs to say how they are padded; set train_batch_size to 1 meanwhile."
            )
        stacked[name] = torch.stack(parts)
    return stacked


SIZES = (("height", "width"), ("target_height", "target_width"), ("top", "left"))
"""Columns of the index that a batch brings along: original sizes, target sizes, crops."""


def gather(
    source: SampleSource,
    rows: Sequence[int],
    random_choices: RandomChoices,
    stack: Stack | None,
    epoch: int,
    position: int,
) -> Batch:
    """The batch of these index rows."""
    numbers = source.index.numbers
    sizes = torch.tensor([[[int(numbers[name][row]) for name in pair] for pair in SIZES] for row in rows])
    conditions = [
        (source.empty if drop and not source.text_images else source.texts).get(
            caption, source.reference_images(int(row), source.choose_conditioning(int(row), epoch))
        )
        for row, caption, drop in zip(rows, random_choices.captions, random_choices.dropped, strict=True)
    ]
    entries = [source.latents.get(row) for row in rows]
    # what captions are read with stays beside the sample
    unconditioned = torch.tensor(random_choices.unconditioned, dtype=torch.bool)

    return Batch(
        latents=torch.stack([entry["latents"] for entry in entries]),
        cond=(stack or stack_equal)(conditions),
        captions=random_choices.captions,
        paths=[source.index.path(int(row)) for row in rows],
        original_sizes=sizes[:, 0],
        target_sizes=sizes[:, 1],
        crops=sizes[:, 2],
        dropped=torch.tensor(random_choices.dropped, dtype=torch.bool),
        unconditioned=unconditioned,
        dataset=source.id,
        is_regularization=source.is_regularization,
        slider_strength=source.slider_strength,
        timestep_offset=source.timestep_offset,
        is_i2v=source.is_i2v,
        extras={name: torch.stack([entry[name] for entry in entries]) for name in entries[0] if name != "latents"},
        references=gather_images(source, rows, "reference", epoch, unconditioned & (not source.text_images)),
        controls=gather_images(source, rows, "control", epoch, unconditioned),
        mask=combine_masks(source, rows, random_choices.segmented),
        epoch=epoch,
        position=position,
    )


def gather_images(
    source: SampleSource, rows: Sequence[int], role: str, epoch: int, dropped: Tensor
) -> tuple[Tensor, ...]:
    """The images of one role beside these samples, (B, ...) each, nothing but zeros where conditioning is dropped."""
    if not source.with_role(role):
        return ()
    images = [
        [
            _to_model_range(b.cache.get(int(row)))
            for b in source.choose_conditioning(int(row), epoch)
            if b.dataset.role == role
        ]
        for row in rows
    ]
    shapes = {tuple(tuple(image.shape) for image in sample) for sample in images}
    if len(shapes) > 1:
        raise DataError(
            f"Dataset '{source.id}': the {role} pictures of one batch differ in size: {sorted(shapes)}.\n"
            "  Set train_batch_size of this dataset to 1, or conditioning_multidataset_sampling to combined."
        )
    stacked = [torch.stack(parts) for parts in zip(*images, strict=True)]
    return tuple(torch.where(dropped.view(-1, *[1] * (t.dim() - 1)), torch.zeros_like(t), t) for t in stacked)


def _to_model_range(entry: dict[str, Tensor]) -> Tensor:
    return entry["pixels"].float().div(127.5).sub(1.0) if "pixels" in entry else entry["latents"]


def combine_masks(source: SampleSource, rows: Sequence[int], segmented: Sequence[bool]) -> Tensor | None:
    """Where the loss counts, (B, 1, ...), or None: all masks of a sample multiplied."""
    combined: Tensor | None = None
    for b in source.with_role("mask"):
        mask = torch.stack([b.cache.get(int(row))["mask"] for row in rows])
        if b.dataset.entry.conditioning_type == "segmentation":
            is_used = torch.tensor(list(segmented)).view(-1, *[1] * (mask.dim() - 1))
            mask = torch.where(is_used, mask, torch.ones_like(mask))
        combined = mask if combined is None else combined * mask
    return combined


class BatchLoader:
    """Batches of one rank. `epoch(n, start)` may be called for any epoch and position, in any order.

    With `pins` they are in pinned memory, put there by the thread that makes them ready.
    """

    def __init__(
        self,
        order: Order,
        sources: Callable[[int], Sequence[SampleSource]],
        *,
        rank: int = 0,
        caption_dropout: float = 0.0,
        conditioning_dropout: float = 0.0,
        masked_loss_probability: float = 1.0,
        stack: Stack | None = None,
        prefetch: bool = True,
        qlen: int = 10,
        pins: bool = False,
        on_warn: Callable[[str, str], None] | None = None,
        debug_log: DebugLog = NO_DEBUG_LOG,
    ):
        self.debug_log = debug_log
        self.order, self.sources, self.rank, self.caption_dropout = order, sources, rank, caption_dropout
        self.conditioning_dropout, self.masked_loss_probability = conditioning_dropout, masked_loss_probability
        self.stack, self.prefetch, self.qlen, self.pins = stack, prefetch, max(1, qlen), pins
        self.on_warn = on_warn or (lambda about, message: None)
        self._running: list[_Prefetch] = []
        self._used: dict[int, SampleCache] = {}

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def length(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self.order.length(epoch)

    def batch(self, epoch: int, position: int) -> Batch:
        """The batch at one place, made here and now."""
        plan = self.order.epoch(epoch).batch(position, self.rank)
        source = self.sources(epoch)[plan.dataset]
        rows = self._replace_damaged(source, source.buckets.buckets[plan.bucket].rows, plan.members)
        size = len(rows)
        share = slice(self.rank * size, (self.rank + 1) * size)
        values = draw_caption_values(self.order.seed, epoch, position, size * self.order.ranks)[share]
        dropped = [bool(draw < self.caption_dropout) for draw in values[:, 1]]
        captions = [
            ""
            if drop
            else _choose_caption(source.captions_of(int(row), source.choose_conditioning(int(row), epoch)), draw)
            for row, draw, drop in zip(rows, values[:, 0], dropped, strict=True)
        ]
        unconditioned = [False] * size
        if self.conditioning_dropout:
            left_out = draw_conditioning_values(self.order.seed, epoch, position, size * self.order.ranks)[share]
            unconditioned = [bool(draw < self.conditioning_dropout) for draw in left_out]
        segmented = [True] * size
        if source.is_segmented:
            masked = draw_mask_values(self.order.seed, epoch, position, size * self.order.ranks)[share]
            segmented = [bool(draw < self.masked_loss_probability) for draw in masked]
        random_choices = RandomChoices(captions, dropped, unconditioned, segmented)
        batch = gather(source, rows.tolist(), random_choices, self.stack, epoch, position)
        self.debug_log.batch(batch, last=position == self.length(epoch) - 1)
        return batch.pin_memory() if self.pins else batch

    def _replace_damaged(self, source: SampleSource, bucket: np.ndarray, members: np.ndarray) -> np.ndarray:
        """The rows of a batch. One that turns out damaged while it is encoded on demand gives way to the next of its
        bucket, and is reported."""
        rows = bucket[members]
        caches = [source.latents, *(b.cache for b in source.conditioning)]
        if all(cache.encode is None for cache in caches):
            return rows
        self._used.update((id(cache), cache) for cache in caches)
        intact = []
        for member in members.tolist():
            for step in range(len(bucket)):
                row = int(bucket[(member + step) % len(bucket)])
                if source.index.numbers["bad"][row] == 0 and self._is_ready(source, caches, row):
                    break
            else:
                raise DataError(
                    f"Dataset '{source.id}': no sample of the bucket of '{source.index.path(int(bucket[0]))}' can be "
                    "read any more.\n  Replace the damaged files, or take the dataset out."
                )
            intact.append(row)
        return np.array(intact, np.int64)

    def _is_ready(self, source: SampleSource, caches: Sequence[SampleCache], row: int) -> bool:
        present = [True, *(bool(b.dataset.index.numbers["bad"][row] == 0) for b in source.conditioning)]
        if all(cache.ready(row) for cache, has in zip(caches, present, strict=True) if has):
            return True
        self.on_warn(source.id, f"'{source.index.describe_row(row)}' cannot be used; another sample takes its place.")
        return False

    def epoch(self, n: int, start: int = 0, stopped: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """The batches of epoch `n` from position `start` on; none is waited for any more once `stopped` says so."""
        positions = range(start, len(self.order.epoch(n)))
        if not self.prefetch:
            return (self.batch(n, position) for position in positions)
        return self._prefetch_epoch(n, positions, stopped)

    def _prefetch_epoch(self, n: int, positions: range, stopped: Callable[[], bool]) -> Iterator[Batch]:
        work = (lambda p=p: self.batch(n, p) for p in positions)
        ahead = _Prefetch(work, self.qlen, stopped)
        self._running.append(ahead)
        try:
            yield from ahead
        finally:
            ahead.close()
            self._running.remove(ahead)

    def close(self) -> None:
        """Stop the threads of epochs that were not read to their end."""
        for ahead in list(self._running):
            ahead.close()
        for cache in self._used.values():
            cache.cache.flush()
            cache.index.save()


class _Prefetch:
    """Calls work in a thread and hands the results over in order. An error in the work is raised at the reader.

    Once `length` results wait, the thread sleeps until half of them are taken: work that is done in a row finds its
    code and tables in the processor's cache.
    """

    def __init__(self, work: Iterator[Callable[[], Batch]], length: int, stopped: Callable[[], bool]):
        self._stopped = stopped
        self._length, self._room = length, threading.Event()
        self._ready: queue.SimpleQueue[tuple[Batch | None, BaseException | None]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,), name="batches", daemon=True)
        self._thread.start()

    def _run(self, work: Iterator[Callable[[], Batch]]) -> None:
        try:
            for make in work:
                if self._stop.is_set() or not self._offer((make(), None)):
                    return
            self._offer((None, None))
        except BaseException as cause:  # the reader decides what it means
            self._offer((None, cause))

    def _offer(self, item: tuple[Batch | None, BaseException | None]) -> bool:
        """Hand over a result, and wait for room. False once nobody wants more."""
        self._ready.put(item)
        if self._ready.qsize() >= self._length:
            self._room.clear()
            # the reader may have taken the last one in between
            while self._ready.qsize() > self._length // 2 and not self._stop.is_set():
                self._room.wait(0.5)
        return not self._stop.is_set()

    def __iter__(self) -> Iterator[Batch]:
        while not self._stop.is_set():
            try:
                batch, cause = self._ready.get(timeout=0.5)
            except queue.Empty:
                if self._stopped():
                    return
                continue
            if self._ready.qsize() <= self._length // 2:
                self._room.set()
            if cause is not None:
                raise cause
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        self._room.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=10)


def _choose_caption(captions: tuple[str, ...], draw: float) -> str:
    """The variant that `draw` (0..1) names."""
    return captions[min(int(draw * len(captions)), len(captions) - 1)]
