"""Image to video: the first frame stays clean, and every token of the network has its own timestep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom.families.base import Family

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from torch import Tensor

    from darkroom.options.config import Config

IMAGE_TO_VIDEO = "image_to_video"


class FirstFrameFamily(Family):
    """Base class of families with image-to-video flavours; those support `image_to_video`."""

    @property
    def is_image_to_video(self) -> bool:
        """Is this an image-to-video flavour?"""
        return IMAGE_TO_VIDEO in self.spec.supports

    def sample_identity(self, options: Config) -> dict[str, object]:
        return {"starts_from": "first frame"} if self.is_image_to_video else {}


def noise_fractions(latents: Tensor, first: Tensor) -> Tensor:
    """The factor of each latent frame's noise level, (B, 1, F, 1, 1): `first` (B,) for the first frame, else 1.

    latents (B, C, F, h, w). A clip of one frame gets its full noise: there is nothing else to learn.
    """
    from darkroom.core.transfer import to_device

    shares = latents.new_ones(len(latents), 1, latents.shape[2], 1, 1)
    if latents.shape[2] > 1:
        shares[:, :, 0] = to_device(first, shares.device).to(shares).view(-1, 1, 1, 1)
    return shares


def token_times(time: Tensor, shares: Tensor, per_frame: int) -> Tensor:
    """Timesteps (B, N) of tokens, frame by frame, `per_frame` tokens each, from those of samples, (B,)."""
    return (time[:, None] * shares.flatten(1).to(time)).repeat_interleave(per_frame, dim=1)


def to_images(pixels: Tensor) -> list[PILImage]:
    """Images (B, 3, H, W) in -1..1 as PIL images."""
    from PIL import Image

    rows = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(row) for row in rows]
