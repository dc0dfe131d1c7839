"""Batches out of the caches, in the order of the plan, with a thread that keeps some ready."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darkroom.core.errors import DataError
from darkroom.data.batches.batch import Batch
from darkroom.data.batches.order import Order, caption_draws, conditioning_draws, mask_draws
from darkroom.data.cache.latents import SampleCache
from darkroom.data.cache.text import TextCache
from darkroom.data.debug_log import QUIET, Watch
from darkroom.data.index.buckets import Buckets
from darkroom.data.index.conditioning import Companion
from darkroom.data.index.table import Index
from darkroom.media.images import BadPicture
from darkroom.media.look import Look

Stack = Callable[[list[dict[str, Tensor]]], dict[str, Any]]


@dataclass(frozen=True)
class Beside:
    """A companion of a source with its cache."""

    companion: Companion
    cache: SampleCache


@dataclass(frozen=True)
class Source:
    """Where the samples of one dataset come from."""

    id: str
    index: Index
    buckets: Buckets
    latents: SampleCache
    texts: TextCache
    empty: TextCache  # holds the condition of a dropped caption
    beside: tuple[Beside, ...] = ()
    combined: bool = False  # several pictures beside a sample are attached at once, not one of them
    is_regularisation: bool = False
    slider_strength: float | None = None
    timestep_offset: float = 0.0
    is_i2v: bool | None = None
    reads: str = ""  # what is looked at while captions are read: Needs.reads

    def with_role(self, role: str) -> list[Beside]:
        """The companions of one role, in the listed order."""
        return [b for b in self.beside if b.companion.role == role]

    @property
    def is_segmented(self) -> bool:
        """Is there a mask that may be left out of a batch?"""
        return any(b.companion.entry.conditioning_type == "segmentation" for b in self.with_role("mask"))

    def choices(self, row: int) -> list[list[Beside]]:
        """What may be beside one sample: all pictures that it has, or each of them in turn."""
        there = [b for b in self.beside if b.companion.role != "mask" and b.companion.there[row]]
        return [there] if self.combined or len(there) < 2 else [[b] for b in there]

    def chosen(self, row: int, epoch: int) -> list[Beside]:
        """The pictures beside one sample in this epoch."""
        choices = self.choices(row)
        return choices[zlib.crc32(f"{self.index.path(row)}\0{epoch}".encode()) % len(choices)]

    def captions_of(self, row: int, chosen: Sequence[Beside]) -> tuple[str, ...]:
        """The captions of a sample: those of the picture beside it when that brings its own."""
        own = [b for b in chosen if b.companion.has_captions]
        return own[0].companion.index.captions_of(row) if own else self.index.captions_of(row)

    def looks(self, row: int, chosen: Sequence[Beside]) -> tuple[Look, ...]:
        """What is looked at while a caption of this sample is read."""
        if self.reads == "start":
            return (self.latents.look(row),)
        return tuple(b.cache.look(row) for b in chosen if self.reads and b.companion.role == "reference")

    def seen_captions(self, rows: Iterable[int], dropped: bool) -> Iterator[tuple[str, tuple[Look, ...]]]:
        """Every caption of these samples, and with `dropped` the empty one, with all that it may be read with.

        A sample whose pictures cannot be read is passed over; the latent cache reports it.
        """
        for row in rows:
            for chosen in self.choices(row):
                with suppress(BadPicture):
                    looks = self.looks(row, chosen)
                    for caption in dict.fromkeys([*self.captions_of(row, chosen), *([""] if dropped else [])]):
                        yield caption, looks


@dataclass(frozen=True)
class Draws:
    """What chance decides for one batch."""

    captions: list[str]
    dropped: list[bool]
    unconditioned: list[bool]  # whether what is beside it is left out
    segmented: list[bool]  # whether a segmentation masks the loss this time


def stack_equal(conditions: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Conditions of equal shapes to (B, ...) tensors. Raises DataError when they differ."""
    made = {}
    for name in conditions[0]:
        parts = [condition[name] for condition in conditions]
        if any(part.shape != parts[0].shape for part in parts):
            raise DataError(
                f"The text conditions '{name}' of one batch differ in shape: "
                f"{sorted({tuple(p.shape) for p in parts})}.\n"
                "  This family needs to say how they are padded; set train_batch_size to 1 meanwhile."
            )
        made[name] = torch.stack(parts)
    return made


