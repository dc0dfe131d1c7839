"""Encode pixels to normalized latents and decode them, from a family's `Latents` and the VAE's config.

Normalized latents are the denoiser's input and the content of the cache: unit scale, the pipeline's convention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from torch import Tensor

    from darkroom.families.shared.spec import Latents
    from darkroom.families.shared.types import Autoencoder


def _scale(z: Tensor, vae: Autoencoder) -> Tensor:
    return z * vae.config.scaling_factor


def _unscale(z: Tensor, vae: Autoencoder) -> Tensor:
    return z / vae.config.scaling_factor


def _shift_scale(z: Tensor, vae: Autoencoder) -> Tensor:
    return (z - vae.config.shift_factor) * vae.config.scaling_factor


def _unshift_scale(z: Tensor, vae: Autoencoder) -> Tensor:
    return z / vae.config.scaling_factor + vae.config.shift_factor


def _per_channel(numbers: Sequence[float] | Tensor, z: Tensor) -> Tensor:
    """One number per channel, shaped to broadcast over z (B, C, ...)."""
    import torch

    return torch.as_tensor(numbers).to(z).view(1, -1, *[1] * (z.ndim - 2))


def _standardize(z: Tensor, vae: Autoencoder) -> Tensor:
    return (z - _per_channel(vae.config.latents_mean, z)) / _per_channel(vae.config.latents_std, z)


def _unstandardize(z: Tensor, vae: Autoencoder) -> Tensor:
    return z * _per_channel(vae.config.latents_std, z) + _per_channel(vae.config.latents_mean, z)


def _normalize_by_weights(z: Tensor, vae: ModelMixin) -> Tensor:
    """With statistics that are buffers of the VAE."""
    return (z - _per_channel(vae.latents_mean, z)) * vae.config.scaling_factor / _per_channel(vae.latents_std, z)


def _denormalize_by_weights(z: Tensor, vae: ModelMixin) -> Tensor:
    return z * _per_channel(vae.latents_std, z) / vae.config.scaling_factor + _per_channel(vae.latents_mean, z)


def _unshuffle(z: Tensor, by_position: bool) -> Tensor:
    """(B, C, H, W) to (B, 4C, H/2, W/2); new channels are ordered by old channel, row, column.

    With `by_position` they are ordered by row, column, old channel.
    """
    b, c, h, w = z.shape
    order = (0, 3, 5, 1, 2, 4) if by_position else (0, 1, 3, 5, 2, 4)
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(order).reshape(b, 4 * c, h // 2, w // 2)


def _shuffle(z: Tensor, by_position: bool) -> Tensor:
    """The inverse, to (B, C, H, W)."""
    b, c, h, w = z.shape
    if by_position:
        grid = z.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        grid = z.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return grid.reshape(b, c // 4, 2 * h, 2 * w)


def _statistics(vae: ModelMixin, z: Tensor, min_variance: float | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel from the VAE's batch norm; `min_variance` replaces its eps."""
    spread = (vae.bn.running_var.float() + (vae.config.batch_norm_eps if min_variance is None else min_variance)).sqrt()
    return vae.bn.running_mean.to(z).view(1, -1, 1, 1), spread.to(z).view(1, -1, 1, 1)


def _unshuffle_standardize(
    z: Tensor, vae: Autoencoder, min_variance: float | None = None, by_position: bool = False
) -> Tensor:
    z = _unshuffle(z, by_position)
    mean, spread = _statistics(vae, z, min_variance)
    return (z - mean) / spread


def _unstandardize_shuffle(
    z: Tensor, vae: Autoencoder, min_variance: float | None = None, by_position: bool = False
) -> Tensor:
    mean, spread = _statistics(vae, z, min_variance)
    return _shuffle(z * spread + mean, by_position)


