"""What a run is trained on, row by row. A checkpoint keeps it, so that a resume can say what has changed since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from darkroom.core.errors import CheckpointError
from darkroom.data.batches.order import DatasetShape
from darkroom.data.index.table import Index
from darkroom.data.planned import PlannedDataset

FILE = "dataset_manifest.parquet"
VERSION = "1"
EXAMPLES = 5
PLACES = ("target_width", "target_height", "top", "left", "start", "count")
"""Columns of the index that say which part of a file is trained on, and in which size."""

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("path", pa.string()),
        ("part", pa.int32()),
        ("content", pa.binary()),
        ("captions", pa.binary()),
        *((name, pa.int32()) for name in PLACES),
    ]
)

# of a DatasetShape, what people do not set: it follows from the rows
_FOLLOWS = frozenset({"id", "bucket_sizes", "scheduled"})

Row = tuple[bytes, bytes, tuple[int, ...]]
"""Content hash, hash of the captions, places; the content is empty until the file was read."""


@dataclass(frozen=True)
class Manifest:
    """The samples of every training dataset and of what is beside them.

    settings  dataset to what decides how often and when it is dealt
    order     a hash of all that decides which sample is in which batch
    rows      (n,) dataset, path, part, content (S32), captions (16 bytes), and PLACES
    """

    settings: Mapping[str, Mapping[str, object]]
    order: str
    rows: pa.Table

    def to_bytes(self) -> bytes:
        """The file's bytes; equal manifests give equal bytes."""
        header = {"version": VERSION, "order": self.order, "settings": json.dumps(self.settings, sort_keys=True)}
        sink = pa.BufferOutputStream()
        pq.write_table(self.rows.replace_schema_metadata(header), sink, compression="zstd")
        return sink.getvalue().to_pybytes()

    def by_dataset(self) -> dict[str, dict[tuple[str, int], Row]]:
        """Dataset to its rows by path and part."""
        by_dataset: dict[str, dict[tuple[str, int], Row]] = {name: {} for name in self.settings}
        columns = [self.rows[name].to_pylist() for name in self.rows.column_names]
        for dataset, path, part, content, captions, *places in zip(*columns, strict=True):
            by_dataset.setdefault(dataset, {})[path, part] = (content.rstrip(b"\0"), captions, tuple(places))
        return by_dataset


