"""Clips that start from a given frame: it is left clean, and every token of the network has a time of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from darkroom.families.base import Family

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.options.config import Config

IMAGE_TO_VIDEO = "image_to_video"


class FromFirstFrame(Family):
    """Families with flavours that draw every clip from its first frame; those support `image_to_video`."""

    def starts(self, options: Config) -> bool:
        """Is this such a flavour?"""
        return IMAGE_TO_VIDEO in self.supports_for(options.model_flavour)

    def sample_identity(self, options: Config) -> dict[str, Any]:
        return {"starts_from": "first frame"} if self.starts(options) else {}


def noise_shares(latents: Tensor, first: Tensor) -> Tensor:
    """What share of its noise level each latent frame gets, (B, 1, F, 1, 1): `first` (B,) for the first, else 1.

    latents (B, C, F, h, w). A clip of one frame has nothing else to learn and gets its whole noise.
    """
    from darkroom.core.transfer import to_device

    shares = latents.new_ones(len(latents), 1, latents.shape[2], 1, 1)
    if latents.shape[2] > 1:
        shares[:, :, 0] = to_device(first, shares.device).to(shares).view(-1, 1, 1, 1)
    return shares


def token_times(time: Tensor, shares: Tensor, per_frame: int) -> Tensor:
    """Times (B, N) of the tokens, frame by frame, `per_frame` of them each, from those of the samples, (B,)."""
    return (time[:, None] * shares.flatten(1).to(time)).repeat_interleave(per_frame, dim=1)


def stills(pixels: Tensor) -> list[Any]:
    """Pictures (B, 3, H, W) in -1..1 as PIL pictures."""
    from PIL import Image

    rows = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(row) for row in rows]