NORMALIZERS: dict[str, tuple[Callable[[Tensor, Autoencoder], Tensor], Callable[[Tensor, Autoencoder], Tensor]]] = {
    "pixels": (lambda z, _: z, lambda z, _: z),
    "scale": (_scale, _unscale),
    "shift_scale": (_shift_scale, _unshift_scale),
    "channels": (_standardize, _unstandardize),
    "statistics": (_normalize_by_weights, _denormalize_by_weights),
    "batch_norm": (_unshuffle_standardize, _unstandardize_shuffle),
    "batch_norm_by_place": (
        partial(_unshuffle_standardize, by_position=True),
        partial(_unstandardize_shuffle, by_position=True),
    ),
    # for published configs with a wrong eps
    "batch_norm_1e-5": (
        partial(_unshuffle_standardize, min_variance=1e-5),
        partial(_unstandardize_shuffle, min_variance=1e-5),
    ),
}
"""Name to a pair of functions of (z, vae): normalize and its inverse."""


def encode(vae: Autoencoder, pixels: Tensor, facts: Latents) -> Tensor:
    """Pixels in -1..1 to normalized latents, float32: (B, 3, H, W) to (B, C, H/f, W/f).

    With a frame axis, (B, 3, F, H, W) becomes (B, C, (F-1)/temporal + 1, H/f, W/f); there an image is a clip of one
    frame. Layers, (B, 4, F, H, W), become (B, C, F, H/f, W/f). Raises ValueError for a clip that the VAE would cut, or
    for one where the family makes images.

    The mean of the posterior is used, not a sample: one image has one latent, so its cache entry is deterministic.
    """
    import torch

    if facts.temporal and pixels.ndim == 4:
        pixels = pixels.unsqueeze(2)
    frames = pixels.shape[2] if pixels.ndim == 5 else 1
    if pixels.ndim != (5 if facts.temporal or facts.layered else 4) or facts.round_frames(frames) != frames:
        raise ValueError(f"these latents hold no clip of {frames} frames: {tuple(pixels.shape)}, {facts}")
    if facts.layered:
        single = dataclasses.replace(facts, layered=False)
        return torch.stack([encode(vae, layer, single) for layer in pixels.unbind(2)], dim=2)
    if facts.framed:
        pixels = pixels.unsqueeze(2)
    with torch.no_grad():
        components = [
            _read_mean(vae.encode(part.to(vae.device, vae.dtype))).float() for part in _split_batch(pixels, facts)
        ]
    z = torch.cat(components)
    return NORMALIZERS[facts.normalizer][0](z.squeeze(2) if facts.framed else z, vae)


def _split_batch(batch: Tensor, facts: Latents) -> Sequence[Tensor]:
    """The batches that the VAE takes at once."""
    return batch.split(1) if facts.single_sample_vae else (batch,)


def _read_mean(answer: Any) -> Tensor:
    """The mean of the encoder's distribution, or its latent if it has none."""
    return answer.latent_dist.mode() if hasattr(answer, "latent_dist") else answer.latent


def decode(vae: Autoencoder, latents: Tensor, facts: Latents) -> Tensor:
    """Normalized latents to pixels (B, 3, H, W) or (B, 3, F, H, W), about -1..1, float32; 4 channels for layers.

    Latents with another number of channels than the denoiser's are taken as the VAE's own, as some pipelines return.
    """
    import torch

    if facts.layered:
        single = dataclasses.replace(facts, layered=False)
        return torch.stack([decode(vae, layer, single) for layer in latents.unbind(2)], dim=2)
    z = latents.to(vae.device)
    if z.shape[1] == facts.channels:
        z = NORMALIZERS[facts.normalizer][1](z, vae)
    z = (z.unsqueeze(2) if facts.framed else z).to(vae.dtype)
    # some decoders take a timestep: 0, no noise is left
    arguments = (
        {"temb": z.new_zeros(1 if facts.single_sample_vae else len(z))}
        if vae.config.get("timestep_conditioning")
        else {}
    )
    with torch.no_grad():
        decoded = [vae.decode(part, **arguments, return_dict=False)[0].float() for part in _split_batch(z, facts)]
    pixels = torch.cat(decoded)
    return pixels.squeeze(2) if facts.framed else pixels
