"""Noise with a purpose: offset noise, input perturbation, and the seeds of generators.

Noise is drawn on the host, wherever it is used: a seed then gives the same noise on every device, and a checkpoint can
be resumed on another one than it was made on. Nobody waits for the copy, which comes from pinned memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from darkroom.core.transfer import to_device


def gaussian_like(x: Tensor, generator: Generator) -> Tensor:
    """Standard normal noise shaped as `x`, drawn on the host by `generator` and moved to `x`, float32."""
    return _normal(x.shape, generator, x.device)


def add_offset_noise(noise: Tensor, amount: float, generator: Generator) -> Tensor:
    """`noise` plus one normal value per sample and channel: lets a model move an image's mean brightness."""
    shape = (*noise.shape[:2], *[1] * (noise.ndim - 2))
    return noise + amount * _normal(shape, generator, noise.device)


def _normal(shape: Sequence[int], generator: Generator, device: torch.device) -> Tensor:
    """Normal values on `device`, float32."""
    return to_device(torch.randn(shape, generator=generator), device)


def perturbation(amount: float, steps: int, step: int) -> float:
    """Strength of input perturbation (2301.11706) at `step`: falls to 0 over `steps`, or stays if `steps` is 0."""
    if steps == 0:
        return amount
    return amount * max(0.0, 1 - step / steps)


def derive_seed(seed: int, *path: int) -> int:
    """A seed of its own, 0..2^63 - 1, for `seed` and a path of numbers (rank, purpose), far from its neighbors."""
    state = seed & (2**64 - 1)
    for number in path:
        # splitmix64: neighbouring seeds give unrelated streams
        state = (state + 0x9E3779B97F4A7C15 * (number + 1)) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state & (2**63 - 1)