def gather(source: Source, rows: Sequence[int], draws: Draws, stack: Stack | None, epoch: int, position: int) -> Batch:
    """The batch of these index rows."""
    at, chosen = source.index.numbers, np.asarray(rows, np.int64)
    conditions = [
        (source.empty if drop and not source.reads else source.texts).get(
            caption, source.looks(int(row), source.chosen(int(row), epoch))
        )
        for row, caption, drop in zip(rows, draws.captions, draws.dropped, strict=True)
    ]
    entries = [source.latents.get(int(row)) for row in chosen]
    # what captions are read with stays beside the sample
    unconditioned = torch.tensor(draws.unconditioned, dtype=torch.bool)

    def pairs(first: str, second: str) -> Tensor:
        return torch.from_numpy(np.stack([at[first][chosen], at[second][chosen]], 1).astype(np.int64))

    return Batch(
        latents=torch.stack([entry["latents"] for entry in entries]),
        cond=(stack or stack_equal)(conditions),
        captions=draws.captions,
        paths=[source.index.path(int(row)) for row in chosen],
        original_sizes=pairs("height", "width"),
        target_sizes=pairs("target_height", "target_width"),
        crops=pairs("top", "left"),
        dropped=torch.tensor(draws.dropped, dtype=torch.bool),
        unconditioned=unconditioned,
        dataset=source.id,
        is_regularisation=source.is_regularisation,
        slider_strength=source.slider_strength,
        timestep_offset=source.timestep_offset,
        is_i2v=source.is_i2v,
        extras={name: torch.stack([entry[name] for entry in entries]) for name in entries[0] if name != "latents"},
        references=pictures(source, rows, "reference", epoch, unconditioned & (not source.reads)),
        controls=pictures(source, rows, "control", epoch, unconditioned),
        mask=mask_of(source, rows, draws.segmented),
        epoch=epoch,
        position=position,
    )


def pictures(source: Source, rows: Sequence[int], role: str, epoch: int, dropped: Tensor) -> tuple[Tensor, ...]:
    """The pictures of one role beside these samples, (B, ...) each, nothing but zeros where conditioning is dropped."""
    if not source.with_role(role):
        return ()
    found = [
        [_picture(b.cache.get(int(row))) for b in source.chosen(int(row), epoch) if b.companion.role == role]
        for row in rows
    ]
    shapes = {tuple(tuple(picture.shape) for picture in sample) for sample in found}
    if len(shapes) > 1:
        raise DataError(
            f"Dataset '{source.id}': the {role} pictures of one batch differ in size: {sorted(shapes)}.\n"
            "  Set train_batch_size of this dataset to 1, or conditioning_multidataset_sampling to combined."
        )
    stacked = [torch.stack(parts) for parts in zip(*found, strict=True)]
    return tuple(torch.where(dropped.view(-1, *[1] * (t.dim() - 1)), torch.zeros_like(t), t) for t in stacked)


def _picture(entry: dict[str, Tensor]) -> Tensor:
    return entry["pixels"].float().div(127.5).sub(1.0) if "pixels" in entry else entry["latents"]


def mask_of(source: Source, rows: Sequence[int], segmented: Sequence[bool]) -> Tensor | None:
    """Where the loss counts, (B, 1, ...), or None: all masks of a sample multiplied."""
    made: Tensor | None = None
    for b in source.with_role("mask"):
        mask = torch.stack([b.cache.get(int(row))["mask"] for row in rows])
        if b.companion.entry.conditioning_type == "segmentation":
            drawn = torch.tensor(list(segmented)).view(-1, *[1] * (mask.dim() - 1))
            mask = torch.where(drawn, mask, torch.ones_like(mask))
        made = mask if made is None else made * mask
    return made


