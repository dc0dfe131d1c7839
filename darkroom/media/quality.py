"""What a careful eye sees in an image, in numbers: is it sharp, have we seen it before, what does its crop cut off.

Sharpness is the variance of a Laplacian, of the sharpest tenth of an image only: a portrait before a soft background
is a sharp image. Sameness is a hash of the coarse shapes (signs of the lowest frequencies of a cosine transform, 64
bits), confirmed by colors at 16 x 16 pixels, so that two images of one composition are not taken for one image.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from darkroom.media.images import BadImage, load_rgb, make_upright, open_image, to_rgb
from darkroom.media.resize import Sizes

SURELY_SOFT, PERHAPS_SOFT, SOFTER = 12.0, 50.0, 16.0
"""Below the first an image is blurred whatever the others are; below the second if it is also so many times softer
than the middle one. Photographs that are sharp have hundreds to thousands; a blur of 3 pixels leaves less than 12."""

FLAT = 4.0
"""Standard deviation (of 0..255) below which an image shows next to nothing."""

NEAR_BITS, NEAR_COLOR = 10, 16.0
"""Two images are the same to the eye when at most so many of 64 bits differ, and colors by so much on average."""

TILES, MINIATURE = 8, 16


def load_small(data: bytes, edge: int, convert: bool = True) -> Image.Image:
    """The image as RGB, upright, perhaps smaller than it is stored, but with no edge below `edge` for that reason.

    JPEG is decoded at a half, a quarter or an eighth where that is enough: some four times quicker. `convert` as for
    `load_rgb`. Raises BadImage.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "JPEG" and min(image.size) >= 2 * edge:
                image.draft(None, (edge, edge))
                return to_rgb(make_upright(image), convert)
    except Exception:  # whatever it is, the careful reader below names it
        pass
    return load_rgb(data, convert)


def is_see_through(data: bytes) -> bool:
    """Whether any pixel is transparent: what is stored under it becomes visible in training."""
    try:
        with open_image(io.BytesIO(data)) as image:
            if not image.has_transparency_data:
                return False
            alpha = image.convert("RGBA").getchannel("A")
            return int(alpha.getextrema()[0]) < 255  # type: ignore[arg-type]
    except BadImage:
        raise
    except Exception as cause:
        raise BadImage("damaged", type(cause).__name__) from cause


def to_gray(image: Image.Image, edge: int) -> np.ndarray:
    """Brightness float32 (H, W), 0..255, shrunk by averaging until the longer edge is at most `edge` pixels."""
    small = image.convert("L")
    if max(small.size) > edge:
        scale = edge / max(small.size)
        size = max(1, round(small.width * scale)), max(1, round(small.height * scale))
        small = small.resize(size, Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def sharpness(brightness: np.ndarray) -> float:
    """Variance of the Laplacian of (H, W) brightness in the sharpest tenth of 8 x 8 tiles; 0 for a tiny image."""
    if min(brightness.shape) < TILES + 2:
        return 0.0
    g = brightness
    edges = 4 * g[1:-1, 1:-1] - g[:-2, 1:-1] - g[2:, 1:-1] - g[1:-1, :-2] - g[1:-1, 2:]
    h, w = edges.shape[0] // TILES, edges.shape[1] // TILES
    tiles = edges[: h * TILES, : w * TILES].reshape(TILES, h, TILES, w).transpose(0, 2, 1, 3)
    ordered = np.sort(tiles.reshape(TILES * TILES, -1).var(1))
    return float(ordered[-(TILES * TILES // 10) :].mean())


def soft(scores: np.ndarray) -> np.ndarray:
    """(n,) bool: which of these sharpnesses mean a blurred image, seen beside the others."""
    if not len(scores):
        return np.zeros(0, bool)
    middle = float(np.median(scores))
    return (scores < SURELY_SOFT) | ((scores < PERHAPS_SOFT) & (scores * SOFTER < middle))


# ---------------------------------------------------------------------- have we seen it before?


def outline(image: Image.Image) -> int:
    """64 bits that stand for an image's coarse shapes: `imagehash.phash`."""
    import imagehash  # scipy comes with it, and only reports need it

    return int(str(imagehash.phash(image)), 16)


def miniature(image: Image.Image) -> np.ndarray:
    """Colors uint8 (16, 16, 3) of the whole image."""
    return np.asarray(image.resize((MINIATURE, MINIATURE), Image.Resampling.BOX), np.uint8)


def group_similar(outlines: np.ndarray, miniatures: np.ndarray) -> list[list[int]]:
    """Groups of two or more images that are the same to the eye, from uint64 (n,) and uint8 (n, 16, 16, 3).

    Each group is around its first image, in order; an image is in one group at most.
    """
    count = len(outlines)
    colors = miniatures.reshape(count, -1).astype(np.int16)
    is_free = np.ones(count, bool)
    groups = []
    for i in range(count):
        if not is_free[i]:
            continue
        candidates = np.flatnonzero(is_free[i + 1 :]) + i + 1
        near = candidates[np.bitwise_count(outlines[candidates] ^ outlines[i]) <= NEAR_BITS]
        if not len(near):
            continue
        near = near[np.abs(colors[near] - colors[i]).mean(1) <= NEAR_COLOR]
        if len(near):
            is_free[near] = False
            groups.append([i, *near.tolist()])
    return groups


# ---------------------------------------------------------------------- what sizing does to it


def crop_region(sizes: Sizes, crop: tuple[int, int]) -> tuple[float, float, float, float]:
    """What the crop keeps as shares of the image: left, top, width, height."""
    (width, height), (top, left) = sizes.intermediary, crop
    return left / width, top / height, min(1.0, sizes.target[0] / width), min(1.0, sizes.target[1] / height)
