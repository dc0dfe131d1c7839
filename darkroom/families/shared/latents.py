"""Pixels to normalised latents and back, from a family's facts and the VAE's own config.

Normalised latents are what the denoiser sees and what the cache holds: unit scale, the pipeline's own convention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.families.shared.spec import Latents


def _scale(z: Tensor, vae: Any) -> Tensor:
    return z * vae.config.scaling_factor


def _unscale(z: Tensor, vae: Any) -> Tensor:
    return z / vae.config.scaling_factor


def _shift_scale(z: Tensor, vae: Any) -> Tensor:
    return (z - vae.config.shift_factor) * vae.config.scaling_factor


def _unshift_scale(z: Tensor, vae: Any) -> Tensor:
    return z / vae.config.scaling_factor + vae.config.shift_factor


def _per_channel(numbers: Any, z: Tensor) -> Tensor:
    """One number per channel, shaped to broadcast over z (B, C, ...)."""
    import torch

    return torch.as_tensor(numbers).to(z).view(1, -1, *[1] * (z.ndim - 2))


def _standardise(z: Tensor, vae: Any) -> Tensor:
    return (z - _per_channel(vae.config.latents_mean, z)) / _per_channel(vae.config.latents_std, z)


def _unstandardise(z: Tensor, vae: Any) -> Tensor:
    return z * _per_channel(vae.config.latents_std, z) + _per_channel(vae.config.latents_mean, z)


def _by_statistics(z: Tensor, vae: Any) -> Tensor:
    """By numbers that the VAE keeps among its weights."""
    return (z - _per_channel(vae.latents_mean, z)) * vae.config.scaling_factor / _per_channel(vae.latents_std, z)


def _back_by_statistics(z: Tensor, vae: Any) -> Tensor:
    return z * _per_channel(vae.latents_std, z) / vae.config.scaling_factor + _per_channel(vae.latents_mean, z)


def _unshuffle(z: Tensor, by_place: bool) -> Tensor:
    """(B, C, H, W) to (B, 4C, H/2, W/2); of the new channels the old one is outermost, then row, then column.

    By place, row and column are outermost, and the old channel is innermost.
    """
    b, c, h, w = z.shape
    order = (0, 3, 5, 1, 2, 4) if by_place else (0, 1, 3, 5, 2, 4)
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(order).reshape(b, 4 * c, h // 2, w // 2)


def _shuffle(z: Tensor, by_place: bool) -> Tensor:
    """The way back to (B, C, H, W)."""
    b, c, h, w = z.shape
    if by_place:
        grid = z.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        grid = z.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return grid.reshape(b, c // 4, 2 * h, 2 * w)


def _statistics(vae: Any, z: Tensor, least: float | None) -> tuple[Tensor, Tensor]:
    """Mean and spread of every channel as the VAE's batch norm knows them; `least` is the smallest variance."""
    spread = (vae.bn.running_var.float() + (vae.config.batch_norm_eps if least is None else least)).sqrt()
    return vae.bn.running_mean.to(z).view(1, -1, 1, 1), spread.to(z).view(1, -1, 1, 1)


def _unshuffle_standardise(z: Tensor, vae: Any, least: float | None = None, by_place: bool = False) -> Tensor:
    z = _unshuffle(z, by_place)
    mean, spread = _statistics(vae, z, least)
    return (z - mean) / spread


def _unstandardise_shuffle(z: Tensor, vae: Any, least: float | None = None, by_place: bool = False) -> Tensor:
    mean, spread = _statistics(vae, z, least)
    return _shuffle(z * spread + mean, by_place)


NORMALISERS: dict[str, tuple[Callable[[Tensor, Any], Tensor], Callable[[Tensor, Any], Tensor]]] = {
    "pixels": (lambda z, _: z, lambda z, _: z),
    "scale": (_scale, _unscale),
    "shift_scale": (_shift_scale, _unshift_scale),
    "channels": (_standardise, _unstandardise),
    "statistics": (_by_statistics, _back_by_statistics),
    "batch_norm": (_unshuffle_standardise, _unstandardise_shuffle),
    "batch_norm_by_place": (
        partial(_unshuffle_standardise, by_place=True),
        partial(_unstandardise_shuffle, by_place=True),
    ),
    # where the published config is known to be wrong about its smallest variance
    "batch_norm_1e-5": (partial(_unshuffle_standardise, least=1e-5), partial(_unstandardise_shuffle, least=1e-5)),
}
"""By name: what (z, the VAE) become as a latent, and the way back."""


def encode(vae: Any, pixels: Tensor, facts: Latents) -> Tensor:
    """Pixels in -1..1 to normalised latents, float32: (B, 3, H, W) to (B, C, H/f, W/f).

    With a frame axis, (B, 3, F, H, W) becomes (B, C, (F-1)/temporal + 1, H/f, W/f); there a picture is a clip of one
    frame. Layers, (B, 4, F, H, W), become (B, C, F, H/f, W/f). Raises ValueError for a clip that the VAE would cut, or
    for one where the family makes pictures.

    The mean of the posterior is taken, not a draw: one sample has one latent, so a cache entry has one value.
    """
    import torch

    if facts.temporal and pixels.ndim == 4:
        pixels = pixels.unsqueeze(2)
    frames = pixels.shape[2] if pixels.ndim == 5 else 1
    if pixels.ndim != (5 if facts.temporal or facts.layered else 4) or facts.whole_frames(frames) != frames:
        raise ValueError(f"these latents hold no clip of {frames} frames: {tuple(pixels.shape)}, {facts}")
    if facts.layered:
        alone = dataclasses.replace(facts, layered=False)
        return torch.stack([encode(vae, layer, alone) for layer in pixels.unbind(2)], dim=2)
    if facts.framed:
        pixels = pixels.unsqueeze(2)
    with torch.no_grad():
        components = [_encoded(vae.encode(part.to(vae.device, vae.dtype))).float() for part in _parts(pixels, facts)]
    z = torch.cat(components)
    return NORMALISERS[facts.normaliser][0](z.squeeze(2) if facts.framed else z, vae)


def _parts(batch: Tensor, facts: Latents) -> Sequence[Tensor]:
    """What a VAE is given at once."""
    return batch.split(1) if facts.one_by_one else (batch,)


def _encoded(answer: Any) -> Tensor:
    """The mean of what an encoder answers, or its one latent where it knows no distribution."""
    return answer.latent_dist.mode() if hasattr(answer, "latent_dist") else answer.latent


def decode(vae: Any, latents: Tensor, facts: Latents) -> Tensor:
    """The way back: normalised latents to pixels (B, 3, H, W) or (B, 3, F, H, W), about -1..1, float32; 4 of layers.

    Some pipelines hand over what their VAE takes; with other channels than the denoiser's it is known as that.
    """
    import torch

    if facts.layered:
        alone = dataclasses.replace(facts, layered=False)
        return torch.stack([decode(vae, layer, alone) for layer in latents.unbind(2)], dim=2)
    z = latents.to(vae.device)
    if z.shape[1] == facts.channels:
        z = NORMALISERS[facts.normaliser][1](z, vae)
    z = (z.unsqueeze(2) if facts.framed else z).to(vae.dtype)
    # some decoders want to know how much noise is left: none
    told = {"temb": z.new_zeros(1 if facts.one_by_one else len(z))} if vae.config.get("timestep_conditioning") else {}
    with torch.no_grad():
        decoded = [vae.decode(part, **told, return_dict=False)[0].float() for part in _parts(z, facts)]
    pixels = torch.cat(decoded)
    return pixels.squeeze(2) if facts.framed else pixels
