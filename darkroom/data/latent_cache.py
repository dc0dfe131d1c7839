"""Pictures to latents, once: (B, 3, H, W) in -1..1 to (B, C, h, w), named by bytes, sizes, crop and encoder."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from darkroom.core.errors import DataError
from darkroom.data.cache import KEY, VERSION, FillReport, ShardCache, fill, open_for_filling
from darkroom.data.index import Index
from darkroom.media.images import BadPicture, prepare, to_tensor
from darkroom.options.dataset import ImageDataset

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.data.index import Say

EncodePixels = Callable[["Tensor"], "Tensor"]
"""(B, 3, H, W) float32 in -1..1 to (B, C, h, w)."""

SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Prepared:
    """One picture on its way to the encoder. `pixels` is uint8 (H, W, 3), or None when the cache has the entry."""

    row: int
    content: str
    key: str
    pixels: np.ndarray | None


class LatentCache:
    """The latents of one dataset."""

    def __init__(self, cache: ShardCache, index: Index, identity: str):
        self.cache, self.index, self.identity = cache, index, identity
        self._base = hashlib.sha256(f"latents\0{VERSION}\0{identity}\0".encode())

    def key(self, row: int, content: str | None = None) -> str:
        """The entry of a row, from the hash of its bytes (the recorded one if none is given)."""
        at = self.index.numbers
        content = self.index.hashes[row].decode() if content is None else content
        made = self._base.copy()
        made.update(
            f"{content} {at['inter_width'][row]}x{at['inter_height'][row]} {at['target_width'][row]}x"
            f"{at['target_height'][row]} {at['top'][row]},{at['left'][row]}".encode()
        )
        return made.hexdigest()[:KEY]

    def known(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool: which rows have their latents in the cache."""
        has_hash = self.index.hashes[rows] != b""
        keys = np.zeros(len(rows), f"S{KEY}")
        for i in np.flatnonzero(has_hash):
            keys[i] = self.key(int(rows[i])).encode()
        return has_hash & self.cache.has_all(keys)

    def get(self, row: int) -> Tensor:
        """The latents of a row, (C, h, w)."""
        try:
            return self.cache.get(self.key(row))["latents"]
        except KeyError as cause:
            raise DataError(
                f"Dataset '{self.index.dataset}': the latents of '{self.index.path(row)}' are not in the cache "
                f"{self.cache.folder}.\n  Start again without skipping the latent cache; only what is missing is made."
            ) from cause

    # ------------------------------------------------------------------ filling

    def fill(self, encode: EncodePixels, dataset: ImageDataset, say: Say | None = None) -> FillReport:
        """Encode every usable picture that the cache lacks. A picture that cannot be read is left out and reported."""
        started, rows = time.monotonic(), self.index.usable
        open_for_filling(self.cache)
        if dataset.scan_for_errors:
            self.cache.verify()
        todo = self._by_target(rows[~self.known(rows)])
        report = FillReport(reused=len(rows) - len(todo))
        done = _Counter(say, len(todo))
        try:
            report.made = fill(
                self.cache, self._groups(todo, dataset, report, done), lambda group: self._encode(encode, group)
            )
        finally:
            self.index.save()
        # the same picture twice is one entry; a picture that was only renamed was read, but not encoded
        report.reused = len(rows) - report.made - len(report.dropped)
        report.seconds = time.monotonic() - started
        return report

    def _by_target(self, rows: np.ndarray) -> np.ndarray:
        """Rows with equal target sizes next to each other, otherwise by path."""
        at = self.index.numbers
        return rows[np.lexsort((rows, at["target_height"][rows], at["target_width"][rows]))]

    def _groups(
        self, rows: np.ndarray, dataset: ImageDataset, report: FillReport, done: _Counter
    ) -> Iterator[list[tuple[str, Prepared]]]:
        """Groups of prepared pictures of one target size. Later ones are decoded while the encoder works."""
        group: list[tuple[str, Prepared]] = []
        saved = time.monotonic()
        for row, made in self._prepared(rows, dataset):
            done.step()
            if isinstance(made, BadPicture):
                self._leave_out(row, made, dataset, report)
                continue
            self.index.record_hash(row, made.content)
            if made.pixels is None:
                continue
            if group and _shape(group[0][1]) != _shape(made):
                yield group
                group = []
            group.append((made.key, made))
            if len(group) >= dataset.vae_batch_size:
                yield group
                group = []
            if time.monotonic() - saved > SAVE_SECONDS:
                self.index.save()
                saved = time.monotonic()
        if group:
            yield group

    def _prepared(self, rows: np.ndarray, dataset: ImageDataset) -> Iterator[tuple[int, Prepared | BadPicture]]:
        """Pictures in order, a bounded number of them ahead of the consumer."""
        ahead = max(dataset.image_processing_batch_size, 2 * dataset.vae_batch_size)
        workers = max(1, min(dataset.max_workers, os.cpu_count() or 1))
        names = self.index.paths.take(pa.array(rows)).to_pylist() if len(rows) else []
        waiting: deque[tuple[int, Future[Prepared | BadPicture]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
        try:
            for row, name in zip(rows.tolist(), names, strict=True):
                waiting.append((row, pool.submit(self._prepare, row, self.index.root / name)))
                if len(waiting) >= ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, row: int, path: Path) -> Prepared | BadPicture:
        """Read, hash, and decode unless the cache has it. Runs in a thread."""
        try:
            data = path.read_bytes()
            content = hashlib.sha256(data).hexdigest()[:KEY]
            key = self.key(row, content)
            pixels = None if self.cache.has(key) else prepare(data, self.index.sizes(row), self.index.crop(row))
            return Prepared(row, content, key, pixels)
        except BadPicture as bad:
            return bad
        except FileNotFoundError:
            return BadPicture("vanished")
        except OSError as cause:
            return BadPicture("unreadable", str(cause))

    def _leave_out(self, row: int, bad: BadPicture, dataset: ImageDataset, report: FillReport) -> None:
        path = self.index.path(row)
        report.dropped[path] = str(bad)
        self.index.drop(row, bad.reason)
        if dataset.delete_problematic_images and bad.reason in ("damaged", "truncated", "empty file", "not a picture"):
            with suppress(OSError):
                (self.index.root / path).unlink()

    def _encode(self, encode: EncodePixels, group: list[Prepared]) -> list[dict[str, Tensor]]:
        """One call of the encoder. Raises DataError when it answers with another count or with numbers that are
        not finite."""
        import torch

        pixels = torch.stack([to_tensor(p.pixels) for p in group if p.pixels is not None])
        latents = encode(pixels)
        if len(latents) != len(group):
            raise ValueError(f"the encoder returned {len(latents)} latents for {len(group)} pictures")
        for prepared, one in zip(group, latents, strict=True):
            if not torch.isfinite(one).all():
                raise DataError(
                    f"Dataset '{self.index.dataset}': the latents of '{self.index.path(prepared.row)}' are "
                    f"not finite.\n"
                    "  The VAE overflows in its number format; set vae_dtype to bf16 or fp32."
                )
        return [{"latents": one} for one in latents]


class _Counter:
    def __init__(self, say: Say | None, total: int):
        self.say, self.total, self.done = say, total, 0

    def step(self) -> None:
        self.done += 1
        if self.say is not None:
            self.say(self.done, self.total)


def _shape(prepared: Prepared) -> tuple[int, ...]:
    assert prepared.pixels is not None
    return prepared.pixels.shape
