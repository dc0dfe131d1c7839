"""The types that families speak of: settings, arguments and conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Settings = Mapping[str, Any]
"""A component's settings, as its `config.json` has them."""

Kwargs = dict[str, Any]
"""Arguments of a stock pipeline's call."""

Cond = dict[str, Any]
"""What a denoiser is given beside latents and time: batched tensors (B, ...) by name, or tuples of them."""


class Autoencoder(Protocol):
    """A VAE of diffusers, or what stands in its place where pixels themselves are denoised."""

    @property
    def config(self) -> Any: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def encode(self, pixels: Tensor, /) -> Any:
        """What holds the latents of pixels (B, 3, H, W), or (B, 3, F, H, W), in -1..1."""

    def decode(self, latents: Tensor, /, return_dict: bool = True) -> Any:
        """The way back."""