def read(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint; None for checkpoints that were made before they had one.

    Raises CheckpointError for one that cannot be read.
    """
    if not (folder / FILE).exists():
        return None
    try:
        table = pq.read_table(folder / FILE, memory_map=False)
        header = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if header["version"] != VERSION:
            raise ValueError(f"it has version {header['version']}, and this Darkroom reads version {VERSION}")
        settings = json.loads(header["settings"])
        if not isinstance(settings, dict) or not all(isinstance(rows, dict) for rows in settings.values()):
            raise ValueError("its settings are no objects")
        if table.schema.remove_metadata() != SCHEMA:
            raise ValueError("its columns are not those of a manifest")
        table.validate(full=True)
        if any(column.null_count for column in table.columns) or set(table["dataset"].to_pylist()) - settings.keys():
            raise ValueError("its rows have gaps, or datasets without settings")
        return Manifest(settings, header["order"], table)
    except (OSError, pa.ArrowException, KeyError, ValueError, RecursionError) as cause:
        raise CheckpointError(
            f"{folder / FILE}\n  What the run was trained on cannot be read: {cause}.\n"
            "  Resume from another checkpoint."
        ) from cause


def manifest_of(datasets: Sequence[PlannedDataset], shapes: Sequence[DatasetShape]) -> Manifest:
    """The manifest of planned datasets, whose order of batches `shapes` decide."""
    tables, settings, order = [], {}, hashlib.sha256()
    for d, shape in zip(datasets, shapes, strict=True):
        settings[d.id] = {
            **{k: v for k, v in vars(shape).items() if k not in _FOLLOWS},
            "is_regularisation_data": d.entry.is_regularisation_data,
            "timestep_sampling_offset": d.entry.timestep_sampling_offset,
        }
        order.update(json.dumps(settings[d.id], sort_keys=True).encode())
        order.update(shape.deals.tobytes())
        settings[d.id]["color_profiles"] = d.entry.color_profiles
        usable = d.index.usable
        tables.append(_rows(d.id, d.index, usable))
        for bucket in d.buckets.buckets:
            order.update("\0".join(d.index.paths.take(pa.array(bucket.rows)).to_pylist()).encode())
            order.update(d.index.numbers["part"][bucket.rows].tobytes())
        for c in d.conditioning:
            name = f"{d.id} with {c.entry.id}"
            settings[name] = {"role": c.role}
            tables.append(_rows(name, c.index, usable[c.present[usable]], has_captions=c.has_captions))
    return Manifest(settings, order.hexdigest(), pa.concat_tables(tables))


def _rows(dataset: str, index: Index, rows: np.ndarray, has_captions: bool = True) -> pa.Table:
    captions = [_digest(index.captions_of(row)) if has_captions else b"" for row in rows.tolist()]
    columns: dict[str, object] = {
        "dataset": pa.array([dataset] * len(rows), pa.string()),
        "path": index.paths.take(pa.array(rows)).cast(pa.string()),
        "part": index.numbers["part"][rows],
        "content": pa.array(index.hashes[rows].tolist(), pa.binary()),
        "captions": pa.array(captions, pa.binary()),
        **{name: index.numbers[name][rows] for name in PLACES},
    }
    return pa.table(columns, schema=SCHEMA)


def _digest(captions: Sequence[str]) -> bytes:
    return hashlib.blake2b("\0".join(captions).encode("utf-8", "surrogatepass"), digest_size=16).digest()


# -- comparing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataChanges:
    """What is other than it was: sentences, and whether the order of batches is another."""

    sentences: tuple[str, ...]
    reorders: bool


def compare(before: Manifest, after: Manifest) -> DataChanges:
    """What has changed between two manifests, dataset by dataset, with some names."""
    old, new = before.by_dataset(), after.by_dataset()
    sentences = [f"Dataset '{name}' is no longer there." for name in old if name not in new]
    sentences += [f"Dataset '{name}' is new." for name in new if name not in old]
    for name in new:
        if name in old:
            parts = [*_diff_settings(before.settings[name], after.settings[name]), *_diff_rows(old[name], new[name])]
            sentences += [f"Dataset '{name}': {'; '.join(parts)}."] if parts else []
    return DataChanges(tuple(sentences), before.order != after.order)


def _diff_settings(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            yield f"{name} {before[name]} then, {after[name]} now"


def _diff_rows(old: dict[tuple[str, int], Row], new: dict[tuple[str, int], Row]) -> Iterator[str]:
    """Files that are gone, new or under another name, and captions, contents and crops that are others."""
    gone, come = [key for key in old if key not in new], [key for key in new if key not in old]
    contents = {old[key][0]: key for key in gone if old[key][0]}
    renamed = {key: contents[new[key][0]] for key in come if new[key][0] in contents}
    moved = set(renamed.values())
    both = [(key, old[key], new[key]) for key in old if key in new]
    kinds = {
        "removed": [path for path, _ in (key for key in gone if key not in moved)],
        "added": [path for path, _ in (key for key in come if key not in renamed)],
        "renamed": [f"{old_key[0]} to {new_key[0]}" for new_key, old_key in renamed.items()],
        "with another content": [key[0] for key, a, b in both if a[0] and b[0] and a[0] != b[0]],
        "with another caption": [key[0] for key, a, b in both if a[1] != b[1]],
        "in another size or crop": [key[0] for key, a, b in both if a[2] != b[2]],
    }
    for kind, names in kinds.items():
        if names:
            yield f"{len(names)} {kind} ({_some(names)})"


def _some(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:EXAMPLES]) + (", ..." if len(distinct) > EXAMPLES else "")
