"""Pixels to normalised latents and back, from a family's facts and the VAE's own config.

Normalised latents are what the denoiser sees and what the cache holds: unit scale, the pipeline's own convention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.families.facts import Latents


def _scale(z: Tensor, config: Any) -> Tensor:
    return z * config.scaling_factor


def _unscale(z: Tensor, config: Any) -> Tensor:
    return z / config.scaling_factor


def _shift_scale(z: Tensor, config: Any) -> Tensor:
    return (z - config.shift_factor) * config.scaling_factor


def _unshift_scale(z: Tensor, config: Any) -> Tensor:
    return z / config.scaling_factor + config.shift_factor


def _per_channel(numbers: Any, z: Tensor) -> Tensor:
    """A list of one number per channel, shaped to broadcast over z (B, C, ...)."""
    return z.new_tensor(numbers).view(1, -1, *[1] * (z.ndim - 2))


def _standardise(z: Tensor, config: Any) -> Tensor:
    return (z - _per_channel(config.latents_mean, z)) / _per_channel(config.latents_std, z)


def _unstandardise(z: Tensor, config: Any) -> Tensor:
    return z * _per_channel(config.latents_std, z) + _per_channel(config.latents_mean, z)


NORMALISERS: dict[str, tuple[Callable[[Tensor, Any], Tensor], Callable[[Tensor, Any], Tensor]]] = {
    "scale": (_scale, _unscale),
    "shift_scale": (_shift_scale, _unshift_scale),
    "channels": (_standardise, _unstandardise),
}


def encode(vae: Any, pixels: Tensor, facts: Latents) -> Tensor:
    """Pixels in -1..1 to normalised latents, float32: (B, 3, H, W) to (B, C, H/f, W/f).

    With a frame axis, (B, 3, F, H, W) becomes (B, C, (F-1)/temporal + 1, H/f, W/f); there a picture is a clip of one
    frame. Raises ValueError for a clip that the VAE would cut, or for one where the family makes pictures.

    The mean of the posterior is taken, not a draw: one sample has one latent, so a cache entry has one value.
    """
    import torch

    if facts.temporal and pixels.ndim == 4:
        pixels = pixels.unsqueeze(2)
    frames = pixels.shape[2] if pixels.ndim == 5 else 1
    if pixels.ndim != (5 if facts.temporal else 4) or facts.whole_frames(frames) != frames:
        raise ValueError(f"these latents hold no clip of {frames} frames: {tuple(pixels.shape)}, {facts}")
    with torch.no_grad():
        z = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
    return NORMALISERS[facts.normaliser][0](z.float(), vae.config)


def decode(vae: Any, latents: Tensor, facts: Latents) -> Tensor:
    """The way back: normalised latents to pixels (B, 3, H, W) or (B, 3, F, H, W), about -1..1, float32."""
    import torch

    z = NORMALISERS[facts.normaliser][1](latents, vae.config)
    with torch.no_grad():
        return vae.decode(z.to(vae.device, vae.dtype), return_dict=False)[0].float()
