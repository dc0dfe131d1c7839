"""From an image's size to the size it is trained at: resolution, aspect buckets, resizing and cropping.

Everything here is arithmetic on whole pixels, (width, height), without touching an image. An image is first
resized to
its *intermediary* size, which keeps its aspect, and then cropped to its *target* size, whose edges are multiples of the
alignment. Images with equal targets share a bucket; the bucket is named after the target's rounded aspect.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from darkroom.core.units import THINNEST
from darkroom.media.kohya import KohyaSizing, covering

Size = tuple[int, int]
"""(width, height) in pixels."""

NICE_EDGES = {0.25: 512, 0.5: 768, 1.0: 1024, 2.0: 1536, 4.0: 2048}
"""Megapixels within 0.05 of a key mean the usual square of that edge, not the exact root."""


@dataclass(frozen=True)
class Sizing:
    """How one dataset chooses sizes. `value` and the limits are megapixels (`area`) or the shorter edge (`pixel`)."""

    kind: str = "area"
    value: float = 1.048576
    alignment: int = 64
    rounding: int = 2
    crop: bool = False
    crop_aspect: str = "square"
    crop_style: str = "random"
    aspects: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    maximum: float | None = None
    downsample: float | None = None
    max_upscale: float | None = None
    canvas: int | None = None
    longest: int | None = None
    table: Mapping[float, Size] = field(default_factory=dict)
    kohya: KohyaSizing | None = None


@dataclass(frozen=True)
class Sizes:
    """What becomes of one image: resized to `intermediary`, cropped to `target`, kept in bucket `aspect`.

    With `area_down` an image that shrinks is averaged over exact areas, as musubi-tuner does, instead of by Lanczos.
    """

    original: Size
    target: Size
    intermediary: Size
    aspect: float
    area_down: bool = False


def snap(value: float, alignment: int) -> int:
    """The nearest positive multiple of `alignment`; halves go to the even multiple."""
    return max(alignment, round(value / alignment) * alignment)


def aspect_of(size: Size, rounding: int) -> float:
    """Width over height with `rounding` decimals; at least the smallest number that has so many."""
    return max(round(size[0] / size[1], rounding), 10**-rounding)


def is_too_thin(size: Size, sizing: Sizing) -> bool:
    """Whether an image of `size` has no size to be trained at, because its edges differ too much."""
    if max(size) > THINNEST * min(size):
        return True
    return sizing.kohya is not None and not sizing.kohya.has_size_for(size)


def square_edge(sizing: Sizing) -> int:
    """Edge of a square target."""
    if sizing.kind == "pixel":
        return snap(sizing.value, sizing.alignment)
    for megapixels, edge in NICE_EDGES.items():
        if abs(sizing.value - megapixels) < 0.05:
            return snap(edge, sizing.alignment)
    return snap(math.sqrt(sizing.value * 1e6), sizing.alignment)


def area_sizes(aspect: float, original: Size, sizing: Sizing) -> tuple[Size, Size]:
    """Target and intermediary for a number of megapixels and the aspect to reach."""
    edge = snap(int(math.sqrt(sizing.value * 1e6)), sizing.alignment)
    if aspect == 1.0 and original[0] == original[1]:
        return (edge, edge), (edge, edge)
    root = math.sqrt(aspect)
    target = snap(edge * root, sizing.alignment), snap(edge / root, sizing.alignment)
    ratio = original[0] / original[1]
    if target[0] < target[1]:
        width, height = target[0], int(target[0] / ratio)
    else:
        width, height = int(target[1] * ratio), target[1]
    target = sizing.table.get(aspect_of(target, sizing.rounding), target)
    return target, cover((width, height), target, ratio)


def pixel_sizes(aspect: float, original: Size, sizing: Sizing) -> tuple[Size, Size]:
    """Target and intermediary for a shorter edge in pixels and the aspect to reach."""
    edge, ratio = int(sizing.value), original[0] / original[1]
    wide, high = (edge, int(edge / aspect)) if original[0] < original[1] else (int(edge * aspect), edge)
    target = snap(wide, sizing.alignment), snap(high, sizing.alignment)
    if ratio >= 1:
        height = max(target[1], high)
        width = int(height * ratio)
        if width < target[0]:
            width, height = target[0], int(target[0] / ratio)
    else:
        width = max(target[0], wide)
        height = int(width / ratio)
        if height < target[1]:
            width, height = int(target[1] * ratio), target[1]
    return target, (width, height)


def cover(size: Size, target: Size, ratio: float) -> Size:
    """`size` grown along `ratio` until neither edge is shorter than the target's."""
    width, height = size
    if target[0] > width:
        grow = target[0] - width
        width, height = width + grow, height + int(grow / ratio)
    elif target[1] > height:
        grow = target[1] - height
        width, height = width + int(grow * ratio), height + grow
    return grow_to_cover((width, height), target, ratio)


