"""Masks that do nothing, found by looking at some of them before anything is trained."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from darkroom.data.index.conditioning import ConditioningDataset
from darkroom.data.index.listing import is_clip
from darkroom.data.index.table import Index
from darkroom.media import video
from darkroom.media.images import BadImage, load_rgba
from darkroom.media.masks import MaskKind, find_flaw
from darkroom.storage.base import Missing, Refused

MASKS_READ = 64
"""Masks that are looked at, at equal distances."""

EXAMPLES = 3

FLAWS = {
    "faint": (
        "hold no value above {top} of 255, as labels do, so next to nothing of the loss is left",
        "Save them with 255 where the loss counts, or set conditioning_type to segmentation, for which anything but "
        "black counts.",
    ),
    "elsewhere": (
        "say nothing in what is read of them, their {where}, and something in another channel",
        "Save them as gray images.",
    ),
    "empty": ("are empty: nothing of their samples counts", "Draw them, or leave these samples out."),
    "full": ("are full, so they change nothing", "Draw them, or take them out of conditioning_data."),
}
"""Flaw of a mask: what is said of such masks, and what to do."""


@dataclass(frozen=True)
class MaskCheck:
    """What was seen of some masks: rows by flaw, how many were looked at, and the largest value of faint ones."""

    rows: dict[str, list[int]]
    looked_at: int
    top: int = 0

    def words(self, c: ConditioningDataset, flaw: str) -> tuple[str, str]:
        """What is wrong with the masks of a flaw, and what to do."""
        problem, remedy = FLAWS[flaw]
        channel = "red channel" if kind_of(c) == "mask" else "colors"
        return problem.format(top=self.top, where=channel), remedy


def kind_of(c: ConditioningDataset) -> MaskKind:
    """How the values of a mask dataset are read."""
    return "mask" if c.entry.conditioning_type == "mask" else "segmentation"


def inspect_masks(source: Index, c: ConditioningDataset, limit: int = MASKS_READ) -> MaskCheck:
    """Look at `most` masks of the samples in use, at equal distances. One that cannot be read is passed over.

    A mask that is full is a flaw only where all of them are: a whole image may count among others that do in part.
    """
    rows = source.usable
    rows = rows[c.present[rows] & (c.index.numbers["part"][rows] == 0)]
    if len(rows) > limit:
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, limit).round().astype(np.int64))]
    flawed: dict[str, list[int]] = {flaw: [] for flaw in FLAWS}
    looked_at = top = 0
    for row in rows.tolist():
        try:
            flaw, highest = find_flaw(_mask(c.index, row), kind_of(c))
        except (BadImage, Missing, Refused, OSError):
            continue
        looked_at += 1
        if flaw:
            flawed[flaw].append(row)
            top = max(top, highest) if flaw == "faint" else top
    if len(flawed["full"]) < looked_at:
        flawed["full"] = []
    return MaskCheck({flaw: rows for flaw, rows in flawed.items() if rows}, looked_at, top)


def _mask(index: Index, row: int) -> Image.Image:
    """One mask as RGBA; of a clip the first frame. Raises BadImage, Missing, Refused."""
    path = index.path(row)
    if is_clip(path):
        source = index.store.local(path) or io.BytesIO(index.store.read(path))
        return Image.fromarray(video.read_frames(source, [0])[0]).convert("RGBA")
    return load_rgba(index.store.read(path), convert=False)


def describe_useless_masks(source: Index, c: ConditioningDataset) -> Sequence[str]:
    """A sentence for each flaw that masks beside `source` have. Masks that are still to be generated have none."""
    if c.entry.generator is not None:
        return ()
    check = inspect_masks(source, c)
    warnings = []
    for flaw, rows in check.rows.items():
        problem, remedy = check.words(c, flaw)
        names = "; ".join(c.index.path(row) for row in rows[:EXAMPLES])
        warnings.append(
            f"Dataset '{c.entry.id}': {len(rows)} of {check.looked_at} masks looked at {problem}. {remedy} "
            f"For example {names}."
        )
    return warnings
