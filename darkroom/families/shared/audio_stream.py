"""The audio of clips as a second stream, which the network denoises beside the video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from diffusers import DiffusionPipeline, ModelMixin
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.families.shared.spec import Latents
    from darkroom.families.shared.types import Cond


class VideoForm(Protocol):
    """What a family knows of its video's latents."""

    @property
    def latents(self) -> Latents: ...

    def to_pipeline(self, latents: Tensor) -> Tensor:
        """Latents as the network takes them."""

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        """The way back."""


class AudioSpec(NamedTuple):
    """The audio format of a family: sample rate in Hz, and channels."""

    rate: int
    channels: int


class AudioStream:
    """Base class: `format` is that of the waveforms which it encodes."""

    format: AudioSpec

    def encode(self, components: SampleEncoders, waveforms: Tensor, seconds: float) -> Cond:
        """Cache entries of audio waveforms (B, channels, N) in its format, `seconds` long."""
        raise NotImplementedError

    def normalize(self, vae: ModelMixin, latents: Tensor) -> Tensor:
        """Latents of the audio VAE, normalized for the network."""
        raise NotImplementedError

    def predict(
        self, form: VideoForm, model: Module, x_t: Mapping[str, Tensor], t: Tensor, cond: Cond
    ) -> dict[str, Tensor]:
        """The predictions of the video and the audio, each as its x_t."""
        raise NotImplementedError

    def extract(self, pipe: DiffusionPipeline, output: Sequence[Tensor]) -> tuple[np.ndarray, int]:
        """The audio (channels, N) in -1..1 and its rate, of what the pipeline returned."""
        raise NotImplementedError
