"""Which noise levels are trained. Each sampler draws (B,) values from a generator and nothing else.

Flow: fractions 0..1, 1 = noise (logit-normal and shift: SD3 2403.03206). Discrete: indices 0..N-1.
A sampler held to a range keeps its density there: levels inside are as likely, to each other, as without the range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from darkroom.core.errors import UserError
from darkroom.diffusion.shift import shift_time

# a range that is hit once in a hundred draws is missed so often in a row less than once in 10^43 times
MAX_REDRAWS = 10_000


class TimestepSampler(Protocol):
    """Draws noise levels for a batch."""

    def draw(self, x0: Tensor, generator: Generator) -> Tensor:
        """Noise levels (B,) for latents `x0`; the shape matters only where the shift depends on it."""


def logit_normal(count: int, generator: Generator, scale: float = 1.0, offset: float = 0.0) -> Tensor:
    """sigmoid(scale * (z + offset)), z normal: mass in the middle, thin at both ends."""
    return torch.sigmoid(scale * (torch.randn(count, generator=generator) + offset))


def uniform(count: int, generator: Generator) -> Tensor:
    """Every level as likely as any other."""
    return torch.rand(count, generator=generator)


def beta(count: int, generator: Generator, alpha: float, b: float) -> Tensor:
    """Beta(alpha, b). torch has no seeded Beta draw, so numpy's is seeded by the generator."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).beta(alpha, b, count).astype(np.float32))


def fast(count: int, generator: Generator) -> Tensor:
    """For distilled models: pure noise in seven of ten draws, else 0.75, 0.5 or 0.25."""
    levels = torch.tensor([1.0] * 7 + [0.75, 0.5, 0.25])
    return levels[torch.randint(len(levels), (count,), generator=generator)]


@dataclasses.dataclass(frozen=True)
class FlowTimesteps:
    """A base draw followed by a shift that may depend on the latents' size.

    `base(count, generator)` gives fractions; `shift(x0)` gives k of `shift_time`, 1 leaves them alone. What falls
    outside low..high after the shift is drawn again; `high` itself is outside, unless it is pure noise.
    """

    base: Callable[[int, Generator], Tensor]
    shift: Callable[[Tensor], float] = lambda x0: 1.0
    low: float = 0.0
    high: float = 1.0

    def draw(self, x0: Tensor, generator: Generator) -> Tensor:
        """Fractions (B,) float32."""
        k = self.shift(x0)
        t = self._sample_shifted(len(x0), k, generator)
        if self.low <= 0 and self.high >= 1:
            return t
        for _ in range(MAX_REDRAWS):
            outside = (t < self.low) | ((t >= self.high) & (self.high < 1))
            if not outside.any():
                return t
            t[outside] = self._sample_shifted(int(outside.sum()), k, generator)
        raise UserError(
            f"Noise levels of this run's schedule never fall between {self.low:g} and {self.high:g}.\n"
            "  Use another schedule (without flux_fast_schedule), or a wider range (refiner_training_strength)."
        )

    def _sample_shifted(self, count: int, k: float, generator: Generator) -> Tensor:
        t = self.base(count, generator)
        return t if k == 1.0 else shift_time(t, k)


def bias_weights(
    steps: int, strategy: str = "none", portion: float = 0.25, begin: int = 0, end: int = 1000, multiplier: float = 1.0
) -> Tensor:
    """Draw weights (N,) that sum to 1.

    `later` favours the noisiest indices, `earlier` the cleanest, `range` those from `begin` up to `end`.
    """
    weights = torch.ones(steps)
    count = int(portion * steps)
    if strategy == "later" and count:
        weights[-count:] *= multiplier
    elif strategy == "earlier":
        weights[:count] *= multiplier
    elif strategy == "range":
        weights[begin:end] *= multiplier
    return weights / weights.sum()


def segments(steps: int, count: int, first: int = 0) -> list[tuple[int, int]]:
    """`count` index ranges (low, high), both inclusive, noisiest first, covering first..steps-1.

    Neighbours share one border index, as in the predecessor.
    """
    top = steps - 1
    width = max((top - first + 1) // count, 1)
    ranges = []
    for i in range(count):
        high = max(top - i * width, first)
        low = first if i == count - 1 else max(high - width, first)
        ranges.append((low, high))
    return ranges


@dataclasses.dataclass(frozen=True)
class DiscreteTimesteps:
    """Indices drawn by `weights` (N,), one from each of B equal segments if `segmented`.

    Held to the share low..high of the indices, the weights outside are left out and the segments divide the rest.
    """

    weights: Tensor
    segmented: bool = True
    low: float = 0.0
    high: float = 1.0

    def draw(self, x0: Tensor, generator: Generator) -> Tensor:
        """Indices (B,) int64."""
        first, end = (round(share * len(self.weights)) for share in (self.low, self.high))
        weights = self.weights[first:end]
        if not self.segmented or len(x0) == 1:
            return first + torch.multinomial(weights, len(x0), replacement=True, generator=generator)
        samples = []
        for low, high in segments(len(weights), len(x0)):
            samples.append(first + low + torch.multinomial(weights[low : high + 1], 1, generator=generator))
        return torch.cat(samples)
