"""The models that see samples, as families ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from darkroom.families.shared.spec import Latents
    from darkroom.families.shared.types import Autoencoder


class SampleEncoders(Protocol):
    """The models that see samples before training, each loaded when it is asked for."""

    @property
    def latents(self) -> Latents: ...

    def vae(self) -> Autoencoder:
        """The autoencoder."""

    def extra(self, name: str) -> Any:
        """Another component: an image encoder, a processor."""
