"""Beta schedules of the discrete processes.

DDPM 2006.11239; cosine 2102.09672; zero terminal SNR 2305.08891; Wuerstchen 2306.00637.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor


def betas(kind: str, start: float, end: float, steps: int = 1000) -> Tensor:
    """Betas of a `linear`, `scaled_linear` or `squaredcos_cap_v2` schedule, (steps,) float32."""
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    if kind == "squaredcos_cap_v2":
        bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        return torch.tensor([min(1 - after / before, 0.999) for before, after in itertools.pairwise(bar)])
    raise ValueError(f"unknown beta schedule '{kind}'")


def betas_from_curve(offset: float, scaler: float, steps: int = 1000) -> Tensor:
    """Betas of Wuerstchen's schedule, which knows times 0..1 and no steps: index i of N stands for time i / (N - 1)."""
    times = torch.linspace(0, 1, steps, dtype=torch.float64)
    times = 1 - (1 - times) ** scaler if scaler > 1 else times**scaler
    bar = torch.cos((times + offset) / (1 + offset) * math.pi / 2) ** 2
    bar = (bar / math.cos(offset / (1 + offset) * math.pi / 2) ** 2).clamp(0.0001, 0.9999)
    return (1 - bar / torch.cat([bar.new_ones(1), bar[:-1]])).float()


def rescale_to_zero_terminal_snr(values: Tensor) -> Tensor:
    """Betas stretched so that the last step is pure noise and the first is unchanged (2305.08891, algorithm 1)."""
    root = (1 - values).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * first / (first - last)
    alpha_bar = root**2
    alphas = torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return 1 - alphas


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """What the discrete processes read: alpha_bar and the signal-to-noise ratio, both (N,)."""

    values: Tensor
    # alpha_bar and the signal-to-noise ratio where they are read, by device: a copy in every step would be waited for
    copies: dict[torch.device, tuple[Tensor, Tensor]] = dataclasses.field(default_factory=dict, repr=False)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Cumulative product of 1 - beta, (N,)."""
        return (1 - self.values).cumprod(0)

    @cached_property
    def snr(self) -> Tensor:
        """alpha_bar / (1 - alpha_bar), (N,); zero at a rescaled last step."""
        return self.alpha_bar / (1 - self.alpha_bar)

    def alpha_bar_on(self, device: torch.device) -> Tensor:
        """`alpha_bar` on a device, (N,)."""
        return self._on(device)[0]

    def snr_on(self, device: torch.device) -> Tensor:
        """`snr` on a device, (N,)."""
        return self._on(device)[1]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self.copies:
            self.copies[device] = self.alpha_bar.to(device), self.snr.to(device)
        return self.copies[device]

    @classmethod
    def from_scheduler(cls, config: Mapping[str, object], zero_terminal_snr: bool = False) -> NoiseSchedule:
        """Read a diffusers scheduler's config (`beta_schedule`, `beta_start`, `beta_end`, `num_train_timesteps`).

        One of Wuerstchen's has `s` and `scaler` instead.
        """
        if "scaler" in config:
            values = betas_from_curve(_number(config["s"]), _number(config["scaler"]))
        else:
            values = betas(
                str(config.get("beta_schedule", "scaled_linear")),
                _number(config.get("beta_start", 0.00085)),
                _number(config.get("beta_end", 0.012)),
                int(_number(config.get("num_train_timesteps", 1000))),
            )
        if zero_terminal_snr or config.get("rescale_betas_zero_snr"):
            values = rescale_to_zero_terminal_snr(values)
        return cls(values)


def _number(value: object) -> float:
    """A number out of a published config. Raises TypeError for anything else."""
    if isinstance(value, (int, float)):
        return value
    raise TypeError(f"{value!r} is no number")
