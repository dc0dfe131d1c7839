"""Shrinking an image by exact areas, as OpenCV's INTER_AREA and so musubi-tuner do it.

Each new pixel is the mean of what it covers, where pixels that are covered in part count by their share. Pillow's box
filter takes such pixels whole or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from darkroom.media.resize import Size


def resize_by_area(pixels: np.ndarray, size: Size) -> np.ndarray:
    """uint8 (H, W, C) to uint8 (height, width, C), neither edge larger than before. `size` is (width, height)."""
    width, height = size
    if width > pixels.shape[1] or height > pixels.shape[0]:
        raise ValueError(f"{pixels.shape[1]}x{pixels.shape[0]} pixels cannot be shrunk to {width}x{height}")
    rows = _means(pixels, height)  # (height, W, C)
    columns = _means(rows.swapaxes(0, 1), width)  # (width, height, C)
    return np.rint(columns.swapaxes(0, 1)).clip(0, 255).astype(np.uint8)


def _means(values: np.ndarray, count: int) -> np.ndarray:
    """(N, M, C) to float32 (count, M, C): means over equal parts of the first axis, which may end within a row."""
    if count == len(values):
        return values.astype(np.float32)
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    means = np.empty((count, flat.shape[1]), np.float32)
    scale = len(values) / count
    for i in range(count):
        start, end = i * scale, min((i + 1) * scale, len(values))
        first, last = int(start), min(int(np.ceil(end - 1e-9)), len(values))
        places = np.arange(first, last)
        weights = np.minimum(places + 1, end) - np.maximum(places, start)
        means[i] = (weights / weights.sum()).astype(np.float32) @ flat[first:last].astype(np.float32)
    return means.reshape(count, *values.shape[1:])
