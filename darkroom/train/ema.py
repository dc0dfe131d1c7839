"""An exponential moving average of the trained weights, in float32."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from darkroom.core.transfer import Arrivals

if TYPE_CHECKING:
    from darkroom.options.config import Config


def compute_decay(step: int, top: float) -> float:
    """Decay for the update after optimizer step `step` (from 1): 0 at first, then (1 + m) / (10 + m), at most `top`."""
    m = max(0, step - 1)
    return 0.0 if m == 0 else min((1 + m) / (10 + m), top)


def is_on_accelerator(options: Config) -> bool:
    """Are shadows on the accelerator? Those of an adapter are small; a whole model's would take as much again."""
    device = options.ema_device
    if device == "auto":
        device = "cpu" if options.model_type == "full" else "accelerator"
    return device == "accelerator" and not options.ema_cpu_only


class EMA:
    """Shadows of parameters: shadow <- d shadow + (1 - d) weight, every `ema_update_interval` steps.

    Shadows are in CPU RAM or on the accelerator, as `ema_device` says, and are updated there.
    """

    def __init__(self, named: dict[str, nn.Parameter], options: Config):
        self.named, self.options = named, options
        self.decay = 0.0
        self.arrivals = Arrivals()
        stay = is_on_accelerator(options)
        self.shadows = {
            name: p.detach().to(p.device if stay else "cpu", torch.float32).clone() for name, p in named.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the shadows with the weights after optimizer step `step`."""
        if step % self.options.ema_update_interval:
            return
        self.decay = compute_decay(step, self.options.ema_decay)
        together: list[tuple[Tensor, Tensor]] = []
        for name, parameter in self.named.items():
            shadow, weight = self.shadows[name], parameter.detach()
            if weight.device == shadow.device and not self.options.ema_foreach_disable:
                together.append((shadow, weight.float()))
            elif weight.device == shadow.device:
                self._update_shadow(shadow, weight)
            else:
                self.arrivals.send(weight, functools.partial(self._update_shadow, shadow))
        for device in {shadow.device for shadow, _ in together}:
            pairs = [pair for pair in together if pair[0].device == device]
            torch._foreach_lerp_([shadow for shadow, _ in pairs], [weight for _, weight in pairs], 1 - self.decay)
        self.arrivals.land()

    def _update_shadow(self, shadow: Tensor, weight: Tensor) -> None:
        shadow.lerp_(weight.to(shadow), 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Shadows by parameter name, on the CPU."""
        return {name: shadow.cpu().contiguous() for name, shadow in self.shadows.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put shadows back. Raises KeyError if one is missing."""
        for name, shadow in self.shadows.items():
            shadow.copy_(state[name])

    @contextlib.contextmanager
    def use_average(self) -> Iterator[None]:
        """Inside, the model's weights are the averaged ones; its own are in CPU RAM: a GPU with a model and
        its optimizer's state may have no room for one more.
        """
        originals = {name: p.detach().to("cpu", copy=True) for name, p in self.named.items()}
        try:
            with torch.no_grad():
                for name, p in self.named.items():
                    p.copy_(self.shadows[name])
            yield
        finally:
            with torch.no_grad():
                for name, p in self.named.items():
                    p.copy_(originals[name])
