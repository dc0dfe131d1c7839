"""Moving flow times towards the noise: larger images need more of it to be destroyed (SD3, 2403.03206)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor

from darkroom.core.errors import ConfigError

# where diffusers keeps the names of settings that a config lacked
FILLED_IN = "_use_default_values"


def shift_time(t: Tensor, k: float) -> Tensor:
    """k t / (1 + (k - 1) t): 0 and 1 stay, k > 1 moves towards noise. k = 3 takes 0.5 to 0.75."""
    return k * t / (1 + (k - 1) * t)


@dataclasses.dataclass(frozen=True)
class ShiftLine:
    """The line through two token counts along which log-shift grows. Flux's numbers are the defaults."""

    base_tokens: int = 256
    max_tokens: int = 4096
    base: float = 0.5
    top: float = 1.15

    def shift(self, tokens: int) -> float:
        """exp(mu) for an image of `tokens` image tokens; there is no upper limit."""
        slope = (self.top - self.base) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base + slope * (tokens - self.base_tokens))

    @classmethod
    def from_scheduler(cls, config: Mapping[str, object], usual: ShiftLine | None = None) -> ShiftLine:
        """The line that a scheduler's config publishes, or the `usual` one of its family.

        Published are `base_image_seq_len`, `max_image_seq_len`, `base_shift` and `max_shift` where the file has all of
        them: those that diffusers fills in say nothing of the model. Raises KeyError where no line is known.
        """
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        missing = [
            name
            for name in names
            if config.get(name) is None or name in cast("Iterable[str]", config.get(FILLED_IN) or ())
        ]
        if not missing:
            return cls(*(cast(float, config[name]) for name in names))  # type: ignore[arg-type] # two are whole
        if usual is None:
            raise KeyError(missing[0])
        return usual


def find_shift_line(scheduler: Mapping[str, object], published: tuple[int, int, float, float] | None) -> ShiftLine:
    """The line of a base's scheduler config, else the family's `published` one. Raises ConfigError if neither is."""
    try:
        return ShiftLine.from_scheduler(scheduler, published and ShiftLine(*published))
    except KeyError as cause:
        static = scheduler.get("flow_shift") or scheduler.get("shift")
        hint = f", such as {static:g}, which it has instead" if static else ""
        raise ConfigError(
            "flow_schedule_auto_shift",
            True,
            "",
            f"The scheduler of this base model says nothing of shifts by size ({cause.args[0]} and its like).",
            f"Take it out, and set flow_schedule_shift{hint}.",
        ) from cause
