"""How far a prediction is from its target, element by element, in float32. Pseudo-Huber forms: 2403.16728."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def l2(pred: Tensor, target: Tensor, c: Tensor | float = 0.0) -> Tensor:
    """Squared error."""
    return (pred - target) ** 2


def huber(pred: Tensor, target: Tensor, c: Tensor | float) -> Tensor:
    """2c (sqrt(d^2 + c^2) - c): squared error near zero, linear far away."""
    return 2 * c * (torch.sqrt((pred - target) ** 2 + c**2) - c)


def smooth_l1(pred: Tensor, target: Tensor, c: Tensor | float) -> Tensor:
    """2 (sqrt(d^2 + c^2) - c): squared error over c near zero, linear far away."""
    return 2 * (torch.sqrt((pred - target) ** 2 + c**2) - c)


LOSSES = {"l2": l2, "huber": huber, "smooth_l1": smooth_l1}


def huber_constant(c: float, schedule: str, level: Tensor, spread: Tensor) -> Tensor:
    """The Huber constant of each sample, (B,).

    `level` is the noise level 0..1 and `spread` the q of the `snr` schedule: sqrt((1 - alpha_bar) / alpha_bar) for
    discrete processes. For flow the predecessor takes q = sqrt((1 - t) / (t + 1e-4)), which makes the constant small
    for clean inputs, the opposite of the discrete trend; its values are kept, as configurations were tuned on them.
    """
    if schedule == "constant":
        return torch.full_like(level, c)
    if schedule == "exponential":
        return torch.exp(math.log(c) * level)
    if schedule == "snr":
        return (1 - c) / (1 + spread) ** 2 + c
    raise ValueError(f"unknown Huber schedule '{schedule}'")


def mean_per_sample(error: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over everything but the batch, (B,). A mask (broadcastable, 0..1) multiplies; the divisor stays the same."""
    if mask is not None:
        error = error * mask
    return error.flatten(1).mean(1)
