"""Small operations on images that several generators share. Arrays are uint8 (H, W, 3)."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def add_noise(image: np.ndarray, level: float, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise added to every value; `level` is its standard deviation, with white at 1."""
    noise = generator.standard_normal(image.shape, np.float32) * np.float32(255 * level)
    return to_bytes(image + noise)


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values of 0..255 to the nearest uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def compress_jpeg(image: np.ndarray, quality: int, **options: object) -> np.ndarray:
    """The image after it was stored as JPEG once; `options` are Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=quality, **options)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded.convert("RGB"))


def gray_to_rgb(gray: np.ndarray) -> np.ndarray:
    """uint8 (H, W) to (H, W, 3)."""
    return np.repeat(gray[..., None], 3, axis=2)