def grow_to_cover(size: Size, target: Size, ratio: float) -> Size:
    """`size`, or the smallest size of aspect `ratio` that covers `target` when it does not."""
    if size[0] >= target[0] and size[1] >= target[1]:
        return size
    if target[0] / target[1] > ratio:
        return target[0], max(target[1], math.ceil(target[0] / ratio - 1e-9))
    return max(target[0], math.ceil(target[1] * ratio - 1e-9)), target[1]


def within_canvas(target: Size, sizing: Sizing) -> Size:
    """The target, shrunk until its area and its longer edge are such as the model declares."""
    target = _within_edge(target, sizing)
    if sizing.canvas is None or target[0] * target[1] <= sizing.canvas:
        return target
    scale, step = math.sqrt(sizing.canvas / (target[0] * target[1])), sizing.alignment
    width, height = (snap(int(edge * scale), step) for edge in target)
    longer_first = True
    while width * height > sizing.canvas and max(width, height) > step:
        if (width >= height) == longer_first and width > step:
            width -= step
        elif height > step:
            height -= step
        else:
            width -= step
        longer_first = not longer_first
    return width, height


def _within_edge(target: Size, sizing: Sizing) -> Size:
    """The target, shrunk until its longer edge fits."""
    if sizing.longest is None or max(target) <= sizing.longest:
        return target
    longest = max(sizing.alignment, sizing.longest // sizing.alignment * sizing.alignment)
    width, height = (min(longest, snap(edge * longest / max(target), sizing.alignment)) for edge in target)
    return width, height


def choose_aspect(original: Size, sizing: Sizing, draw: float) -> float:
    """The aspect that the target should have. `draw` (0..1) decides among random ones."""
    original_aspect = aspect_of(original, sizing.rounding)
    if not sizing.crop or sizing.crop_aspect == "preserve":
        return original_aspect
    if sizing.crop_aspect == "square":
        return 1.0
    offered = [
        (a, w)
        for a, w in zip(sizing.aspects, sizing.weights or [1.0] * len(sizing.aspects), strict=True)
        if is_upscale_allowed(a, original, sizing)
    ]
    if not offered:
        return 1.0
    if sizing.crop_aspect == "closest":
        return min(offered, key=lambda row: abs(row[0] - original_aspect))[0]
    return pick_weighted([a for a, _ in offered], [w for _, w in offered], draw)


def is_upscale_allowed(aspect: float, original: Size, sizing: Sizing) -> bool:
    """Whether reaching `aspect` enlarges neither edge beyond the allowed share."""
    if sizing.max_upscale is None:
        return True
    target = choose_sizes(aspect, original, sizing)[0]
    return all(t <= o * (1 + sizing.max_upscale) for t, o in zip(target, original, strict=True))


def pick_weighted(values: Sequence[float], weights: Sequence[float], draw: float) -> float:
    """The value whose share of the total weight holds `draw` (0..1)."""
    left = draw * sum(weights)
    for value, weight in zip(values, weights, strict=True):
        left -= weight
        if left < 0:
            return value
    return values[-1]


def choose_sizes(aspect: float, original: Size, sizing: Sizing) -> tuple[Size, Size]:
    """Target and intermediary by the dataset's unit."""
    return (pixel_sizes if sizing.kind == "pixel" else area_sizes)(aspect, original, sizing)


def plan_sizes(original: Size, sizing: Sizing, draw: float = 0.0) -> Sizes:
    """All sizes of one image of `original` size that is not too thin; `draw` (0..1) decides a random aspect."""
    if sizing.kohya is not None:
        target, intermediary = sizing.kohya.sizes(original)
        if (fitted := within_canvas(target, sizing)) != target:
            target, intermediary = fitted, covering(original, fitted)
        return Sizes(original, target, intermediary, aspect_of(target, sizing.rounding), area_down=True)
    ratio = original[0] / original[1]
    square = sizing.crop and sizing.crop_aspect == "square"
    target, intermediary = choose_sizes(choose_aspect(original, sizing, draw), original, sizing)
    fitted = within_canvas(target, sizing)
    if fitted != target:
        target, intermediary = fitted, grow_to_cover((0, 0), fitted, ratio)
    aspect = 1.0 if square else aspect_of(target, sizing.rounding)
    if aspect == 1.0:
        target, intermediary = square_sizes(target, intermediary, original, sizing)
    if sizing.crop and sizing.maximum is not None and sizing.downsample is not None:
        intermediary = downsample_size(original, target, intermediary, sizing)
    return Sizes(original, target, intermediary, aspect)


def square_sizes(target: Size, intermediary: Size, original: Size, sizing: Sizing) -> tuple[Size, Size]:
    """Target and intermediary of a bucket of aspect 1.0, whose target is the usual square."""
    edge = min(within_canvas((square_edge(sizing),) * 2, sizing))
    if original[0] == original[1]:
        return (edge, edge), (edge, edge)
    return (edge, edge), grow_to_cover(intermediary, (edge, edge), original[0] / original[1])


def downsample_size(original: Size, target: Size, intermediary: Size, sizing: Sizing) -> Size:
    """The intermediary of an image above `maximum`: shrunk to `downsample`, aspect kept, never below the target."""
    assert sizing.maximum is not None
    assert sizing.downsample is not None
    if measure(original, sizing.kind) <= sizing.maximum:
        return intermediary
    ratio = original[0] / original[1]
    if sizing.kind == "pixel":
        edge = int(sizing.downsample)
        size = (edge, int(edge / ratio)) if ratio < 1 else (int(edge * ratio), edge)
    else:
        pixels = sizing.downsample * 1e6
        size = int(math.sqrt(pixels * ratio)), int(math.sqrt(pixels / ratio))
    return grow_to_cover(size, target, ratio)


def measure(size: Size, kind: str) -> float:
    """A size in the unit of `kind`: the shorter edge, or megapixels."""
    return float(min(size)) if kind == "pixel" else size[0] * size[1] / 1e6


def crop_offset(
    style: str, intermediary: Size, target: Size, values: tuple[float, float] = (0.0, 0.0)
) -> tuple[int, int]:
    """(top, left) of the crop. `draws` (0..1 each: top, left) decide the random style."""
    spare_x, spare_y = max(0, intermediary[0] - target[0]), max(0, intermediary[1] - target[1])
    if style == "corner":
        return 0, 0
    if style in ("center", "centre"):
        return spare_y // 2, spare_x // 2
    return min(spare_y, int(values[0] * (spare_y + 1))), min(spare_x, int(values[1] * (spare_x + 1)))


def draw_stable_values(seed: int, dataset: str, path: str, count: int = 3) -> tuple[float, ...]:
    """`count` numbers in 0..1 (at most 8) that depend only on the seed, the dataset and the image's path.

    An image therefore keeps its crop when others come and go, and when a run is resumed.
    """
    raw = hashlib.blake2b(
        f"{seed}\0{dataset}\0{path}".encode("utf-8", "surrogateescape"), digest_size=8 * count
    ).digest()
    return tuple(int.from_bytes(raw[8 * i : 8 * i + 8], "big") / 2**64 for i in range(count))
