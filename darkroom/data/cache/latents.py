"""Samples to what training needs of them, once: pixels to latents or masks, named by bytes, sizes, crop, frames and
encoder."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from darkroom.core.errors import DataError
from darkroom.data.cache.shards import KEY, VERSION, FillReport, ShardCache, fill, open_for_filling
from darkroom.data.debug_log import NO_DEBUG_LOG, DebugLog
from darkroom.data.index.clips import Clipping, frame_numbers
from darkroom.data.index.listing import is_clip
from darkroom.data.index.table import DAMAGED, REASONS, Index
from darkroom.data.process_group import SINGLE_PROCESS, ProcessGroup
from darkroom.media import audio, video
from darkroom.media.images import DECODING, BadImage, prepare_image, prepare_layers
from darkroom.media.reference_image import ReferenceImage
from darkroom.options.datasets import SampleDataset
from darkroom.storage.base import Missing, Refused

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.data.index.table import OnProgress
    from darkroom.media.containers import Source

Encode = Callable[[list[np.ndarray], "list[np.ndarray | None]"], "Sequence[Mapping[str, Tensor]]"]
"""Prepared samples of one shape, uint8 (H, W, 3), (F, H, W, 3) or with layers (F, H, W, 4), and the sound of each,
float32 (channels, N) in -1..1 or None, to the tensors of each, without a batch axis."""

SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class PreparedSample:
    """One sample on its way to the encoder. `pixels` is None when the cache has the entry; `sound` of a clip that has
    some and whose sound is trained on."""

    row: int
    content: str
    key: str
    pixels: np.ndarray | None
    audio: np.ndarray | None = None


class SampleCache:
    """What is kept of one dataset's samples by one encoder.

    With `encode` an entry that is not there is made when it is asked for, and with `keep` it is also stored. `sound`,
    samples a second and channels, asks for the sound of clips, which are left out without it unless `may_be_silent`.
    """

    def __init__(
        self,
        cache: ShardCache,
        index: Index,
        identity: str,
        clipping: Clipping | None = None,
        encode: Encode | None = None,
        keep: bool = True,
        debug_log: DebugLog = NO_DEBUG_LOG,
        audio_format: tuple[int, int] | None = None,
        may_be_silent: bool = True,
    ):
        self.debug_log, self.audio_format, self.may_be_silent = debug_log, audio_format, may_be_silent
        self.cache, self.index, self.identity, self.clipping = cache, index, identity, clipping
        self.encode, self.keep = encode, keep
        self._base = hashlib.sha256(f"latents\0{VERSION}\0{identity}\0".encode())
        self._contents: dict[str, str] = {}  # of clips, which are too long to be hashed for each of their parts
        self._lock = threading.Lock()

    def key(self, row: int, content: str | None = None) -> str:
        """The entry of a row, from the hash of its bytes (the recorded one if none is given)."""
        digest = self._base.copy()
        digest.update(self._describe_pixels(row, content).encode())
        return digest.hexdigest()[:KEY]

    def _describe_pixels(self, row: int, content: str | None = None) -> str:
        """Everything that decides the pixels of a row."""
        at = self.index.numbers
        content = self.index.hashes[row].decode() if content is None else content
        words = (
            f"{content} {at['inter_width'][row]}x{at['inter_height'][row]} {at['target_width'][row]}x"
            f"{at['target_height'][row]} {at['top'][row]},{at['left'][row]}"
        )
        if self.index.area_down:
            words += " by exact areas"
        if not is_clip(self.index.path(row)):
            words += f" decoded {DECODING}{'' if self.index.convert else ' as stored'}"
        if self.audio_format:
            words += f" sound {self.audio_format}{' or none' if self.may_be_silent else ''}"
        if at["frames"][row] > 1 or at["count"][row] > 1:
            block, rate = (self.clipping.block, self.clipping.requirements.fps) if self.clipping else (None, None)
            rates = (block.fps, block.source_fps, rate if block.source_fps else None) if block else ()
            words += f" frames {at['start'][row]}+{at['count'][row]} {rates}"
        return words

    def reference_image(self, row: int) -> ReferenceImage:
        """The pixels of a row for whoever reads them beside a caption. Raises BadImage if it has to be read."""
        if self.index.hashes[row] == b"":
            self.pixels(row)
        return ReferenceImage(self._describe_pixels(row), lambda: self.pixels(row))

    def pixels(self, row: int) -> np.ndarray:
        """uint8 (H, W, 3), (F, H, W, 3) or (F, H, W, 4) as the encoder sees it. Raises BadImage."""
        prepared = self._prepare(row, self.index.path(row), also_cached=True)
        if isinstance(prepared, BadImage):
            raise prepared
        self.index.record_hash(row, prepared.content)
        assert prepared.pixels is not None
        return prepared.pixels

    def is_cached(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool: which rows have their entry in the cache."""
        has_hash = self.index.hashes[rows] != b""
        keys = np.zeros(len(rows), f"S{KEY}")
        for i in np.flatnonzero(has_hash):
            keys[i] = self.key(int(rows[i])).encode()
        return has_hash & self.cache.has_all(keys)

    def get(self, row: int) -> dict[str, Tensor]:
        """The tensors of a row. Raises DataError when they are not there and not made on demand."""
        key = self.key(row)
        if self.index.hashes[row] != b"" and self.cache.has(key):
            return self.cache.get(key)
        if self.encode is None:
            raise DataError(
                f"Dataset '{self.index.dataset}': '{self.index.describe_row(row)}' is not in the cache "
                f"{self.cache.folder}.\n"
                "  Start again without skipping the latent cache; only what is missing is made."
            )
        return self._make(row)

    # ------------------------------------------------------------------ on demand

    def ready(self, row: int) -> bool:
        """Whether a row can be used now; one that turns out damaged is left out from here on."""
        if self.encode is None or (self.index.hashes[row] != b"" and self.cache.has(self.key(row))):
            return True
        try:
            self._make(row)
        except BadImage as bad:
            self.index.drop(row, bad.reason)
            return False
        return True

    def _make(self, row: int) -> dict[str, Tensor]:
        """Encode one sample here and now. Raises BadImage."""
        prepared = self._prepare(row, self.index.path(row))
        if isinstance(prepared, BadImage):
            raise prepared
        self.index.record_hash(row, prepared.content)
        if prepared.pixels is None:
            return self.cache.get(prepared.key)
        assert self.encode is not None
        tensors = dict(self.encode([prepared.pixels], [prepared.audio])[0])
        self._check_finite(row, tensors)
        if self.keep:
            self.cache.put(prepared.key, tensors)
        return tensors

    # ------------------------------------------------------------------ filling

    def fill(
        self,
        encode: Encode,
        dataset: SampleDataset,
        on_progress: OnProgress | None = None,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> FillReport:
        """Encode every usable sample that the cache lacks. A sample that cannot be read is left out and reported."""
        started, rows = time.monotonic(), self.index.usable
        open_for_filling(self.cache)
        if dataset.scan_for_errors and process_group.is_first:
            self.cache.verify()
        missing = rows[~self.is_cached(rows)]
        todo = process_group.share(self._by_target(missing), self.cache.write_batch)
        report = FillReport()
        counter = _ProgressCounter(on_progress, len(todo))
        try:
            report.encoded = fill(
                self.cache,
                self._groups(todo, dataset, report, counter),
                lambda group: self._encode(encode, group),
            )
        finally:
            if process_group.size == 1:
                self.index.save()
        # the same sample twice is one entry; one that was only renamed was read, but not encoded
        report.reused = len(rows) - (len(missing) - len(todo)) - report.encoded - len(report.dropped)
        report.seconds = time.monotonic() - started
        return report

    def agree(self, process_group: ProcessGroup) -> None:
        """Tell the other processes what this one learned while filling, and take over what they did."""
        if process_group.size == 1:
            return
        index = self.index
        table = pa.table({"hash": [h.decode() for h in index.hashes.tolist()], "bad": index.numbers["bad"]})
        for part in process_group.exchange_tables(index.file.with_name(f"{index.file.name}.hashes"), table):
            for row, (content, bad) in enumerate(zip(part["hash"].to_pylist(), part["bad"].to_pylist(), strict=True)):
                if content and not index.hashes[row]:
                    index.record_hash(row, content)
                if bad and not index.numbers["bad"][row]:
                    index.drop(row, REASONS[bad])
        if process_group.is_first:
            index.save()
        self.cache.refresh()
        process_group.wait()

    def _by_target(self, rows: np.ndarray) -> np.ndarray:
        """Rows with equal target sizes next to each other, otherwise by path."""
        at = self.index.numbers
        return rows[np.lexsort((rows, at["count"][rows], at["target_height"][rows], at["target_width"][rows]))]

    def _groups(
        self, rows: np.ndarray, dataset: SampleDataset, report: FillReport, counter: _ProgressCounter
    ) -> Iterator[list[tuple[str, PreparedSample]]]:
        """Groups of prepared samples of one shape. Later ones are decoded while the encoder works."""
        group: list[tuple[str, PreparedSample]] = []
        saved = time.monotonic()
        for row, prepared in self._prepare_ahead(rows, dataset):
            counter.step()
            if isinstance(prepared, BadImage):
                self._leave_out(row, prepared, dataset, report)
                continue
            self.index.record_hash(row, prepared.content)
            if prepared.pixels is None:
                continue
            if group and _shape(group[0][1]) != _shape(prepared):
                yield group
                group = []
            group.append((prepared.key, prepared))
            if len(group) >= dataset.vae_batch_size:
                yield group
                group = []
            if time.monotonic() - saved > SAVE_SECONDS:
                self.index.save()
                saved = time.monotonic()
        if group:
            yield group

    def _prepare_ahead(
        self, rows: np.ndarray, dataset: SampleDataset
    ) -> Iterator[tuple[int, PreparedSample | BadImage]]:
        """Samples in order, a bounded number of them ahead of the consumer."""
        store = self.index.store
        ahead = max(dataset.image_processing_batch_size, 2 * dataset.vae_batch_size)
        workers = max(1, min(dataset.max_workers, os.cpu_count() or 1))
        if store.remote:  # these threads wait more than they compute
            workers = max(1, min(dataset.max_workers, store.connections, ahead))
        names = self.index.paths.take(pa.array(rows)).to_pylist() if len(rows) else []
        waiting: deque[tuple[int, Future[PreparedSample | BadImage]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="samples")
        try:
            for row, name in zip(rows.tolist(), names, strict=True):
                waiting.append((row, pool.submit(self._prepare, row, name)))
                if len(waiting) >= ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, row: int, path: str, also_cached: bool = False) -> PreparedSample | BadImage:
        """Read, hash, and decode unless the cache has it. Runs in a thread. Raises Unreachable."""
        self.debug_log.file(self.index.dataset, path)
        try:
            if is_clip(path):
                return self._prepare_clip(row, path, also_cached)
            files = [self.index.store.read(name) for name in (path, *self.index.layers_of(row))]
            content = _hash_content(files)
            key = self.key(row, content)
            pixels = None if self.cache.has(key) and not also_cached else self._prepare_image(row, files)
            return PreparedSample(row, content, key, pixels)
        except BadImage as bad:
            return bad
        except (Missing, FileNotFoundError):
            return BadImage("vanished")
        except (Refused, OSError) as cause:
            return BadImage("unreadable", str(cause))

    def _prepare_image(self, row: int, files: list[bytes]) -> np.ndarray:
        """uint8 (H, W, 3) of the target size, or (F, H, W, 4) of an image with its layers."""
        sizes, crop, convert = self.index.sizes(row), self.index.crop(row), self.index.convert
        if self.index.layers is not None:
            return prepare_layers(files[0], files[1:], sizes, crop, convert)
        return prepare_image(files[0], sizes, crop, convert)

    def _prepare_clip(self, row: int, path: str, also_cached: bool) -> PreparedSample:
        local = self.index.store.local(path)
        data = None if local is not None else self.index.store.read(path)
        content = self._content_of_clip(path, local, data)
        key = self.key(row, content)
        if self.cache.has(key) and not also_cached:
            return PreparedSample(row, content, key, None)
        source: Source = local if local is not None else io.BytesIO(data or b"")
        at = self.index.numbers
        times, count = video.times(source), int(at["count"][row])
        numbers = frame_numbers(self.clipping, times, int(at["start"][row]), count, float(at["fps"][row]))
        source = local if local is not None else io.BytesIO(data or b"")
        pixels = video.prepare_clip(source, numbers, self.index.sizes(row), self.index.crop(row))
        source = local if local is not None else io.BytesIO(data or b"")
        return PreparedSample(row, content, key, pixels, self._read_audio(source, float(times[numbers[0]]), count))

    def _read_audio(self, source: Source, start: float, frames: int) -> np.ndarray | None:
        """The sound to `frames` of a clip, as the model will play them, from second `start` on: (channels, N)."""
        if self.audio_format is None or self.clipping is None or not self.clipping.requirements.fps:
            return None
        try:
            return audio.read_audio(
                source, *self.audio_format, start, frames / self.clipping.requirements.fps, shorter=True
            )
        except BadImage as bad:
            if bad.reason == "no audio stream" and self.may_be_silent:
                return None
            raise

    def _content_of_clip(self, path: str, local: Path | None, data: bytes | None) -> str:
        """The hash of a clip's bytes, computed once in this object's life."""
        with self._lock:
            if path in self._contents:
                return self._contents[path]
        if local is None:
            content = hashlib.sha256(data or b"").hexdigest()[:KEY]
        else:
            with open(local, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()[:KEY]
        with self._lock:
            self._contents[path] = content
        return content

    def _leave_out(self, row: int, bad: BadImage, dataset: SampleDataset, report: FillReport) -> None:
        path = self.index.path(row)
        report.dropped[path] = str(bad)
        self.index.drop(row, bad.reason)
        if dataset.delete_problematic_images and bad.reason in DAMAGED:
            with suppress(OSError, Missing, Refused):
                self.index.store.delete(path)

    def _encode(self, encode: Encode, group: list[PreparedSample]) -> list[dict[str, Tensor]]:
        """One call of the encoder. Raises DataError when it answers with numbers that are not finite."""
        encoded = encode([p.pixels for p in group if p.pixels is not None], [p.audio for p in group])
        if len(encoded) != len(group):
            raise ValueError(f"the encoder returned {len(encoded)} results for {len(group)} samples")
        for prepared, tensors in zip(group, encoded, strict=True):
            self._check_finite(prepared.row, tensors)
        return [dict(tensors) for tensors in encoded]

    def _check_finite(self, row: int, tensors: Mapping[str, Tensor]) -> None:
        import torch

        if not all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point()):
            raise DataError(
                f"Dataset '{self.index.dataset}': the latents of '{self.index.path(row)}' are not finite.\n"
                "  The VAE overflows in its number format; set vae_dtype to bf16 or fp32."
            )


def _hash_content(files: Sequence[bytes]) -> str:
    """The hash of a file, or of several in their order."""
    if len(files) == 1:
        return hashlib.sha256(files[0]).hexdigest()[:KEY]
    return hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in files)).hexdigest()[:KEY]


class _ProgressCounter:
    def __init__(self, on_progress: OnProgress | None, total: int):
        self.on_progress, self.total, self.finished = on_progress, total, 0

    def step(self) -> None:
        self.finished += 1
        if self.on_progress is not None:
            self.on_progress(self.finished, self.total)


def _shape(prepared: PreparedSample) -> tuple[int, ...]:
    assert prepared.pixels is not None
    return prepared.pixels.shape
