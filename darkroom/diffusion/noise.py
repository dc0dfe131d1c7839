"""Noise with a purpose: offset noise, input perturbation, and generators that a checkpoint can hold."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def gaussian_like(x: Tensor, generator: Generator) -> Tensor:
    """Standard normal noise shaped as `x`, drawn where the generator lives and moved to `x`, float32."""
    return torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)


def offset(noise: Tensor, amount: float, generator: Generator) -> Tensor:
    """`noise` plus one normal value per sample and channel: lets a model move a picture's mean brightness."""
    shape = (*noise.shape[:2], *[1] * (noise.ndim - 2))
    return noise + amount * torch.randn(shape, generator=generator, device=generator.device).to(noise.device)


def perturbation(amount: float, steps: int, step: int) -> float:
    """Strength of input perturbation (2301.11706) at `step`: falls to 0 over `steps`, or stays if `steps` is 0."""
    if steps == 0:
        return amount
    return amount * max(0.0, 1 - step / steps)


def seeded(seed: int, *path: int, device: torch.device | str = "cpu") -> Generator:
    """A generator of its own for `seed` and a path of numbers (rank, purpose), far from its neighbours."""
    state = seed & (2**64 - 1)
    for number in path:
        # splitmix64: neighbouring seeds give unrelated streams
        state = (state + 0x9E3779B97F4A7C15 * (number + 1)) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return Generator(device).manual_seed(state & (2**63 - 1))
