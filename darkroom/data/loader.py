"""Batches out of the caches, in the order of the plan, with a thread that keeps some ready."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darkroom.core.errors import DataError
from darkroom.data.buckets import Buckets
from darkroom.data.index import Index
from darkroom.data.latent_cache import LatentCache
from darkroom.data.order import Order, caption_draws
from darkroom.data.sample import Batch
from darkroom.data.text_cache import TextCache

Stack = Callable[[list[dict[str, Tensor]]], dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """Where the samples of one dataset come from."""

    id: str
    index: Index
    buckets: Buckets
    latents: LatentCache
    texts: TextCache
    empty: TextCache  # holds the condition of a dropped caption
    is_regularisation: bool = False
    slider_strength: float | None = None
    timestep_offset: float = 0.0


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


def gather(
    source: Source,
    rows: Sequence[int],
    captions: list[str],
    dropped: Sequence[bool],
    stack: Stack | None,
    epoch: int,
    position: int,
) -> Batch:
    """The batch of these index rows with these captions."""
    at, chosen = source.index.numbers, np.asarray(rows, np.int64)
    conditions = [
        (source.empty if drop else source.texts).get(caption) for caption, drop in zip(captions, dropped, strict=True)
    ]

    def pairs(first: str, second: str) -> Tensor:
        return torch.from_numpy(np.stack([at[first][chosen], at[second][chosen]], 1).astype(np.int64))

    return Batch(
        latents=torch.stack([source.latents.get(int(row)) for row in chosen]),
        cond=(stack or stack_equal)(conditions),
        captions=captions,
        paths=[source.index.path(int(row)) for row in chosen],
        original_sizes=pairs("height", "width"),
        target_sizes=pairs("target_height", "target_width"),
        crops=pairs("top", "left"),
        dropped=torch.tensor(list(dropped), dtype=torch.bool),
        dataset=source.id,
        is_regularisation=source.is_regularisation,
        slider_strength=source.slider_strength,
        timestep_offset=source.timestep_offset,
        epoch=epoch,
        position=position,
    )


class Loader:
    """Batches of one rank. `epoch(n, start)` may be called for any epoch and position, in any order."""

    def __init__(
        self,
        order: Order,
        sources: Sequence[Source],
        *,
        rank: int = 0,
        caption_dropout: float = 0.0,
        stack: Stack | None = None,
        prefetch: bool = True,
        qlen: int = 10,
    ):
        self.order, self.sources, self.rank, self.caption_dropout = order, list(sources), rank, caption_dropout
        self.stack, self.prefetch, self.qlen = stack, prefetch, max(1, qlen)
        self._running: list[_Prefetch] = []

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
        source = self.sources[plan.dataset]
        rows = source.buckets.buckets[plan.bucket].rows[plan.members]
        size = len(rows)
        draws = caption_draws(self.order.seed, epoch, position, size * self.order.ranks)[
            self.rank * size : (self.rank + 1) * size
        ]
        dropped = [bool(draw < self.caption_dropout) for draw in draws[:, 1]]
        captions = [
            "" if drop else _choose(source.index.captions_of(int(row)), draw)
            for row, draw, drop in zip(rows, draws[:, 0], dropped, strict=True)
        ]
        return gather(source, rows.tolist(), captions, dropped, self.stack, epoch, position)

    def epoch(self, n: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `n` from position `start` on."""
        positions = range(start, len(self.order.epoch(n)))
        if not self.prefetch:
            return (self.batch(n, position) for position in positions)
        return self._prefetched(n, positions)

    def _prefetched(self, n: int, positions: range) -> Iterator[Batch]:
        ahead = _Prefetch((lambda p=p: self.batch(n, p) for p in positions), self.qlen)  # type: ignore[misc]
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


class _Prefetch:
    """Calls work in a thread and hands the results over in order. An error in the work is raised at the reader."""

    def __init__(self, work: Iterator[Callable[[], Batch]], length: int):
        self._ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(length)
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
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Batch]:
        while not self._stop.is_set():
            try:
                batch, cause = self._ready.get(timeout=0.5)
            except queue.Empty:
                continue
            if cause is not None:
                raise cause
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=10)


def _choose(captions: tuple[str, ...], draw: float) -> str:
    """The variant that `draw` (0..1) names."""
    return captions[min(int(draw * len(captions)), len(captions) - 1)]
