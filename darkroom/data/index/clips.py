"""Which frames of a clip are trained on. A clip may give several samples, or none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from darkroom.data.index.table import CODE, Index
from darkroom.data.requirements import DataRequirements
from darkroom.media.frames import Cut, plan_cuts, thin_frames
from darkroom.options.datasets import VideoBlock


@dataclass(frozen=True)
class Clipping:
    """How one dataset takes frames, with the counts that its family allows."""

    block: VideoBlock
    requirements: DataRequirements

    def length(self, frames: int, duration: float) -> int:
        """Frames of a clip as it is trained on, after its rate was changed."""
        if self.block.fps:
            return max(1, int(duration * self.block.fps + 1e-6)) if duration > 0 else frames
        if self.block.source_fps and self.requirements.fps:
            return len(thin_frames(frames, self.block.source_fps, self.requirements.fps))
        return frames

    def of(self, frames: int, duration: float) -> list[Cut] | str:
        """The parts of a clip that are trained on, or the reason why there are none."""
        b, rule, total = self.block, self.requirements.frames, self.length(frames, duration)
        if b.target_frames or b.frame_extraction != "head":
            targets = [rule.down(n) for n in b.target_frames or ((b.num_frames or total),)]
            clip_cuts = plan_cuts(
                total,
                sorted({n for n in targets if n}),
                b.frame_extraction,
                stride=b.frame_stride,
                sample=b.frame_sample,
                limit=b.max_frames,
                rule=rule,
            )
            return clip_cuts or "too_short"
        if b.max_frames and total > b.max_frames:
            return "too_long"
        target = rule.down(b.num_frames or total)
        if b.bucket_strategy == "resolution_frames" and b.frame_interval:
            target = rule.down(total // b.frame_interval * b.frame_interval or total)
        minimum = rule.down(b.min_frames or (0 if b.frame_interval else target))
        if total < max(minimum, target) or target < 1:
            return "too_short"
        return [Cut(0, target)]


def cut_clips(index: Index, clipping: Clipping | None, is_clip: np.ndarray) -> None:
    """Give every sample its frames: one for an image, a row per part for a clip."""
    at = index.numbers
    at["part"][:], at["start"][:], at["count"][:] = 0, 0, 1
    rows = np.flatnonzero(is_clip & (at["bad"] == 0))
    if clipping is None or len(rows) == 0:
        return
    lengths, inverse = np.unique(np.stack([at["frames"][rows], at["duration"][rows]], 1), axis=0, return_inverse=True)
    clip_cuts = [clipping.of(int(frames), float(duration)) for frames, duration in lengths]
    plans = [clip_cuts[i] for i in inverse.reshape(-1)]
    times = np.ones(len(index), np.int64)
    times[rows] = [1 if isinstance(plan, str) else len(plan) for plan in plans]
    firsts = np.cumsum(times) - times
    index.repeat_rows(times)
    at = index.numbers
    for row, plan in zip(firsts[rows], plans, strict=True):
        if isinstance(plan, str):
            at["unfit"][row] = CODE[plan]
            continue
        part = slice(row, row + len(plan))
        at["start"][part] = [cut.start for cut in plan]
        at["count"][part] = [cut.frames for cut in plan]


def frame_numbers(clipping: Clipping | None, source: np.ndarray, start: int, count: int, fps: float) -> np.ndarray:
    """(count,) numbers of stored frames of one sample. `source` holds the time of every stored frame in seconds.

    A clip that is shorter than asked for, as a control may be, repeats its last frame.
    """
    from darkroom.media.frames import resample_frames

    frames = np.arange(len(source))
    if clipping is not None and clipping.block.fps:
        length = float(source[-1] + (1 / fps if fps else 0)) if len(source) else 0.0
        frames = resample_frames(source, length, clipping.block.fps)
    elif clipping is not None and clipping.block.source_fps and clipping.requirements.fps:
        frames = thin_frames(len(source), clipping.block.source_fps, clipping.requirements.fps)
    return frames[np.minimum(np.arange(start, start + count), len(frames) - 1)]
