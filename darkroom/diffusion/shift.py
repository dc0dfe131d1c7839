"""Moving flow times towards the noise: larger pictures need more of it to be destroyed (SD3, 2403.03206)."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor


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
        """exp(mu) for a picture of `tokens` image tokens; there is no upper limit."""
        slope = (self.top - self.base) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base + slope * (tokens - self.base_tokens))

    @classmethod
    def from_scheduler(cls, config: dict) -> ShiftLine:
        """Read `base_image_seq_len`, `max_image_seq_len`, `base_shift`, `max_shift`. Raises KeyError without one."""
        return cls(config["base_image_seq_len"], config["max_image_seq_len"], config["base_shift"], config["max_shift"])
