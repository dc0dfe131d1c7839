"""A stand-in for the VAE of families that denoise pixels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from darkroom.families.shared.types import Settings


class PixelSpace(torch.nn.Module):
    """A VAE whose latents are the pixels in -1..1."""

    anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.config: Settings = {}
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self.anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """Pixels are never rounded."""
        return torch.float32

    def encode(self, pixels: Tensor) -> Any:
        """`.latent` is `pixels`."""
        return SimpleNamespace(latent=pixels)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The inverse: the pixels themselves."""
        return (latents,)
