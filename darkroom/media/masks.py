"""Loss masks: how much each place of an image counts in the loss, from mask images.

Scaling down averages over areas as torch's `interpolate(mode="area")` does, in exact integers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageChops

FAINT = 32
"""A mask without a value from here on leaves less than an eighth of the loss everywhere: it was saved as labels."""

NEXT_TO_NOTHING = 0.002
"""Share of the loss below which a mask leaves nothing of its sample."""

Flaw = Literal["", "faint", "elsewhere", "empty", "full"]
"""Why a mask does nothing: faint values, a shape in a channel that is not read, no place that counts, or all of it."""

MaskKind = Literal["mask", "segmentation"]
"""`mask`: the first channel scales the loss. `segmentation`: what is not black counts in full, the rest not at all."""


def loss_mask(pixels: np.ndarray, kind: MaskKind, height: int, width: int) -> np.ndarray:
    """Weights float32 (height, width) in 0..1 for a loss of that size, from a mask image uint8 (H, W, 3)."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"a mask is made from a picture uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}")
    if kind == "mask":
        return (area(pixels[..., 0], height, width) / 255).astype(np.float32)
    if kind == "segmentation":
        return (area(pixels.sum(2), height, width) > 0).astype(np.float32)  # a sum is 0 exactly where the mean is
    raise ValueError(f"'{kind}' is no kind of loss mask; choose mask or segmentation")


def find_flaw(mask: Image.Image, kind: MaskKind) -> tuple[Flaw, int]:
    """What is wrong with a mask (RGBA) as `loss_mask` reads it, if anything is, and its highest value."""
    red, green, blue, alpha = mask.split()
    read = red if kind == "mask" else ImageChops.lighter(ImageChops.lighter(red, green), blue)
    low, high = _range(read)
    unread = (green, blue, alpha) if kind == "mask" else (alpha,)
    if low == high and any(len(set(_range(channel))) > 1 for channel in unread):
        return "elsewhere", high
    if kind == "mask" and 0 < high < FAINT:
        return "faint", high
    if _share(read, kind) < NEXT_TO_NOTHING:
        return "empty", high
    if low == 255 or (kind == "segmentation" and low > 0):
        return "full", high
    return "", high


def _share(channel: Image.Image, kind: MaskKind) -> float:
    """How much of the loss is left, 0..1."""
    counts = np.array(channel.histogram())
    weights = np.arange(256) / 255 if kind == "mask" else np.arange(256) > 0
    return float((counts * weights).sum() / counts.sum())


def _range(channel: Image.Image) -> tuple[int, int]:
    low, high = channel.getextrema()
    return int(low), int(high)  # type: ignore[arg-type]


def area(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Means of whole numbers (H, W) over areas: float64 (height, width).

    Place i of n covers rows floor(i H / n) up to, without, ceil((i + 1) H / n), and columns alike: areas overlap where
    H is no multiple of n. Also for more places than there are rows.
    """
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.int64)
    sums[1:, 1:] = values.cumsum(0, np.int64).cumsum(1)
    top, bottom = _edges(values.shape[0], height)
    left, right = _edges(values.shape[1], width)
    total = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    return total / np.outer(bottom - top, right - left)


def _edges(size: int, places: int) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last row of every place."""
    if places < 1:
        raise ValueError(f"a mask needs a height and a width of 1 or more, not {places}")
    i = np.arange(places)
    return i * size // places, -(-(i + 1) * size // places)
