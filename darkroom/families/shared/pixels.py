"""What stands in the VAE's place for families that denoise pixels themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class PixelSpace(torch.nn.Module):
    """A VAE whose latents are the pixels in -1..1."""

    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.register_buffer("place", torch.zeros(()), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        """Pixels are never rounded."""
        return torch.float32

    def encode(self, pixels: Tensor) -> Any:
        """`.latent` is `pixels`."""
        return SimpleNamespace(latent=pixels)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The way back."""
        return (latents,)
