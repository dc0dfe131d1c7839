"""Conditioning images that are made from the samples themselves: edges, masks, small or damaged copies, first frames.

Each is kept as `<path of its sample>.png` (`.mp4` for clips) in the folder of its dataset, with a small table of what
was made from which file under which settings, so that only what changed is made again.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from darkroom.core import files
from darkroom.core.errors import DataError
from darkroom.data.index.listing import is_clip
from darkroom.data.index.table import Index, OnProgress
from darkroom.media import video
from darkroom.media.images import DECODING, BadImage, load_rgb
from darkroom.options.datasets import SampleDataset
from darkroom.options.datasets.locations import LocalFiles
from darkroom.storage.base import Missing, Refused

RECORD = ".generated.parquet"
FIRST_FRAME = "i2v_first_frame"


def recipe(entry: SampleDataset) -> tuple[str, dict[str, object]]:
    """The generator's own name and all its parameters. Raises DataError."""
    from darkroom.media.controls import CONTROLS, validate_params

    assert entry.generator is not None
    try:
        control = CONTROLS[entry.generator.type]
        return control.name, validate_params(entry.generator.type, entry.generator.params)
    except (KeyError, ValueError) as cause:
        text = cause.args[0] if cause.args else str(cause)
        raise DataError(
            f"Dataset '{entry.id}': its pictures cannot be generated: {text}.\n"
            f"  Correct the conditioning block; there are {', '.join(CONTROLS)}."
        ) from cause


def _settings(source: Index, entry: SampleDataset) -> str:
    """What decides the pixels that are made from a file."""
    return files.digest([*recipe(entry), DECODING, source.convert])


def output_of(path: str, name: str) -> str:
    """Where the image made from `path` is kept."""
    return path + (".mp4" if is_clip(path) and name != FIRST_FRAME else ".png")


def missing(source: Index, entry: SampleDataset) -> list[int]:
    """Rows of the source whose image is not there, or was made from another file or with other settings."""
    record = _record(_folder(entry), _settings(source, entry))
    at = source.numbers
    rows = [int(row) for row in source.usable if at["part"][row] == 0]
    return [row for row in rows if record.get(source.path(row)) != (int(at["size"][row]), int(at["mtime"][row]))]


def make(source: Index, entry: SampleDataset, seed: int, on_progress: OnProgress | None = None) -> int:
    """Make what is missing. A sample that cannot be read is passed over: it is reported where it is trained on."""
    name, params = recipe(entry)
    folder, settings = _folder(entry), _settings(source, entry)
    record, rows = _record(folder, settings), missing(source, entry)
    count = 0
    for finished, row in enumerate(rows, 1):
        path = source.path(row)
        try:
            _make_image(source, path, folder / output_of(path, name), name, params, seed)
        except (BadImage, Missing, Refused):
            continue
        record[path] = (int(source.numbers["size"][row]), int(source.numbers["mtime"][row]))
        count += 1
        if on_progress is not None:
            on_progress(finished, len(rows))
        if count % 500 == 0:
            _write(folder, settings, record)
    _write(folder, settings, record)
    return count


def _folder(entry: SampleDataset) -> Path:
    assert isinstance(entry.location, LocalFiles)
    return entry.location.root


def _make_image(source: Index, path: str, target: Path, name: str, params: dict[str, object], seed: int) -> None:
    from darkroom.media.controls import CONTROLS

    control = CONTROLS[name]
    key = hashlib.blake2b(f"{seed}\0{name}\0{path}".encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(key, "little"))
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_clip(path):
        if control.needs_clip:
            raise DataError(
                f"'{path}' is a picture, and {name} is made from clips.\n  Use it in a dataset of type video."
            )
        pixels = np.asarray(load_rgb(source.store.read(path), source.convert))
        _save(target, control(pixels, params, generator))
        return
    clip = source.store.local(path) or io.BytesIO(source.store.read(path))
    facts = video.probe(clip)
    count = 1 if name == FIRST_FRAME else facts.frames
    frames = control.clip(video.read_frames(clip, np.arange(count)), params, generator)
    if name == FIRST_FRAME:
        _save(target, frames[0])
    else:
        with files.write_atomically(target) as temporary:
            video.write_mp4(temporary, frames, facts.fps or 24.0)


def _save(target: Path, pixels: np.ndarray) -> None:
    with files.write_atomically(target) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _record(folder: Path, settings: str) -> dict[str, tuple[int, int]]:
    """What was made under these settings: path to size and age of the file it was made from."""
    try:
        table = pq.read_table(folder / RECORD)
    except (OSError, pa.ArrowException):
        return {}
    if (table.schema.metadata or {}).get(b"settings") != settings.encode():
        return {}
    columns = (table[name].to_pylist() for name in ("path", "size", "mtime"))
    return {path: (size, mtime) for path, size, mtime in zip(*columns, strict=True)}


def _write(folder: Path, settings: str, record: dict[str, tuple[int, int]]) -> None:
    paths = sorted(record)
    table = pa.table(
        {
            "path": pa.array(paths, pa.string()),
            "size": [record[path][0] for path in paths],
            "mtime": [record[path][1] for path in paths],
        }
    ).replace_schema_metadata({b"settings": settings.encode()})
    folder.mkdir(parents=True, exist_ok=True)
    with files.write_atomically(folder / RECORD) as temporary:
        pq.write_table(table, temporary)
