"""musubi-tuner's size arithmetic (kohya-ss): buckets of one area in fixed steps, and control images near a size.

Sizes are (width, height) in pixels. An image is scaled to cover its bucket, halves rounded up, and cropped at the
centre.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

Pair = tuple[int, int]


@functools.lru_cache(maxsize=32)
def buckets(area: int, step: int) -> tuple[Pair, ...]:
    """All buckets of about `area` pixels, sorted: widths from half the square's edge up to it, both ways round."""
    edge = math.isqrt(area)
    sizes: set[Pair] = set()
    for width in range(edge // 2 // step * step, edge + step, step):
        if width == 0:
            continue
        height = area // width // step * step
        sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def near(size: Pair, area: int, step: int) -> Pair | None:
    """The size of about `area` pixels whose aspect is nearest to that of `size`; used for control images.

    None where every size of that aspect has an edge of less than one step.
    """
    ratio = size[0] / size[1]
    base = int(math.sqrt(area * ratio)) // step * step
    offered = [(w, area // w // step * step) for i in range(-2, 3) if (w := base + i * step) > 0]
    return min((pair for pair in offered if pair[1] > 0), key=lambda pair: abs(pair[0] / pair[1] - ratio), default=None)


def covering(size: Pair, bucket: Pair) -> Pair:
    """`size` scaled until it covers the bucket."""
    if size == bucket:
        return size
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


@dataclass(frozen=True)
class KohyaSizing:
    """How one musubi-tuner dataset chooses sizes; the fields as in its dataset file, `step` by architecture."""

    mode: str = "bucket"
    capped: bool = False
    resolution: Pair = (960, 544)
    enable_bucket: bool = False
    bucket_no_upscale: bool = False
    step: int = 16

    def has_size_for(self, size: Pair) -> bool:
        """Whether there is a size at which an image of `size` can be trained."""
        return self._target(size) is not None

    def target(self, size: Pair) -> Pair:
        """The size that an image of `size` is trained at, for which there is one."""
        target = self._target(size)
        if target is None:
            raise ValueError(f"there is no size in steps of {self.step} for an image of {size[0]}x{size[1]}")
        return target

    def _target(self, size: Pair) -> Pair | None:
        area = self.resolution[0] * self.resolution[1]
        rounded = (max(self.step, size[0] // self.step * self.step), max(self.step, size[1] // self.step * self.step))
        is_within = size[0] * size[1] <= area
        if self.mode == "own":
            return near(size, area, self.step) if self.capped and not is_within else rounded
        if self.mode == "fit":
            return near(size, area, self.step)
        if not self.enable_bucket:
            return self.resolution
        if self.bucket_no_upscale and is_within:
            return rounded
        ratio = size[0] / size[1]
        offered = [pair for pair in buckets(area, self.step) if min(pair) > 0]
        return min(offered, key=lambda pair: abs(pair[0] / pair[1] - ratio), default=None)

    def sizes(self, size: Pair) -> tuple[Pair, Pair]:
        """Target and intermediary of an image of `size`."""
        target = self.target(size)
        return target, covering(size, target)
