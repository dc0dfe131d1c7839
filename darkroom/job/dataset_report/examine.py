"""A close look at some samples of a dataset: each is read once, measured, and kept as a thumbnail."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from darkroom.data.index.listing import is_clip
from darkroom.data.index.table import REASONS, Index, OnProgress
from darkroom.data.threads import in_chunks
from darkroom.media import quality, video
from darkroom.media.containers import Source
from darkroom.media.images import BadImage, load_rgb
from darkroom.media.resize import Sizes
from darkroom.report.dataset_facts import Tile
from darkroom.storage.base import Missing, Refused

EDGE = 768
"""Pixels of the longer edge at which sharpness is measured: what a usual training size still shows."""

SMALL = (320, 200)
"""Pixels that a thumbnail fits into."""

REMOTE_BYTES = 2 * 2**30
"""No more than this is read from a store that is not on this machine."""

PIECE = 2**20

CLIP_SHARE = 10
"""One clip takes about as long as so many images."""


@dataclass(frozen=True)
class DecodedSample:
    """What was seen of one row. With `bad`, the reason why nothing could be seen."""

    row: int
    bad: str = ""
    content: str = ""  # hash of the file's bytes; empty for a clip, which is long
    sharpness: float = 0.0
    contrast: float = 0.0
    outline: int = 0
    miniature: np.ndarray = field(default_factory=lambda: np.zeros((16, 16, 3), np.uint8))
    is_transparent: bool = False
    jpeg: bytes = b""
    size: tuple[int, int] = (1, 1)


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, at equal distances, the first and the last among them."""
    if len(rows) <= count:
        return rows
    return rows[np.unique(np.linspace(0, len(rows) - 1, max(count, 1)).round().astype(np.int64))]


def candidates(index: Index) -> np.ndarray:
    """Rows that can be read, a clip with several parts once."""
    return np.flatnonzero((index.numbers["bad"] == 0) & (index.numbers["part"] == 0))


