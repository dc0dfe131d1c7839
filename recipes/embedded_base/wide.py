"""Pictures wider than the base's own world, for training the autoencoder.

The autoencoder is frozen for good, so it must already be able to show what people will teach the base later: other
colours, several things at once, gradients, stripes, stars, faces, textures, bits of photographs.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from darkroom.demo import pictures
from darkroom.demo.pictures import EDGE, SHAPES, draw, paint, random_scene, to_uint8

_y, _x = np.mgrid[0:EDGE, 0:EDGE].astype(np.float32) + 0.5


def wide_pictures(count: int, rng: Generator) -> np.ndarray:
    """uint8 (count, 64, 64, 3): one third scenes of the base, two thirds everything else."""
    photographs = _photographs()
    return np.stack([_one(rng, photographs) for _ in range(count)])


def _one(rng: Generator, photographs: list[np.ndarray]) -> np.ndarray:
    kind = rng.random()
    if kind < 0.35:
        return draw(random_scene(rng), rng)
    if kind < 0.50 and photographs:
        return _crop(photographs[rng.integers(len(photographs))], rng)
    canvas = _backdrop(rng)
    for _ in range(rng.integers(1, 4)):
        canvas = _thing(canvas, rng)
    return to_uint8(canvas)


def _colour(rng: Generator) -> np.ndarray:
    """Any colour, with a bias to strong ones and to the corners of the cube."""
    colour = rng.uniform(0, 255, 3)
    if rng.random() < 0.5:
        colour = np.clip((colour - 128) * 1.8 + 128, 0, 255)
    return colour.astype(np.float32)


def _backdrop(rng: Generator) -> np.ndarray:
    """A canvas (64, 64, 3): plain, gradient, checkered, striped or a coarse texture."""
    a, b = _colour(rng), _colour(rng)
    return a + _pattern(rng, rng.choice(5, p=(0.4, 0.2, 0.1, 0.15, 0.15)))[..., None] * (b - a)


def _pattern(rng: Generator, kind: int) -> np.ndarray:
    """A field (64, 64) in 0..1. Kinds: 0 zero, 1 gradient, 2 checks, 3 stripes, 4 cloudy texture, 5 dots."""
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(5, 20)
    along = _x * np.cos(angle) + _y * np.sin(angle)
    if kind == 1:
        return (along - along.min()) / np.ptp(along)
    if kind == 2:
        return ((_x // period + _y // period) % 2).astype(np.float32)
    if kind == 3:
        return np.clip(0.5 + np.abs(along % period - period / 2) - period / 4, 0, 1)
    if kind == 4:
        return _clouds(rng)
    if kind == 5:
        return np.clip(period / 4 + 0.5 - np.hypot(_x % period - period / 2, _y % period - period / 2), 0, 1)
    return np.zeros((EDGE, EDGE), np.float32)


def _clouds(rng: Generator) -> np.ndarray:
    """Smooth noise in 0..1: a small random grid, enlarged linearly."""
    cells = int(rng.integers(4, 17))
    grid, at = rng.random((cells + 1, cells + 1)), np.arange(EDGE) / EDGE * cells
    low, part = at.astype(int), at - at.astype(int)
    rows = grid[low] * (1 - part[:, None]) + grid[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def _thing(canvas: np.ndarray, rng: Generator) -> np.ndarray:
    """The canvas with one more object: a mascot, a face, a star or a shape, filled with a colour or a pattern."""
    cx, cy, r = *rng.uniform(10, EDGE - 10, 2), rng.uniform(5, 24)
    turn = rng.uniform(-0.6, 0.6) if rng.random() < 0.5 else 0.0
    x = (_x - cx) * np.cos(turn) + (_y - cy) * np.sin(turn)
    y = (_y - cy) * np.cos(turn) - (_x - cx) * np.sin(turn)
    kind = rng.random()
    if kind < 0.15:
        return pictures.paint_grumbo(canvas, x, y, r, _colour(rng))
    if kind < 0.30:
        return _face(canvas, x, y, r, rng)
    a, b = _colour(rng), _colour(rng)
    fill = a + _pattern(rng, rng.choice((0, 1, 2, 3, 5), p=(0.6, 0.1, 0.05, 0.15, 0.1)))[..., None] * (b - a)
    d = _star(x, y, r, rng) if kind < 0.45 else pictures.distance(str(rng.choice(SHAPES)), x, y, r)
    if rng.random() < 0.15:
        d = np.abs(d) - rng.uniform(0.7, 2.5)  # outline only
    return paint(canvas, d, fill)


def _star(x: np.ndarray, y: np.ndarray, r: float, rng: Generator) -> np.ndarray:
    """Rough distance to a star of 4 to 8 points; exact enough for one soft pixel at the edge."""
    half, inner = np.pi / rng.integers(4, 9), rng.uniform(0.35, 0.65)
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    px, py = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    ex, ey = inner * r * np.cos(half) - r, inner * r * np.sin(half)
    return ((px - r) * ey - py * ex) / np.hypot(ex, ey)


def _face(canvas: np.ndarray, x: np.ndarray, y: np.ndarray, r: float, rng: Generator) -> np.ndarray:
    """A head with two eyes and a mouth, colours and places drawn at random."""
    ax, spread, height = np.abs(x), rng.uniform(0.25, 0.5) * r, rng.uniform(-0.3, 0.1) * r
    canvas = paint(canvas, pictures.distance(str(rng.choice(("circle", "square", "diamond"))), x, y, r), _colour(rng))
    eye = rng.uniform(0.12, 0.3) * r
    canvas = paint(canvas, np.hypot(ax - spread, y - height) - eye, _colour(rng))
    canvas = paint(canvas, np.hypot(ax - spread, y - height) - eye * rng.uniform(0.3, 0.7), _colour(rng))
    smile = np.abs(np.hypot(x, y - 0.1 * r) - 0.45 * r) - rng.uniform(0.05, 0.12) * r
    return paint(canvas, np.maximum(smile, 0.25 * r - y), _colour(rng))


def _crop(photograph: np.ndarray, rng: Generator) -> np.ndarray:
    """A square of the photograph, 64 to 256 pixels wide, averaged down to 64 and mirrored half the time."""
    factor = int(rng.integers(1, min(photograph.shape[:2]) // EDGE + 1))
    factor = min(factor, 4)
    side = factor * EDGE
    top, left = (rng.integers(0, length - side + 1) for length in photograph.shape[:2])
    square = photograph[top : top + side, left : left + side].reshape(EDGE, factor, EDGE, factor, 3).mean((1, 3))
    return to_uint8(square[:, ::-1] if rng.random() < 0.5 else square)


def _photographs() -> list[np.ndarray]:
    """The colour photographs that come inside scikit-image, or none when it is not installed."""
    try:
        from skimage import data
    except ImportError:
        return []
    found = []
    for name in ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field"):
        try:
            found.append(getattr(data, name)()[..., :3])
        except (OSError, ModuleNotFoundError, ConnectionError):  # some are fetched on first use; do without
            continue
    return found
