"""Learning-rate schedules as plain functions of the step, so that a resumed run needs no saved schedule.

Each row of `SCHEDULES` takes (step, Shape) and returns a factor on the base rate. `step` counts from 0,
and has a fraction where a run's length has changed on the way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ScheduleShape:
    """Length and form of a schedule: `warmup` and `total` in optimizer steps, `end` as a fraction of the base rate."""

    warmup: int
    total: int
    cycles: float = 1.0
    power: float = 1.0
    end: float = 0.0

    def progress(self, step: float) -> float:
        """0 at the end of the warm-up, 1 at the last step and after it."""
        return min(1.0, max(0.0, (step - self.warmup) / max(1, self.total - self.warmup)))


def constant(step: float, shape: ScheduleShape) -> float:
    """1, always."""
    return 1.0


def linear(step: float, shape: ScheduleShape) -> float:
    """From 1 to 0 in a straight line."""
    return 1.0 - shape.progress(step)


def cosine(step: float, shape: ScheduleShape) -> float:
    """Half a cosine from 1 to `end`."""
    return shape.end + (1 - shape.end) * 0.5 * (1 + math.cos(math.pi * shape.progress(step)))


def cosine_wave(step: float, shape: ScheduleShape) -> float:
    """A cosine wave between 1 and `end` whose half period is the warm-up length; it has no warm-up of its own."""
    half = shape.warmup or 1000
    return shape.end + (1 - shape.end) * 0.5 * (1 + math.cos(math.pi * step / half))


def cosine_with_restarts(step: float, shape: ScheduleShape) -> float:
    """`cycles` half cosines, each starting again at 1 (SGDR 1608.03983)."""
    progress = shape.progress(step)
    return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * (shape.cycles * progress % 1.0)))


def polynomial(step: float, shape: ScheduleShape) -> float:
    """(1 - progress) to the `power`, from 1 to `end`."""
    return (1 - shape.end) * (1 - shape.progress(step)) ** shape.power + shape.end


def sine(step: float, shape: ScheduleShape) -> float:
    """A sine wave between `end` and 1 whose half period is the warm-up length; it has no warm-up of its own."""
    half = shape.warmup or 1000
    return shape.end + (1 - shape.end) * 0.5 * (1 + math.sin(math.pi * step / half))


SCHEDULES: dict[str, Callable[[float, ScheduleShape], float]] = {
    "constant": constant,
    "constant_with_warmup": constant,
    "linear": linear,
    "cosine": cosine,
    "cosine_wave": cosine_wave,
    "cosine_with_restarts": cosine_with_restarts,
    "polynomial": polynomial,
    "sine": sine,
}
WITHOUT_WARMUP = frozenset({"constant", "sine", "cosine_wave"})


def compute_factor(name: str, step: float, shape: ScheduleShape) -> float:
    """Warm-up, then the named schedule."""
    if name not in WITHOUT_WARMUP and step < shape.warmup:
        return step / shape.warmup
    return SCHEDULES[name](step, shape)


@dataclasses.dataclass
class Scheduler:
    """Sets the rate of every parameter group: its own base rate times the schedule's factor.

    `scheduled` says where on the schedule an update stands.
    """

    optimizer: object
    name: str
    shape: ScheduleShape
    scheduled: Callable[[int], float] = float

    def __post_init__(self) -> None:
        for group in self.optimizer.param_groups:  # type: ignore[attr-defined]
            group.setdefault("base_lr", float(group["lr"]))

    def set(self, step: int) -> float:
        """Set the rates for the update number `step` (from 0) and return the first group's."""
        scale = compute_factor(self.name, self.scheduled(step), self.shape)
        for group in self.optimizer.param_groups:  # type: ignore[attr-defined]
            rate = group["base_lr"] * scale
            if isinstance(group["lr"], Tensor):  # a compiled update reads it there
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        return float(self.optimizer.param_groups[0]["lr"])  # type: ignore[attr-defined]