class Loader:
    """Batches of one rank. `epoch(n, start)` may be called for any epoch and position, in any order.

    With `pins` they are in pinned memory, put there by the thread that makes them ready.
    """

    def __init__(
        self,
        order: Order,
        sources: Callable[[int], Sequence[Source]],
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
        watch: Watch = QUIET,
    ):
        self.watch = watch
        self.order, self.sources, self.rank, self.caption_dropout = order, sources, rank, caption_dropout
        self.conditioning_dropout, self.masked_loss_probability = conditioning_dropout, masked_loss_probability
        self.stack, self.prefetch, self.qlen, self.pins = stack, prefetch, max(1, qlen), pins
        self.on_warn = on_warn or (lambda about, message: None)
        self._running: list[_Prefetch] = []
        self._used: dict[int, SampleCache] = {}

    def __enter__(self) -> Loader:
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
        rows = self._sound(source, source.buckets.buckets[plan.bucket].rows, plan.members)
        size = len(rows)
        share = slice(self.rank * size, (self.rank + 1) * size)
        draws = caption_draws(self.order.seed, epoch, position, size * self.order.ranks)[share]
        dropped = [bool(draw < self.caption_dropout) for draw in draws[:, 1]]
        captions = [
            "" if drop else _choose(source.captions_of(int(row), source.chosen(int(row), epoch)), draw)
            for row, draw, drop in zip(rows, draws[:, 0], dropped, strict=True)
        ]
        unconditioned = [False] * size
        if self.conditioning_dropout:
            left_out = conditioning_draws(self.order.seed, epoch, position, size * self.order.ranks)[share]
            unconditioned = [bool(draw < self.conditioning_dropout) for draw in left_out]
        segmented = [True] * size
        if source.is_segmented:
            masked = mask_draws(self.order.seed, epoch, position, size * self.order.ranks)[share]
            segmented = [bool(draw < self.masked_loss_probability) for draw in masked]
        drawn = Draws(captions, dropped, unconditioned, segmented)
        made = gather(source, rows.tolist(), drawn, self.stack, epoch, position)
        self.watch.batch(made, last=position == self.length(epoch) - 1)
        return made.pinned() if self.pins else made

    def _sound(self, source: Source, bucket: np.ndarray, members: np.ndarray) -> np.ndarray:
        """The rows of a batch. One that turns out damaged while it is encoded on demand gives way to the next of its
        bucket, and is reported."""
        rows = bucket[members]
        caches = [source.latents, *(b.cache for b in source.beside)]
        if all(cache.encode is None for cache in caches):
            return rows
        self._used.update((id(cache), cache) for cache in caches)
        made = []
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
            made.append(row)
        return np.array(made, np.int64)

    def _is_ready(self, source: Source, caches: Sequence[SampleCache], row: int) -> bool:
        there = [True, *(bool(b.companion.index.numbers["bad"][row] == 0) for b in source.beside)]
        if all(cache.ready(row) for cache, has in zip(caches, there, strict=True) if has):
            return True
        self.on_warn(source.id, f"'{source.index.place(row)}' cannot be used; another sample takes its place.")
        return False

    def epoch(self, n: int, start: int = 0, stopped: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """The batches of epoch `n` from position `start` on; none is waited for any more once `stopped` says so."""
        positions = range(start, len(self.order.epoch(n)))
        if not self.prefetch:
            return (self.batch(n, position) for position in positions)
        return self._prefetched(n, positions, stopped)

    def _prefetched(self, n: int, positions: range, stopped: Callable[[], bool]) -> Iterator[Batch]:
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


def _choose(captions: tuple[str, ...], draw: float) -> str:
    """The variant that `draw` (0..1) names."""
    return captions[min(int(draw * len(captions)), len(captions) - 1)]
