"""From prepared samples to tensors, in the forms that the sample cache stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from darkroom.data.cache.text import TextEncoders
from darkroom.data.requirements import DataRequirements

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.data.cache.latents import Encode

EncodePixels = Callable[..., "Tensor | Mapping[str, Tensor]"]
"""(B, 3, H, W), (B, 3, F, H, W) or (B, 4, F, H, W) float32 in -1..1 to latents, or to several tensors of which one is
"latents". Where sound is trained on, that of each sample follows, (channels, N) or None."""


@dataclass(frozen=True)
class PixelEncoder:
    """An encoder of images or clips: its identity, and what runs it, which may be left out where nothing is encoded."""

    identity: str
    encode: EncodePixels | None = None


@dataclass(frozen=True)
class Encoders:
    """The encoders that make the caches of a run.

    `conditioning` encodes what lies beside samples, of which nothing but latents is kept; left out, `samples` does.
    """

    text: TextEncoders
    samples: PixelEncoder
    conditioning: PixelEncoder | None = None


def stack_pixels(samples: Sequence[np.ndarray]) -> Tensor:
    """uint8 (H, W, C) each to (B, C, H, W), or (F, H, W, C) each to (B, C, F, H, W), float32 in -1..1."""
    import torch

    stacked = torch.from_numpy(np.stack(samples)).movedim(-1, 1)
    return stacked.to(torch.float32).div_(127.5).sub_(1.0)


def make_latent_encoder(encode: EncodePixels, hears: bool = False) -> Encode:
    """The encoder of latents and whatever the family keeps beside them; one that `hears` is given the sounds too."""

    def run(samples: list[np.ndarray], audio: list[np.ndarray | None]) -> list[Mapping[str, Tensor]]:
        encoded = encode(stack_pixels(samples), audio) if hears else encode(stack_pixels(samples))
        named = encoded if isinstance(encoded, Mapping) else {"latents": encoded}
        counts = {name: len(tensor) for name, tensor in named.items()}
        if set(counts.values()) != {len(samples)}:
            raise ValueError(f"the encoder returned {counts} latents for {len(samples)} samples")
        return [{name: tensor[i] for name, tensor in named.items()} for i in range(len(samples))]

    return run


def make_mask_encoder(kind: Literal["mask", "segmentation"], requirements: DataRequirements) -> Encode:
    """Where the loss counts, at the size of the latents: "mask" (1, h, w), or (1, f, h, w) for families with a frame
    axis, one mask for all layers; 0..1."""
    import torch

    from darkroom.media.masks import loss_mask

    def encode_mask(pixels: np.ndarray) -> Tensor:
        height, width = pixels.shape[-3] // requirements.downscale, pixels.shape[-2] // requirements.downscale
        if pixels.ndim == 3:
            mask = torch.from_numpy(loss_mask(pixels, kind, height, width))
            return mask[None, None] if requirements.has_frames else mask[None]
        frames = torch.from_numpy(np.stack([loss_mask(frame, kind, height, width) for frame in pixels]))
        return pool_latent_frames(frames, max(1, requirements.temporal))[None]

    return lambda samples, _: [{"mask": encode_mask(pixels)} for pixels in samples]


def pool_latent_frames(frames: Tensor, temporal: int) -> Tensor:
    """(F, h, w) to (f, h, w): the first frame alone, then the mean of every `temporal` frames."""
    import torch

    first, following = frames[:1], frames[1:]
    full_groups = following[: len(following) // temporal * temporal]
    return torch.cat([first, full_groups.reshape(-1, temporal, *frames.shape[1:]).mean(1)])


def keep_pixels(samples: list[np.ndarray], _: list[np.ndarray | None]) -> list[Mapping[str, Tensor]]:
    """Control images that the model sees as pixels: "pixels" uint8 (3, H, W) or (3, F, H, W)."""
    import torch

    return [{"pixels": torch.from_numpy(pixels).movedim(-1, 0).contiguous()} for pixels in samples]
