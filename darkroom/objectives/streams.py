"""Streams: what of a sample is denoised side by side. An image or a video is one stream, its audio another.

A stream is noised, predicted and compared like any other; what tells it apart are its noise, mask and weight.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from darkroom.diffusion.losses import mean_per_sample
from darkroom.diffusion.process import Process, per_sample


@dataclasses.dataclass(frozen=True)
class Noise:
    """What a stream is mixed with, and what the network learns to find: both as x0.

    They differ where `input_perturbation` shows the network a little more noise than it is told of.
    """

    added: Tensor
    learned: Tensor


@dataclasses.dataclass(frozen=True)
class Stream:
    """One stream of a batch with noise in it.

    name         `families.base.LATENTS` for images and videos, else the family's name for it
    x0           (B, C, ...), clean, float32
    noise        as x0
    t            (B,), the samples' noise levels
    x_t          as x0, what the network is given
    noise_share  (B, 1, F, 1, 1), the share of the noise level that each latent frame gets; None: all of it everywhere
    mask         (B, 1, ...), 0..1: where the loss counts; None: everywhere
    weight       (B,), how much each sample counts in the mean; None: all alike
    """

    name: str
    x0: Tensor
    noise: Noise
    t: Tensor
    x_t: Tensor
    noise_share: Tensor | None = None
    mask: Tensor | None = None
    weight: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A stream with what the network predicts for it and what it should predict, both as x0, float32."""

    stream: Stream
    prediction: Tensor
    target: Tensor


def add_noise(
    process: Process,
    name: str,
    x0: Tensor,
    noise: Noise,
    t: Tensor,
    noise_share: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Stream:
    """The stream of clean x0 (B, C, ...) at the noise levels t (B,); see `Stream` for the rest."""
    level = t if noise_share is None else per_sample(t, x0) * noise_share.to(x0)
    return Stream(name, x0, noise, t, process.mix(x0, noise.added, level), noise_share, mask, weight)


def average_per_sample(error: Tensor, stream: Stream) -> Tensor:
    """The mean (B,) of an error as x0, over the places of a stream that count."""
    if stream.noise_share is not None:
        error = error * _weigh_noised_places(stream.noise_share)
    return mean_per_sample(error, stream.mask)


def average(errors: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of errors (B,) as a scalar, by the samples' weights (B,); 0 where no sample counts."""
    if weight is None:
        return errors.mean()
    return (errors * weight).sum() / weight.sum().clamp(min=1)


def _weigh_noised_places(noise_share: Tensor) -> Tensor:
    """Weights that leave out what was given without noise; the others make up for it, so that the mean is theirs."""
    counts = (noise_share > 0).float()
    return counts / counts.flatten(1).mean(1).clamp(min=1e-8).view(-1, *[1] * (noise_share.ndim - 1))
