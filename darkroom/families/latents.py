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


NORMALISERS: dict[str, tuple[Callable[[Tensor, Any], Tensor], Callable[[Tensor, Any], Tensor]]] = {
    "scale": (_scale, _unscale),
    "shift_scale": (_shift_scale, _unshift_scale),
}


def encode(vae: Any, pixels: Tensor, facts: Latents) -> Tensor:
    """Pixels (B, 3, H, W) in -1..1 to normalised latents (B, C, H/f, W/f), float32.

    The mean of the posterior is taken, not a draw: one picture has one latent, so a cache entry has one value.
    """
    import torch

    with torch.no_grad():
        z = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
    return NORMALISERS[facts.normaliser][0](z.float(), vae.config)


def decode(vae: Any, latents: Tensor, facts: Latents) -> Tensor:
    """The way back: normalised latents to pixels (B, 3, H, W), about -1..1, float32."""
    import torch

    z = NORMALISERS[facts.normaliser][1](latents, vae.config)
    with torch.no_grad():
        return vae.decode(z.to(vae.device, vae.dtype), return_dict=False)[0].float()
