"""Which frames of a clip are trained on: legal counts, cuts of a clip, and changes of the frame rate.

Everything here is arithmetic on frame numbers, without touching a file. A clip is first brought to the frame rate of
the model (`resampled` or `thinned`) and the frames that are left are then cut (`cuts`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MODES = ("head", "chunk", "slide", "uniform", "full")
"""Ways to take cuts from a clip, as musubi-tuner's `frame_extraction` names them."""

_ROUNDING = 1e-3
"""Seconds by which a time stamp may be late: Matroska and FLV round to whole milliseconds."""


@dataclass(frozen=True)
class FrameRule:
    """Frame counts n that a model can take: n >= offset and (n - offset) a multiple of step. Wan: step 4, offset 1."""

    step: int = 1
    offset: int = 1

    def __post_init__(self) -> None:
        if self.step < 1 or self.offset < 1:
            raise ValueError(f"a frame rule needs step and offset of 1 or more, not {self.step} and {self.offset}")

    def down(self, n: int) -> int:
        """The largest legal count that is not above `n`; 0 when there is none."""
        return 0 if n < self.offset else n - (n - self.offset) % self.step


@dataclass(frozen=True)
class Cut:
    """`frames` frames from frame `start` on, counted in the clip as it is trained."""

    start: int
    frames: int


def plan_cuts(
    total: int,
    targets: Sequence[int],
    mode: str,
    *,
    stride: int = 1,
    sample: int = 1,
    limit: int | None = None,
    rule: FrameRule = FrameRule(),
) -> list[Cut]:
    """The cuts of a clip of `total` frames, shorter lengths first, then by start; empty when the clip is too short.

    `targets` are lengths; each is rounded down to a legal count, and equal ones count once. The mode `full` ignores
    them and takes the clip whole, up to `most` frames (None: no limit). `stride` is the distance of starts in `slide`,
    `sample` the number of starts in `uniform`. Starts that coincide in a short clip are taken once: their cached files
    would have one name.
    """
    if mode not in MODES:
        raise ValueError(f"'{mode}' is no way to extract frames; choose one of {', '.join(MODES)}")
    if stride < 1 or sample < 1:
        raise ValueError(f"frame_stride and frame_sample must be 1 or more, not {stride} and {sample}")
    if mode == "full":
        length = rule.down(total if limit is None else min(total, limit))
        return [Cut(0, length)] if length else []
    lengths = sorted({rule.down(target) for target in targets} - {0})
    return [Cut(start, n) for n in lengths if n <= total for start in _starts(total - n, n, mode, stride, sample)]


def _starts(last: int, length: int, mode: str, stride: int, sample: int) -> Sequence[int]:
    """First frames of the cuts of one length; `last` is the highest that fits."""
    match mode:
        case "head":
            return [0]
        case "chunk":
            return range(0, last + 1, length)
        case "slide":
            return range(0, last + 1, stride)
        case _:
            return sorted(set(np.linspace(0, last, sample, dtype=int).tolist()))


def resample_frames(times: Sequence[float] | np.ndarray, duration: float, fps: float) -> np.ndarray:
    """Frames of a clip at another rate, by time stamps: int64 indices, ascending, some repeated when `fps` is higher.

    Frame k is the one that is on the screen k/fps seconds after the first: frames are never mixed. `times` are
    presentation times in seconds, ascending; `duration` is the time from the first frame to the end of the last one.
    A time stamp up to a millisecond late (less where frames follow each other faster) still counts as in time.
    """
    if not fps > 0:
        raise ValueError(f"a frame rate must be above 0, not {fps}")
    timeline = np.asarray(times, np.float64)
    if not len(timeline):
        return np.zeros(0, np.int64)
    timeline = timeline - timeline[0]
    gaps = np.diff(timeline)
    gaps = gaps[gaps > 0]
    if not (math.isfinite(duration) and duration > 0):
        duration = float(timeline[-1]) + (float(np.median(gaps)) if len(gaps) else 1 / fps)
    late = min(_ROUNDING, 0.25 / fps, 0.25 * float(gaps.min(initial=math.inf)))
    count = max(1, math.ceil((duration - late) * fps))
    return np.searchsorted(timeline, np.arange(count) / fps + late, side="right").astype(np.int64) - 1


def thin_frames(total: int, source: float, target: float) -> np.ndarray:
    """Frames that stay when `source` frames a second become `target`, by number: int64 indices, ascending, each once.

    musubi-tuner's rule: the number of each frame is the sum so far of target / source, as a float that is added up, and
    a frame stays when the whole part of its number differs from that of the frame kept before it. Sums of floats may
    fall just short of a whole number, so that i * target / source would choose other frames. A lower source rate keeps
    every frame.
    """
    if not (source > 0 and target > 0):
        raise ValueError(f"frame rates must be above 0, not {source} and {target}")
    steps = np.full(max(total, 1), target / source)
    steps[0] = 0.0
    numbers = np.floor(np.cumsum(steps))[:total]  # cumsum adds one by one, as a loop does
    return np.flatnonzero(np.diff(numbers, prepend=-1.0)).astype(np.int64)
