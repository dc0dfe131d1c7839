"""Which samples a dataset has: what its storage lists, or what its table names."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from darkroom.data.index.metadata import SampleTable, without_ending
from darkroom.media.images import EXTENSIONS
from darkroom.media.video import VIDEO_ENDINGS
from darkroom.storage.base import Store, ending_of

METADATA_ENDINGS = frozenset([
    ".txt", ".caption", ".captions", ".tags", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".toml", ".yaml", ".yml",
    ".xml", ".md", ".html", ".pdf", ".log", ".ini", ".cfg", ".db", ".sqlite", ".npz", ".npy", ".safetensors", ".pt",
    ".pth", ".bin", ".pkl", ".py", ".sh", ".bat", ".lock", ".aae", ".xmp", ".srt", ".vtt", ".url", ".part",
])  # fmt: skip
"""Endings, in lower case, of what is no sample and nobody takes for one."""


@dataclass
class Listing:
    """Media files with their text files, sorted by path. Sizes in bytes; ages as the storage stamps them."""

    paths: pa.Array  # (n,) string, relative to the root
    size: np.ndarray  # (n,) int64
    mtime: np.ndarray  # (n,) int64
    texts: pa.Array  # (m,) string: paths of the text files, relative and without their ending, each once
    text_size: np.ndarray  # (m,) int64
    text_mtime: np.ndarray  # (m,) int64
    problems: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    folders: int = 0
    other_files: Counter[str] = field(default_factory=Counter)  # files of other kinds, by their ending
    leaving: list[str] = field(default_factory=list)  # links that lead out of the folder, and where to
    text_names: pa.Array | None = None  # (m,) string: paths of the text files as they are; None when they are not known
    stored: bool = False  # taken from an index or a table instead of the storage; text files are as they were
    layers: pa.Array | None = None  # (n,) list<string>: paths of each sample's layers, once they are told apart

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: np.ndarray) -> None:
        """Keep only these samples."""
        self.paths, self.size, self.mtime = self.paths.take(pa.array(rows)), self.size[rows], self.mtime[rows]
        self.layers = None if self.layers is None else self.layers.take(pa.array(rows))

    def with_those_of(self, paths: pa.Array, numbers: dict[str, np.ndarray], hashes: np.ndarray) -> Listing:
        """Also what an index knows the content of and what is gone, as it was."""
        gone = pc.invert(pc.is_in(paths, self.paths)).to_numpy(zero_copy_only=False) & (hashes != b"")
        if not gone.any():
            return self
        rows = np.flatnonzero(gone)
        joined = pa.concat_arrays([self.paths, paths.take(pa.array(rows))])
        order = pc.sort_indices(joined).to_numpy()
        self.size = np.concatenate([self.size, numbers["size"][rows]])[order]
        self.mtime = np.concatenate([self.mtime, numbers["mtime"][rows]])[order]
        self.paths = joined.take(pa.array(order))
        return self

    def as_tables(self) -> tuple[pa.Table, pa.Table]:
        """Media and texts as tables, for other processes."""
        media = pa.table({"paths": self.paths, "size": self.size, "mtime": self.mtime})
        texts = pa.table({"paths": self.texts, "size": self.text_size, "mtime": self.text_mtime})
        if self.text_names is not None:
            texts = texts.append_column("names", self.text_names)
        names = ("problems", "notes", "folders", "other_files", "leaving")
        facts = {name: getattr(self, name) for name in names}
        return media.replace_schema_metadata({"facts": json.dumps(facts | {"stored": self.stored})}), texts

    @classmethod
    def from_tables(cls, media: pa.Table, texts: pa.Table) -> Listing:
        """The inverse of `as_tables`."""
        facts = json.loads((media.schema.metadata or {})[b"facts"])
        facts |= {name: Counter(facts[name]) for name in ("problems", "other_files")}
        if "names" in texts.column_names:
            facts["text_names"] = texts["names"].combine_chunks()
        columns: list[pa.Array | np.ndarray] = []
        for table in (media, texts):
            columns += [table["paths"].combine_chunks(), table["size"].to_numpy(), table["mtime"].to_numpy()]
        make: Callable[..., Listing] = cls
        return make(*columns, **facts)


def endings_of(kind: str) -> frozenset[str]:
    """The endings, in lower case, of the files that a dataset of this type is made of."""
    return {"image": EXTENSIONS, "video": VIDEO_ENDINGS}.get(kind, EXTENSIONS | VIDEO_ENDINGS)


def is_clip(path: str) -> bool:
    """Whether a path names a clip rather than an image."""
    return path[path.rfind(".") :].lower() in VIDEO_ENDINGS


def are_clips(paths: pa.Array) -> np.ndarray:
    """(n,) bool: which paths name clips."""
    endings = "|".join(sorted(ending[1:] for ending in VIDEO_ENDINGS))
    return pc.match_substring_regex(paths, rf"\.(?i:{endings})$").to_numpy(zero_copy_only=False)


def list_samples(
    store: Store,
    endings: frozenset[str],
    text_ending: str = ".txt",
    on_progress: Callable[[int, int], None] | None = None,
) -> Listing:
    """Everything in the store with one of these endings, and the text files beside. Raises DataError.

    `text_ending` is what a text file's name has behind that of its sample, in capitals or not. Where several differ
    only in that, the one that is written as asked for counts.
    """
    listing = store.find(endings | {ending_of(f"x{text_ending}") or text_ending}, on_progress)
    paths = pa.array(listing.paths, pa.string())
    is_text = pc.ends_with(pc.utf8_lower(paths), text_ending.lower()).to_numpy(zero_copy_only=False)
    media = np.flatnonzero(~is_text & ends_in(paths, endings))
    texts = np.flatnonzero(is_text)
    texts = texts[np.argsort([not listing.paths[row].endswith(text_ending) for row in texts], kind="stable")]
    names = paths.take(pa.array(texts))
    stems = pc.utf8_slice_codeunits(names, 0, -len(text_ending))
    _, first = np.unique(stems.dictionary_encode().indices, return_index=True)
    texts, names, stems = texts[first], names.take(pa.array(first)), stems.take(pa.array(first))
    size, mtime = np.array(listing.sizes, np.int64), np.array(listing.stamps, np.int64)
    return Listing(
        paths.take(pa.array(media)),
        size[media],
        mtime[media],
        stems,
        size[texts],
        mtime[texts],
        listing.problems,
        listing.notes,
        listing.folders,
        listing.other_files,
        listing.leaving,
        names,
    )


def ends_in(paths: pa.Array, endings: frozenset[str]) -> np.ndarray:
    """(n,) bool: which names end in one of these, in capitals or not."""
    rule = "|".join(re.escape(ending[1:]) for ending in sorted(endings))
    return pc.match_substring_regex(paths, rf"\.(?i:{rule})$").to_numpy(zero_copy_only=False)


def other_endings(counts: Counter[str], kind: str) -> Counter[str]:
    """What is in the folder of a dataset of type `kind` and no sample of it: the reasons, with the endings, counted.

    Texts and tables that usually lie beside samples are passed over.
    """
    groups: dict[str, Counter[str]] = {}
    for ending, count in counts.items():
        if ending in METADATA_ENDINGS:
            continue
        if ending in EXTENSIONS | VIDEO_ENDINGS:
            reason = f"{'image' if ending in EXTENSIONS else 'video'} in a dataset of type {kind}"
        else:
            reason = "not an image or video ending"
        groups.setdefault(reason, Counter())[ending or "none"] += count
    return Counter({f"{label} ({_describe_common(endings)})": endings.total() for label, endings in groups.items()})


def _describe_common(endings: Counter[str], limit: int = 5) -> str:
    ordered = sorted(endings, key=lambda ending: (-endings[ending], ending))
    return ", ".join(ordered[:limit]) + (", ..." if len(ordered) > limit else "")


def list_table(table: SampleTable) -> Listing:
    """The samples that a table names, sorted, without asking the storage whether they are there."""
    paths = table.keys.take(pc.sort_indices(table.keys))
    none, zeros = np.zeros(0, np.int64), np.zeros(len(paths), np.int64)
    return Listing(paths, zeros, zeros, pa.array([], pa.string()), none, none, stored=True)


def separate_layers(listing: Listing) -> None:
    """Make `cat_0.*`, `cat_1.*`... the layers of `cat.*`, in the order of their numbers, unless they have a text file.

    A sample's age becomes one that changes with any of its layers.
    """
    stems = without_ending(listing.paths)
    captioned = text_of(listing) >= 0
    row_of = {stem: row for row, stem in enumerate(stems.to_pylist())}
    layers: dict[int, list[tuple[int, int]]] = {}
    for row, stem in enumerate(stems.to_pylist()):
        composite, number = layer_of(stem)
        if composite in row_of and not captioned[row]:
            layers.setdefault(row_of[composite], []).append((number, row))
    layered = {row for owned in layers.values() for _, row in owned}
    if lost := sum(len(owned) for row, owned in layers.items() if row in layered):
        listing.problems["layer of a layer"] += lost
    names = listing.paths.to_pylist()
    paths: list[list[str]] = [[] for _ in names]
    mtime = listing.mtime.copy()
    for row, owned in layers.items():
        members = [member for _, member in sorted(owned)]
        paths[row] = [names[member] for member in members]
        stamps = np.stack([listing.size[members], listing.mtime[members]])
        mtime[row] ^= int.from_bytes(hashlib.sha256(stamps.tobytes()).digest()[:7])
    listing.mtime, listing.layers = mtime, pa.array(paths, pa.list_(pa.string()))
    listing.take(np.array([row for row in range(len(names)) if row not in layered], np.int64))


def layer_of(stem: str) -> tuple[str, int]:
    """The image that a name without ending is a layer of, and its number: ("cat", 3) for "cat_3", else ("", -1)."""
    parts = re.fullmatch(r"(.+)_(\d+)", stem)
    return (parts[1], int(parts[2])) if parts else ("", -1)


def choose_samples(listing: Listing, dataset: str, limit: int | None) -> int:
    """Keep at most `most` samples, always the same ones for the same files and dataset id. Returns how many were
    left out."""
    if limit is None or len(listing) <= limit:
        return 0
    rows = list(range(len(listing)))  # the listing is sorted by path
    random.Random(dataset).shuffle(rows)
    left = len(listing) - limit
    listing.take(np.sort(np.array(rows[:limit], np.int64)))
    return left


def text_paths(listing: Listing) -> pa.Array:
    """(n,) string: for each sample the path of its text file, null where there is none or where that is not known."""
    if listing.text_names is None:
        return pa.nulls(len(listing), pa.string())
    rows = text_of(listing)
    return listing.text_names.take(pa.array(rows, mask=rows < 0)).cast(pa.string())


def text_of(listing: Listing) -> np.ndarray:
    """(n,) int64: for each sample the row of its text file, or -1."""
    if len(listing.texts) == 0:
        return np.full(len(listing), -1, np.int64)
    rows = pc.index_in(without_ending(listing.paths), listing.texts)
    return pc.fill_null(rows, -1).to_numpy(zero_copy_only=False).astype(np.int64)
