"""How clean latents and noise are mixed, what the network should answer, and how to read its answer.

One class per prediction type, all with the same five functions. `t` is the noise level of each sample, (B,): a fraction
0..1 for flow matching (1 = pure noise), an index 0..N-1 for the discrete processes (N-1 = noisiest). Flow matching
also mixes by a level for each place, (B, 1, F, 1, 1).

    mix(x0, noise, t) -> x_t          what the network sees
    target(x0, noise, t)              what it should answer
    x0(x_t, pred, t), noise(...)      its answer read as clean latents, or as noise
    level(t)                          noise level as a fraction 0..1, for reports

DDPM 2006.11239; v-prediction 2202.00512; flow matching 2210.02747; rectified flow 2209.03003.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from darkroom.core.transfer import to_device
from darkroom.diffusion.schedules import NoiseSchedule


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """A (B,) vector shaped to broadcast over `like`; values that have all its axes already stay as they are."""
    values = to_device(values, like.device)
    return values if values.ndim == like.ndim else values.view(-1, *[1] * (like.ndim - 1))


class Process(Protocol):
    """What the trainer needs to know of a diffusion process."""

    prediction: str

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def x0(self, x_t: Tensor, pred: Tensor, t: Tensor) -> Tensor: ...
    def noise(self, x_t: Tensor, pred: Tensor, t: Tensor) -> Tensor: ...
    def level(self, t: Tensor) -> Tensor: ...


class Flow:
    """Straight line from data to noise; the answer is the velocity, noise - x0."""

    prediction = "flow_matching"

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(1 - t) x0 + t noise."""
        return torch.lerp(x0, noise, per_sample(t, x0).to(x0.dtype))

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """noise - x0, the velocity towards the noise."""
        return noise - x0

    def x0(self, x_t: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """x_t - t v."""
        return x_t - per_sample(t, x_t) * pred

    def noise(self, x_t: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """x_t + (1 - t) v."""
        return x_t + (1 - per_sample(t, x_t)) * pred

    def level(self, t: Tensor) -> Tensor:
        """The fraction itself."""
        return t


class _Discrete:
    """Variance-preserving mixing by a beta schedule; subclasses say what the answer means."""

    prediction = ""

    def __init__(self, schedule: NoiseSchedule):
        self.schedule = schedule

    def _coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at index t, shaped for `like`."""
        alpha_bar = self.schedule.alpha_bar_on(t.device)[t.long()]
        return per_sample(alpha_bar.sqrt(), like).to(like.dtype), per_sample((1 - alpha_bar).sqrt(), like).to(
            like.dtype
        )

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """a x0 + g noise."""
        a, g = self._coefficients(t, x0)
        return a * x0 + g * noise

    def level(self, t: Tensor) -> Tensor:
        """Index over length."""
        return t.float() / len(self.schedule.alpha_bar)

    def snr(self, t: Tensor) -> Tensor:
        """alpha_bar / (1 - alpha_bar) at index t, (B,)."""
        return self.schedule.snr_on(t.device)[t.long()]


class Epsilon(_Discrete):
    """The answer is the noise."""

    prediction = "epsilon"

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise

    def x0(self, x_t: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        a, g = self._coefficients(t, x_t)
        return (x_t - g * pred) / a

    def noise(self, x_t: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        return pred


class VPrediction(_Discrete):
    """The answer is a noise - g x0."""

    prediction = "v_prediction"

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        a, g = self._coefficients(t, x0)
        return a * noise - g * x0

    def x0(self, x_t: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        a, g = self._coefficients(t, x_t)
        return a * x_t - g * pred

    def noise(self, x_t: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        a, g = self._coefficients(t, x_t)
        return g * x_t + a * pred


class SamplePrediction(_Discrete):
    """The answer is the clean sample."""

    prediction = "sample"

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return x0

    def x0(self, x_t: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        return pred

    def noise(self, x_t: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        a, g = self._coefficients(t, x_t)
        return (x_t - a * pred) / g


DiffusionProcess = Flow | Epsilon | VPrediction | SamplePrediction


def build_process(prediction: str, schedule: NoiseSchedule | None) -> DiffusionProcess:
    """The process of a prediction type; the discrete ones need a noise schedule."""
    if prediction == "flow_matching":
        return Flow()
    if schedule is None:
        raise ValueError(f"prediction type '{prediction}' needs a noise schedule")
    kinds: dict[str, type[Epsilon] | type[VPrediction] | type[SamplePrediction]] = {
        "epsilon": Epsilon,
        "v_prediction": VPrediction,
        "sample": SamplePrediction,
    }
    return kinds[prediction](schedule)
