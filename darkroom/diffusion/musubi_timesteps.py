"""musubi-tuner's ways of drawing noise levels (`timestep_sampling`) and its weights of the loss (`weighting_scheme`).

Levels are fractions 0..1, 1 = noise. u is uniform, n normal; h and w are the last two axes of the latents.
Upstream: kohya-ss/musubi-tuner; densities of `sigma` and the weights: SD3 (2403.03206).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from darkroom.core.errors import UserError
from darkroom.diffusion.noise import derive_seed
from darkroom.diffusion.shift import ShiftLine, shift_time
from darkroom.diffusion.timesteps import MAX_REDRAWS

STEPS = 1000
_CLEAN_MEAN = 5.36  # of the log-SNR that the qinglong modes draw now and then
_IDEOGRAM_LOW, _IDEOGRAM_HIGH = 1 - 1 / (1 + math.exp(-7.5)), 1 - 1 / (1 + math.exp(9.0))

FLUX_LINE = ShiftLine()
QWEN_LINE = ShiftLine(256, 8192, 0.5, 0.9)
KREA2_LINE = ShiftLine(256, 6400, 0.5, 1.15)


@dataclasses.dataclass(frozen=True)
class Density:
    """What the modes share. `scale` is sigmoid_scale, `shift` discrete_flow_shift; `mean` and `std` those of logsnr."""

    scale: float = 1.0
    shift: float = 1.0
    mean: float = 0.0
    std: float = 1.0


Uniform = Callable[[int], Tensor]
"""(count) to values in 0..1 (count,), so that a mode does not know whether they are stratified."""


def _normal(u: Tensor) -> Tensor:
    """Normal values of uniform ones, by the inverse of the distribution."""
    return torch.special.ndtri(u.double().clamp(1e-12, 1 - 1e-12)).float()


def _sigmoid(u: Tensor, d: Density) -> Tensor:
    return torch.sigmoid(d.scale * _normal(u))


def _line(line: ShiftLine, patch: int) -> Callable[[Tensor, Density, int, int], Tensor]:
    """A shift that grows with the image tokens, of which one covers `patch` x `patch` latents."""
    return lambda u, d, h, w: shift_time(_sigmoid(u, d), line.shift((h // patch) * (w // patch)))


def _log_snr(u: Tensor, mean: float, std: float) -> Tensor:
    """sigmoid(-x / 2) for a log-SNR x: (1 - t)^2 / t^2 = e^x."""
    return torch.sigmoid(-(mean + std * _normal(u)) / 2)


def _ideogram4(u: Tensor, d: Density, h: int, w: int) -> Tensor:
    """A logistic of a normal whose mean grows with the logarithm of the pixels; a latent covers 16 x 16."""
    mean = 0.5 * math.log(16 * h * 16 * w / 512**2)
    return torch.sigmoid(mean + 1.5 * _normal(u)).clamp(_IDEOGRAM_LOW, _IDEOGRAM_HIGH)


MODES: Mapping[str, Callable[[Tensor, Density, int, int], Tensor]] = {
    "uniform": lambda u, d, h, w: u,
    "sigmoid": lambda u, d, h, w: _sigmoid(u, d),
    "shift": lambda u, d, h, w: shift_time(_sigmoid(u, d), d.shift),
    "flux_shift": _line(FLUX_LINE, 2),
    "flux2_shift": _line(FLUX_LINE, 1),
    "qwen_shift": _line(QWEN_LINE, 2),
    "krea2_shift": _line(KREA2_LINE, 2),
    "ideogram4_shift": _ideogram4,
    "logsnr": lambda u, d, h, w: _log_snr(u, d.mean, d.std),
}
"""(u, density, h, w) to levels, all (B,)."""

MIXTURES: Mapping[str, tuple[tuple[float, str], ...]] = {
    "qinglong_flux": ((0.79, "flux_shift"), (0.90, "logsnr")),
    "qinglong_qwen": ((0.95, "qwen_shift"),),
}
"""Modes that choose another one for each sample: the share up to which it counts; what is left is nearly clean."""


def mix_modes(name: str, choice: Tensor, u: Tensor, d: Density, h: int, w: int) -> Tensor:
    """Levels (B,) of a mixture, by a uniform `choice` (B,) for each sample."""
    t = _log_snr(u, _CLEAN_MEAN, 1.0)
    for share, mode in reversed(MIXTURES[name]):
        t = torch.where(choice < share, MODES[mode](u, d, h, w), t)
    return t


def sigma_density(u: Tensor, scheme: str, mean: float, std: float, mode_scale: float) -> Tensor:
    """The density of mode `sigma`, (B,) in 0..1: logit_normal, mode, or uniform (SD3, section 3.1)."""
    if scheme == "logit_normal":
        return torch.sigmoid(mean + std * _normal(u))
    if scheme == "mode":
        return 1 - u - mode_scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    return u


def sigma_levels(density: Tensor, low: float, high: float) -> Tensor:
    """Levels (B,) of mode `sigma`, whole thousandths from 1 down to 0.001.

    The density counts from the noisy end, so that `low` and `high` are mirrored, as upstream.
    """
    index = torch.floor((density * (high - low) + low) * STEPS).clamp(0, STEPS - 1)
    return (STEPS - index) / STEPS


def loss_weight(scheme: str, t: Tensor) -> Tensor | None:
    """Factor of each sample's loss (B,): 1 / t^2 for sigma_sqrt, 2 / (pi (1 - 2t + 2t^2)) for cosmap, else None.

    Levels count as the whole thousandths of the schedule, of which the smallest is 0.001.
    """
    if scheme not in ("sigma_sqrt", "cosmap"):
        return None
    sigma = (t * STEPS).round().clamp(1, STEPS) / STEPS
    return sigma**-2.0 if scheme == "sigma_sqrt" else 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


@dataclasses.dataclass(frozen=True)
class MusubiTimesteps:
    """Draws levels by one of the modes.

    minimum..maximum are squeezed into, or with `redraw` drawn again until they are met; low..high is the share of the
    levels that the model itself covers, and what falls outside is drawn again. `strata(count)` gives the number of the
    interval that each sample is drawn from, of `buckets` equal ones.
    """

    mode: str
    density: Density = Density()
    scheme: str = "none"
    mode_scale: float = 1.29
    minimum: float = 0.0
    maximum: float = 1.0
    redraw: bool = False
    low: float = 0.0
    high: float = 1.0
    buckets: int = 0
    strata: Callable[[int], Tensor] | None = None

    def draw(self, x0: Tensor, generator: Generator) -> Tensor:
        """Levels (B,) float32 for latents `x0`."""
        h, w = int(x0.shape[-2]), int(x0.shape[-1])
        interval = self.strata(len(x0)) if self.strata and self.mode != "sigma" else None
        t = self._draw(len(x0), h, w, generator, interval)
        for _ in range(MAX_REDRAWS):
            outside = self._is_outside(t)
            if not outside.any():
                return t
            inner = None if interval is None else interval[outside]
            t[outside] = self._draw(int(outside.sum()), h, w, generator, self._renew(inner, generator))
        raise UserError(
            f"timestep_sampling = {self.mode}\n  Its noise levels never fall into the range that is trained.\n"
            "  Widen min_timestep and max_timestep, or leave preserve_distribution_shape out."
        )

    def _draw(self, count: int, h: int, w: int, generator: Generator, interval: Tensor | None) -> Tensor:
        u = torch.rand(count, generator=generator)
        if interval is not None:
            u = (interval + u) / self.buckets
        if self.mode == "sigma":
            density = sigma_density(u, self.scheme, self.density.mean, self.density.std, self.mode_scale)
            return sigma_levels(density, *((0.0, 1.0) if self.redraw else (self.minimum, self.maximum)))
        if self.mode in MIXTURES:
            t = mix_modes(self.mode, torch.rand(count, generator=generator), u, self.density, h, w)
        else:
            t = MODES[self.mode](u, self.density, h, w)
        return t if self.redraw else t * (self.maximum - self.minimum) + self.minimum

    def _is_outside(self, t: Tensor) -> Tensor:
        outside = (t < self.low) | ((t >= self.high) & (self.high < 1))
        return outside | (t < self.minimum) | (t > self.maximum) if self.redraw else outside

    def _renew(self, interval: Tensor | None, generator: Generator) -> Tensor | None:
        """Other intervals for what is drawn again: those that missed the range would miss it for ever."""
        return None if interval is None else torch.randint(self.buckets, interval.shape, generator=generator)


def stratify(buckets: int, seed: int, rank: int, step: int, count: int) -> Tensor:
    """Intervals (count,) of the samples of one step: each place in the batch meets every interval once in `buckets`
    steps, in an order of its own. A function of the step, so that a resume needs nothing saved."""
    block, position = divmod(step, buckets)
    orders = [
        torch.randperm(buckets, generator=Generator().manual_seed(derive_seed(seed, rank, 5, block, place)))
        for place in range(count)
    ]
    return torch.stack([order[position] for order in orders])
