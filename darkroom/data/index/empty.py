"""What to say of a dataset without a usable sample."""

from __future__ import annotations

from darkroom.core.errors import DataError
from darkroom.core.units import THINNEST
from darkroom.data.index import captions as cap
from darkroom.data.index.sizing import sizing_of
from darkroom.data.index.table import Index
from darkroom.media.images import INSTALL, READERS
from darkroom.media.resize import square_edge
from darkroom.options.datasets import SampleDataset


def empty_report(dataset: SampleDataset, index: Index, removed: dict[str, int], effective: int) -> DataError:
    """The error for a dataset without a usable sample: what was found, what was left out, under which limits."""
    problems = [f"{count} {reason}" for reason, count in {**removed, **(index.problems or {})}.items()]
    edge = square_edge(sizing_of(dataset, alignment=8, rounding=2))
    minimum = dataset.minimum_image_size
    noun = "clip" if dataset.dataset_type == "video" else "picture"
    return DataError(
        f"Dataset '{dataset.id}' ({dataset.dataset_type}) has no usable {noun}.\n"
        f"  Folder: {index.store.name}\n"
        f"  {noun.capitalize()}s found: {len(index)}; left out: {', '.join(problems) or 'none'}.\n"
        f"  Asked for: batch {dataset.train_batch_size}, repeats {dataset.repeats}, effective batch {effective}, "
        f"about {edge}x{edge} pixels ({dataset.resolution_type}), minimum size "
        f"{minimum if minimum is not None else 'none'}, "
        f"captions by {cap.source_name(dataset)}.\n"
        "  " + _remedy(len(index), removed)
    )


def _remedy(count: int, removed: dict[str, int]) -> str:
    if count == 0:
        return "Put pictures (.jpg, .png, .webp, ...) into the folder or below it, or correct instance_data_dir."
    first = max(removed, key=lambda reason: removed[reason], default="")
    if first in (reader.missing for reader in READERS):
        return f"Install it with: {INSTALL}"
    return {
        "missing caption": "Write a .txt file with the same name beside each picture, or choose another "
        "caption_strategy.",
        "empty caption": "Write something into the caption files, or choose another caption_strategy.",
        "resolution_filter": "Lower minimum_image_size, or bring larger pictures.",
        "too thin": f"Cut them to a shape whose longer edge is at most {THINNEST} times the shorter one.",
        "insufficient_for_batch": "Lower train_batch_size, raise repeats, or add pictures of the same shape.",
        "not in the table": "Check filename_column and identifier_includes_extension in the parquet block.",
        "too_short": "Lower num_frames (or target_frames) in the video block, or bring longer clips.",
        "too_long": "Raise max_frames in the video block, or cut the clips.",
        "no layers": "Put each picture's layers beside it, name_0.png, name_1.png, ... for name.png.",
        "missing layer": "Number the layers of each picture without a gap.",
        "damaged layer": "Replace the layers that cannot be read.",
        "layer of another size": "Make every layer as large as its picture.",
        "layer without alpha": "Save the layers with an alpha channel, for example as RGBA PNG.",
        "missing companion": "Bring a conditioning picture of the same name for each, or leave conditioning_data out.",
    }.get(first, "Replace the pictures that are left out, or remove the limit that excludes them.")
