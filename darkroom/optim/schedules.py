"""Learning-rate schedules as plain functions of the step, so that a resumed run needs no saved schedule.

Each row of `SCHEDULES` takes (step, Shape) and returns a factor on the base rate. `step` counts from 0,
and has a fraction where a run's length has changed on the way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from darkroom.options.optimizer import parse_step_rules

if TYPE_CHECKING:
    from darkroom.options.config import Config

TIMESCALE = 10_000
"""Updates after which inverse_sqrt begins to fall where neither a timescale nor a warm-up is given (transformers')."""
REX_FLOOR, REX_ALPHA, REX_BETA = 0.01, 0.1, 0.9
"""musubi-tuner's settings of rex: its lowest rate as a share of the highest, and its two constants."""


@dataclasses.dataclass(frozen=True)
class ScheduleShape:
    """Length and form of a schedule: `warmup`, `decay` and `total` in optimizer steps, `end` as a fraction of the base
    rate, `floor` the same for schedules that name it so (None: their own).

    `rules` are steps before which a factor holds, ascending, and `last` is the factor after them.
    """

    warmup: int
    total: int
    cycles: float = 1.0
    power: float = 1.0
    end: float = 0.0
    decay: int = 0
    timescale: int | None = None
    floor: float | None = None
    alpha: float = REX_ALPHA
    beta: float = REX_BETA
    rules: tuple[tuple[int, float], ...] = ()
    last: float = 1.0

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


def inverse_sqrt(step: float, shape: ScheduleShape) -> float:
    """1 / sqrt, so that the rate is halved after four timescales (2106.04560)."""
    timescale = shape.timescale or shape.warmup or TIMESCALE
    return 1 / math.sqrt((step + timescale - shape.warmup) / timescale)


def cosine_with_min_lr(step: float, shape: ScheduleShape) -> float:
    """`cycles` half cosines from 1 to the floor."""
    floor = shape.floor or 0.0
    progress = (step - shape.warmup) / max(1, shape.total - shape.warmup)
    return max(0.0, floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * shape.cycles * progress)))


def warmup_stable_decay(step: float, shape: ScheduleShape) -> float:
    """From the floor to 1, there until `decay` steps before the end, and by a cosine back to the floor (2404.06395)."""
    floor, fall = shape.floor or 0.0, shape.total - shape.decay
    if step < shape.warmup:
        return floor + (1 - floor) * step / shape.warmup
    if step < fall:
        return 1.0
    progress = (step - fall) / max(1, shape.decay)
    return floor if progress >= 1 else floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * shape.cycles * progress))


def piecewise_constant(step: float, shape: ScheduleShape) -> float:
    """The factor of the first rule whose step is not reached yet."""
    return next((factor for until, factor in shape.rules if step < until), shape.last)


def rex(step: float, shape: ScheduleShape) -> float:
    """REX (2107.04197) as musubi-tuner has it: slow at first, fast at the end; its warm-up starts at the floor.

    Step 0 of a warm-up has the rate of the schedule's own end, as there.
    """
    floor = REX_FLOOR if shape.floor is None else shape.floor
    if shape.warmup > 1 and 1 <= step <= shape.warmup - 1:
        return floor + (1 - floor) * (step - 1) / (shape.warmup - 1)
    rest, position = shape.total - shape.warmup, step - shape.warmup
    if (shape.warmup == 1 and step == 1) or rest <= 0 or position >= rest or position == -1:
        return floor
    left = (rest - position % rest) / rest
    return floor + (1 - floor) * left / (shape.alpha + shape.beta * left)


SCHEDULES: dict[str, Callable[[float, ScheduleShape], float]] = {
    "constant": constant,
    "constant_with_warmup": constant,
    "linear": linear,
    "cosine": cosine,
    "cosine_wave": cosine_wave,
    "cosine_with_restarts": cosine_with_restarts,
    "polynomial": polynomial,
    "sine": sine,
    "inverse_sqrt": inverse_sqrt,
    "cosine_with_min_lr": cosine_with_min_lr,
    "warmup_stable_decay": warmup_stable_decay,
    "piecewise_constant": piecewise_constant,
    "rex": rex,
}
WITHOUT_WARMUP = frozenset({"constant", "sine", "cosine_wave", "warmup_stable_decay", "piecewise_constant", "rex"})
"""Schedules that have no warm-up, or one of their own."""


def build_shape(options: Config, total: int, rate: float) -> ScheduleShape:
    """The schedule of a run of `total` optimizer steps at a base rate."""
    arguments = options.lr_scheduler_args or {}
    numbers = {name: float(value) for name, value in arguments.items() if isinstance(value, int | float)}
    rules, last = parse_step_rules(str(arguments["step_rules"])) if "step_rules" in arguments else ((), 1.0)
    floor = numbers.get("min_lr_ratio", numbers.get("min_lr_rate", options.lr_scheduler_min_lr_ratio))
    return ScheduleShape(
        warmup=int(options.lr_warmup_ratio * total) or options.lr_warmup_steps,
        total=total,
        cycles=numbers.get("num_cycles", options.lr_num_cycles / 2) * 2,
        power=options.lr_power,
        end=options.lr_end / rate if rate else 0.0,
        decay=int(options.lr_decay_ratio * total) or options.lr_decay_steps,
        timescale=options.lr_scheduler_timescale,
        floor=floor,
        alpha=numbers.get("rex_alpha", REX_ALPHA),
        beta=numbers.get("rex_beta", REX_BETA),
        rules=rules,
        last=last,
    )


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
