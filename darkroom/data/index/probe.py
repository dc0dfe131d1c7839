"""What is read from each file: sizes from headers, lengths of clips, and where a face is when crops ask for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from darkroom.data.index.listing import is_clip, layer_of
from darkroom.data.index.metadata import SampleTable
from darkroom.data.index.table import CODE, FACTS, Index, OnProgress
from darkroom.data.threads import in_chunks
from darkroom.media.images import BadImage, layer_problem, load_rgb, read_header
from darkroom.media.video import probe, read_frames
from darkroom.options.datasets import SampleDataset
from darkroom.storage.base import Missing, Refused, Store

Row = tuple[int, int, int, float, float, float, float, int, int]
"""width, height, frames, fps, duration, focus x, focus y, traits, reason code: the order of FACTS."""

NO_FACE = (-1.0, -1.0)
NOTHING = (0, 0, 0, 0.0, 0.0, *NO_FACE, 0)
FIRST = np.zeros(1, np.int64)  # of a clip: the frame on which a face is looked for


class Saver:
    """Saves an index now and then while it is being filled, so that a scan of hours that is stopped goes on."""

    def __init__(self, index: Index, seconds: float):
        self.index, self.seconds, self.last = index, seconds, time.monotonic()

    def __call__(self) -> None:
        """Save if it is time to. Decisions are not made yet, so they do not count as made."""
        if time.monotonic() - self.last < self.seconds:
            return
        settings, self.index.settings = self.index.settings, {**self.index.settings, "decisions": ""}
        self.index.changed = True
        self.index.save()
        self.index.settings, self.last = settings, time.monotonic()


def probe_samples(
    index: Index,
    rows: np.ndarray,
    dataset: SampleDataset,
    table: SampleTable,
    on_progress: OnProgress | None,
    saver: Callable[[], None] | None = None,
) -> None:
    """Facts of `rows`: from the table when it has them, or from file headers, read by several threads."""
    if len(rows) == 0:
        return
    paths = index.paths.take(pa.array(rows))
    if {"width", "height"} <= set(table.numbers):
        _from_table(index, rows, paths, dataset, table)
        _check_layers(index, rows)
        return
    index.opened = len(rows)
    store, sizes = index.store, index.numbers["size"][rows].tolist()
    faces = dataset.crop_style == "face"
    workers = min(dataset.aspect_bucket_worker_count, store.connections) if not store.remote else store.connections
    layers = [index.layers_of(row) for row in rows]
    items = list(zip(paths.to_pylist(), sizes, layers, strict=True))
    probed = in_chunks(lambda item: _probe_sample(store, *item, faces), items, workers, store.remote)
    _keep(index, rows, probed, on_progress, saver or (lambda: None))
    _check_layers(index, rows)


def _check_layers(index: Index, rows: np.ndarray) -> None:
    """A sample of a layered dataset needs layers, numbered without a gap."""
    for row in rows if index.layers is not None else []:
        numbers = [layer_of(path[: path.rfind(".")])[1] for path in index.layers_of(row)]
        if not numbers:
            index.numbers["bad"][row] = CODE["no layers"]
        elif numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            index.numbers["bad"][row] = CODE["missing layer"]


def _from_table(index: Index, rows: np.ndarray, paths: pa.Array, dataset: SampleDataset, table: SampleTable) -> None:
    """Facts that stand in the table. A row without a size is left out."""
    at = table.rows_of(paths)
    safe = np.maximum(at, 0)
    for name in ("width", "height", "frames", "fps"):
        if name in table.numbers and len(table):
            index.numbers[name][rows] = np.nan_to_num(table.numbers[name][safe])
    has_sizes = (at >= 0) & (index.numbers["width"][rows] > 0) & (index.numbers["height"][rows] > 0)
    if dataset.video is None:
        index.numbers["frames"][rows] = 1
    else:
        has_sizes &= index.numbers["frames"][rows] > 0
        rate = index.numbers["fps"][rows]
        index.numbers["duration"][rows] = np.divide(
            index.numbers["frames"][rows], rate, out=np.zeros(len(rows)), where=rate > 0
        )
    for name in ("focus_x", "focus_y"):
        index.numbers[name][rows] = -1
    index.numbers["bad"][rows] = np.where(has_sizes, 0, CODE["not in the table"])


def _keep(
    index: Index,
    rows: np.ndarray,
    chunks: Iterator[list[Row]],
    on_progress: OnProgress | None,
    saver: Callable[[], None],
) -> None:
    finished = 0
    for chunk in chunks:
        at = rows[finished : finished + len(chunk)]
        for name, column in zip(FACTS, zip(*chunk, strict=True), strict=True):
            index.numbers[name][at] = np.array(column, FACTS[name])
        finished += len(chunk)
        saver()
        if on_progress is not None:
            on_progress(finished, len(rows))


def _probe_sample(store: Store, path: str, size: int, layers: list[str], faces: bool) -> Row:
    """Facts of one sample, whose layers have to fit it."""
    row = _header(store, path, size, faces)
    problem = _layer_problem(store, layers, row[:2]) if row[-1] == 0 and layers else ""
    return (*row[:-1], CODE[problem]) if problem else row


def _layer_problem(store: Store, layers: list[str], composite_size: tuple[int, int]) -> str:
    """The reason why some of the layers are none of an image of size `whole`."""
    try:
        for path in layers:
            local = store.local(path)
            header = read_header(str(local) if local else store.open(path))
            if problem := layer_problem(composite_size, header.size, header.has_alpha):
                return problem
    except (BadImage, Missing, FileNotFoundError, Refused, OSError):
        return "damaged layer"
    return ""


def _header(store: Store, path: str, size: int, faces: bool) -> Row:
    """Facts of one file. Raises Unreachable when the storage as a whole does not answer."""
    try:
        if is_clip(path):
            clip = probe(store.local(path) or store.open(path, size))
            face = (
                _locate_face(read_frames(store.local(path) or store.open(path, size), FIRST)[0]) if faces else NO_FACE
            )
            return clip.width, clip.height, clip.frames, clip.fps, clip.duration, *face, 0, 0
        local = store.local(path)
        header = read_header(str(local) if local else store.open(path, size))
        face = _locate_face(np.asarray(load_rgb(store.read(path)))) if faces else NO_FACE
        return *header.size, 1, 0.0, 0.0, *face, int(header.traits), 0
    except BadImage as bad:
        return *NOTHING, CODE[bad.reason]
    except (Missing, FileNotFoundError):
        return *NOTHING, CODE["vanished"]
    except (Refused, OSError):
        return *NOTHING, CODE["unreadable"]


def _locate_face(pixels: np.ndarray) -> tuple[float, float]:
    from darkroom.media.faces import locate_face

    return locate_face(pixels) or NO_FACE
