"""Does an image show what its scene says? Plain measurements on pixels; nothing here is trained or trained on.

    check(image, scene)        {"background": True, "colour": True, "position": True, "size": False, "shape": True}
    is_grumbo(image, scene)    True when the mint mascot is there, known by its face

The border tells the background; whatever differs from it is the object; the object's box gives position and size;
its outline is compared with the outline of every shape drawn at the same place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from darkroom.demo import pictures
from darkroom.demo.pictures import ATTRIBUTES, COLOURS, EDGE, GRUMBO, MINT, SHAPES, SIZES, Scene

DIFFERENT = 40.0
"""RGB distance from the background above which a pixel may be part of the object; the closest two colors are 86."""
SMALLEST_OBJECT = 30
"""Pixels; anything less is a blemish."""
OUTLINE_MATCH = 0.70
"""Overlap (intersection over union) an outline needs with the best shape."""
FACE_MATCH = 0.60
"""Correlation the object's brightness needs with the drawn face; drawn mascots have
at least 0.80, and only a few small mint rings come near 0.60."""

_NAMES = [*COLOURS, "mint"]
_PALETTE = np.array([*COLOURS.values(), MINT], np.float32)
_y, _x = np.mgrid[0:EDGE, 0:EDGE].astype(np.float32) + 0.5


@dataclass(frozen=True)
class Finding:
    """The object found in an image; lengths in pixels."""

    background: np.ndarray  # (3,) RGB
    colour: np.ndarray  # (3,) RGB
    coverage: np.ndarray  # (64, 64), 0 background to 1 object
    cx: float
    cy: float
    r: float  # half of the longer side of its box


def check(image: np.ndarray, scene: Scene) -> dict[str, bool]:
    """Which attributes of the scene a uint8 (64, 64, 3) image shows: background, colour, position, size, shape."""
    finding = find_object(image)
    name, _ = _background(image.astype(np.float32))
    if finding is None:
        return dict.fromkeys(ATTRIBUTES, False) | {"background": name == scene.background}
    ex, ey = pictures.centre(scene.size, scene.x, scene.y)
    halfway = abs(pictures.centre(scene.size, "right", "center")[0] - EDGE / 2) / 2
    return {
        "background": name == scene.background,
        "colour": _nearest(finding.colour) == scene.colour,
        "position": max(abs(finding.cx - ex), abs(finding.cy - ey)) < halfway,
        "size": min(SIZES, key=lambda size: abs(finding.r - SIZES[size])) == scene.size,
        "shape": is_grumbo(image, scene) if scene.shape == GRUMBO else shape_of(finding) == scene.shape,
    }


def is_grumbo(image: np.ndarray, scene: Scene) -> bool:
    """Whether a uint8 (64, 64, 3) image shows the mascot: a good part mint, with eyes and mouth where they belong.

    The scene is what was asked for; only the mascot is judged here, `check` judges place and background.
    """
    del scene
    finding = find_object(image)
    if finding is None:
        return False
    image, inside = image.astype(np.float32), finding.coverage > 0.5
    mint = np.linalg.norm(image - MINT, axis=2) < 60
    return bool(mint[inside].mean() > 0.25) and face_match(image, finding) > FACE_MATCH


def shape_of(finding: Finding) -> str | None:
    """The shape whose drawing overlaps the object best, or None when none fits well."""
    overlap = {shape: _overlap(finding, shape) for shape in SHAPES}
    best = max(overlap, key=lambda shape: overlap[shape])
    return best if overlap[best] >= OUTLINE_MATCH else None


def face_match(image: np.ndarray, finding: Finding) -> float:
    """Best correlation, -1..1, between the brightness of the object and that of a drawn face near its place."""
    gray = np.pad(_soften(image.mean(2)), 2, mode="edge")
    return max(_face_score(gray, finding.cx, finding.cy, finding.r * scale) for scale in (0.85, 0.95, 1.05))


def find_object(image: np.ndarray) -> Finding | None:
    """The largest thing that differs from the background, or None when there is nothing."""
    image = image.astype(np.float32)
    _, background = _background(image)
    away = np.linalg.norm(image - background, axis=2)
    mask = largest_patch(away > DIFFERENT)
    if mask.sum() < SMALLEST_OBJECT:
        return None
    colour = np.median(image[mask & (away >= np.median(away[mask]))], axis=0)
    axis = colour - background
    along = np.clip((image - background) @ axis / (axis @ axis), 0, 1)
    # A soft edge pixel counts by its share; a part of another color (an eye, a mouth) is still object.
    coverage = np.where(mask, np.where(away > np.linalg.norm(axis) / 2, np.maximum(along, 0.51), along), 0)
    ys, xs = np.nonzero(coverage > 0.5)
    if not len(ys):
        return None
    left, right, top, bottom = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
    r = max(right - left, bottom - top) / 2
    return Finding(background, colour, coverage, (left + right) / 2, (top + bottom) / 2, float(r))


def largest_patch(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected patch of a boolean (64, 64) mask, as such a mask.

    Each pixel starts with its own number and takes the largest among its neighbours' until nothing changes.
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = np.maximum.reduce([labels, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
        spread[~mask] = 0
        if np.array_equal(spread, labels):
            break
        labels = spread
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    return mask & (labels == counts.argmax())


def _background(image: np.ndarray) -> tuple[str, np.ndarray]:
    """The background's color word and its RGB value: what most of the 2-pixel border is."""
    border = np.concatenate(
        [image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, :2].reshape(-1, 3), image[:, -2:].reshape(-1, 3)]
    )
    labels = np.linalg.norm(border[:, None] - _PALETTE, axis=2).argmin(1)
    label = np.bincount(labels).argmax()
    return _NAMES[label], np.median(border[labels == label], axis=0)


def _nearest(colour: np.ndarray) -> str:
    return _NAMES[int(np.linalg.norm(_PALETTE - colour, axis=1).argmin())]


def _overlap(finding: Finding, shape: str) -> float:
    """Intersection over union of the object and a drawn shape; soft edges count by their share."""
    rendered = np.clip(0.5 - pictures.distance(shape, _x - finding.cx, _y - finding.cy, finding.r), 0, 1)
    return float(np.minimum(rendered, finding.coverage).sum() / np.maximum(rendered, finding.coverage).sum())


def _face_score(gray: np.ndarray, cx: float, cy: float, r: float) -> float:
    """Best correlation of a face drawn at that place with brightness (68, 68) up to 2 pixels away from it.

    `gray` has a rim of 2 pixels, so that the shifted windows stay inside.
    """
    top, bottom = max(0, int(cy - 0.35 * r)), min(EDGE, int(cy + 0.85 * r) + 1)
    left, right = max(0, int(cx - 0.8 * r)), min(EDGE, int(cx + 0.8 * r) + 1)
    x, y = (_x - cx)[top:bottom, left:right], (_y - cy)[top:bottom, left:right]
    rendered = _soften(pictures.paint_grumbo(np.zeros((*x.shape, 3), np.float32), x, y, r, np.array(MINT)).mean(2))
    windows = (gray[top + dy : bottom + dy, left + dx : right + dx] for dy in range(5) for dx in range(1, 4))
    return max(_correlation(window, rendered) for window in windows)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two fields; about 0 when one of them is flat."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-3))


def _soften(field: np.ndarray) -> np.ndarray:
    """Mean of every 3 x 3 neighbourhood: an autoencoder blurs the eyes of a small face, and the drawing must match."""
    padded = np.pad(field, 1, mode="edge")
    rows, columns = field.shape
    return np.mean([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=0)
