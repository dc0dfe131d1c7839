"""An exponential moving average of the trained weights, kept in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def decay_at(step: int, top: float) -> float:
    """Decay for the update after optimizer step `step` (from 1): 0 at first, then (1 + m) / (10 + m), at most `top`."""
    m = max(0, step - 1)
    return 0.0 if m == 0 else min((1 + m) / (10 + m), top)


class EMA:
    """Shadows of parameters: shadow <- d shadow + (1 - d) weight, every `ema_update_interval` steps.

    Shadows live on the CPU or the accelerator as `ema_device` says; `ema_cpu_only` also computes there.
    """

    def __init__(self, named: dict[str, nn.Parameter], options: Any):
        self.named, self.options = named, options
        self.decay = 0.0
        stay = options.ema_device == "accelerator" and not options.ema_cpu_only
        self.shadows = {
            name: p.detach().to(p.device if stay else "cpu", torch.float32).clone() for name, p in named.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`."""
        if step % self.options.ema_update_interval:
            return
        self.decay = decay_at(step, self.options.ema_decay)
        shadows = list(self.shadows.values())
        weights = [self._weight(name, p) for name, p in self.named.items()]
        if self.options.ema_foreach_disable or len({s.device for s in shadows}) > 1:
            for shadow, weight in zip(shadows, weights, strict=True):
                shadow.lerp_(weight, 1 - self.decay)
        else:
            torch._foreach_lerp_(shadows, weights, 1 - self.decay)

    def _weight(self, name: str, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().to(self.shadows[name].device, torch.float32)

    def state(self) -> dict[str, Tensor]:
        """Shadows by parameter name, on the CPU."""
        return {name: shadow.cpu().contiguous() for name, shadow in self.shadows.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put shadows back. Raises KeyError if one is missing."""
        for name, shadow in self.shadows.items():
            shadow.copy_(state[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model's weights are the averaged ones."""
        kept = {name: p.detach().clone() for name, p in self.named.items()}
        try:
            with torch.no_grad():
                for name, p in self.named.items():
                    p.copy_(self.shadows[name])
            yield
        finally:
            with torch.no_grad():
                for name, p in self.named.items():
                    p.copy_(kept[name])