def choose(index: Index, limit: int) -> np.ndarray:
    """The rows to look at: spread evenly, within `limit` images, and within bounds of what is read from afar."""
    rows = candidates(index)
    if len(rows) and is_clip(index.path(int(rows[0]))):
        limit = max(1, limit // CLIP_SHARE)
    if index.store.remote and len(rows):
        mean = float(index.numbers["size"][rows].mean())
        limit = min(limit, max(1, int(REMOTE_BYTES / max(mean, 1.0))))
    return evenly(rows, limit)


def examine(index: Index, rows: np.ndarray, report_progress: OnProgress | None = None) -> list[DecodedSample]:
    """Look at these rows, by threads. What cannot be read is told by its `bad`. Raises Unreachable."""
    store = index.store
    workers = store.connections if store.remote else os.cpu_count() or 1
    samples: list[DecodedSample] = []
    for chunk in in_chunks(
        lambda row: decode_sample(index, row), [int(row) for row in rows], min(workers, 32), store.remote
    ):
        samples += chunk
        if report_progress is not None:
            report_progress(len(samples), len(rows))
    return samples


def decode_sample(index: Index, row: int) -> DecodedSample:
    """One row."""
    path = index.path(row)
    try:
        if is_clip(path):
            return _decode(row, first_frame(index, row))
        data = index.store.read(path)
        through = quality.is_see_through(data)
        return _decode(row, quality.load_small(data, EDGE, index.convert), hashlib.sha256(data).hexdigest(), through)
    except BadImage as bad:
        return DecodedSample(row, bad.reason)
    except Missing:
        return DecodedSample(row, "vanished")
    except Refused:
        return DecodedSample(row, "unreadable")


def _decode(row: int, image: Image.Image, content: str = "", is_transparent: bool = False) -> DecodedSample:
    brightness = quality.to_gray(image, EDGE)
    small, size = thumbnail(image)
    return DecodedSample(
        row,
        "",
        content,
        quality.sharpness(brightness),
        float(brightness.std()),
        quality.outline(image),
        quality.miniature(image),
        is_transparent,
        small,
        size,
    )


def content_of(index: Index, row: int) -> str:
    """Hash of a row's bytes, read in pieces; empty when it cannot be read."""
    try:
        with index.store.open(index.path(row), int(index.numbers["size"][row]) or None) as file:
            sums = hashlib.sha256()
            while piece := file.read(PIECE):
                sums.update(piece)
            return sums.hexdigest()
    except (Missing, Refused, OSError):
        return ""


@contextmanager
def source_of(index: Index, row: int) -> Iterator[Source]:
    """Where a clip can be read from: its file on this machine, or an open one that brings what is asked for."""
    path = index.path(row)
    if (here := index.store.local(path)) is not None:
        yield here
        return
    with index.store.open(path, int(index.numbers["size"][row]) or None) as file:
        yield file


def first_frame(index: Index, row: int) -> Image.Image:
    """About the first frame of a row's part of its clip: a change of rate is not counted in. Raises BadImage,
    Missing, Refused."""
    first = min(int(index.numbers["start"][row]), max(0, int(index.numbers["frames"][row]) - 1))
    with source_of(index, row) as source:
        return Image.fromarray(video.read_frames(source, np.asarray([first]))[0])


def to_image(index: Index, row: int) -> Image.Image:
    """The whole image of a row, or the first frame of its part. Raises BadImage, Missing, Refused."""
    path = index.path(row)
    if is_clip(path):
        return first_frame(index, row)
    return load_rgb(index.store.read(path), index.convert)


def as_trained(image: Image.Image, sizes: Sizes, crop: tuple[int, int]) -> Image.Image:
    """The part of an image that the crop keeps, at thumbnail size and the target's aspect."""
    left, top, width, height = quality.crop_region(sizes, crop)
    w, h = image.size
    box = (left * w, top * h, (left + width) * w, (top + height) * h)
    scale = min(SMALL[0] / sizes.target[0], SMALL[1] / sizes.target[1])
    size = max(1, round(sizes.target[0] * scale)), max(1, round(sizes.target[1] * scale))
    return image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=2.0)


def thumbnail(image: Image.Image, max_edge: tuple[int, int] = SMALL) -> tuple[bytes, tuple[int, int]]:
    """A small JPEG and its size."""
    small = image.copy()
    small.thumbnail(max_edge, Image.Resampling.LANCZOS, reducing_gap=2.0)
    converted = io.BytesIO()
    small.save(converted, "JPEG", quality=74, optimize=True)
    return converted.getvalue(), small.size


class Album:
    """Thumbnails of one dataset, within `room` bytes of them; after that, tiles come without an image."""

    def __init__(self, index: Index, samples: Sequence[DecodedSample], room: int):
        self.index, self.room = index, room
        self.samples = {sample.row: sample for sample in samples}

    def tile(self, row: int, note: str = "", *, framed: bool = False, name: str | None = None) -> Tile:
        """A row's image; `framed` draws what the crop keeps."""
        row = int(row)
        sample = self._decode_row(row)
        if sample.bad:
            return Tile(name or self.index.path(row), note, instead=sample.bad)
        frame = quality.crop_region(self.index.sizes(row), self.index.crop(row)) if framed else None
        return Tile(name or self.index.path(row), note, self.spend(sample.jpeg), sample.size, frame)

    def _decode_row(self, row: int) -> DecodedSample:
        if row not in self.samples:
            bad = int(self.index.numbers["bad"][row])
            self.samples[row] = DecodedSample(row, REASONS[bad]) if bad else decode_sample(self.index, row)
        return self.samples[row]

    def spend(self, jpeg: bytes) -> bytes:
        """The image, if there is room for it."""
        if len(jpeg) > self.room:
            return b""
        self.room -= len(jpeg)
        return jpeg
