"""The caches of a run: which encoders make them, and how they are filled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from darkroom.core.events import Warn
from darkroom.data.cache.encoders import Encoders, PixelEncoder
from darkroom.data.cache.filler import CacheFiller, RequiredCaptions
from darkroom.data.cache.text import TextEncoders
from darkroom.families.shared.text import find_truncated
from darkroom.families.shared.text_encoding import encode_caption_with_images, encode_captions
from darkroom.job.phases import phase
from darkroom.job.run import Run
from darkroom.job.stages import encode_latents, encode_sample
from darkroom.pretrained.components import Components
from darkroom.pretrained.repository import Repository
from darkroom.validate.prompts import Prompt
from darkroom.validate.render import collect_captions

if TYPE_CHECKING:
    from PIL.Image import Image

    from darkroom.options.config import Config


def identify_encoders(repository: Repository) -> Encoders:
    """Which encoders make the caches of a base model, for those who encode nothing."""
    return Encoders(
        TextEncoders(repository.text_identity()),
        PixelEncoder(repository.sample_identity()),
        PixelEncoder(repository.vae_identity()),
    )


class RunEncoders:
    """A run's encoders as its caches call them. They are loaded when something is encoded.

    `truncated` has the captions that were longer than the text encoders read.
    """

    def __init__(self, run: Run, components: Components):
        self.run, self.components = run, components
        self.truncated: list[str] = []

    def as_encoders(self) -> Encoders:
        """The same as the data layer takes them."""
        run, identities = self.run, identify_encoders(self.components)
        text_images = run.family.spec.flavour.text_images
        conditioning = identities.conditioning
        assert conditioning is not None
        return Encoders(
            TextEncoders(identities.text.identity, self.encode_text, self.encode_with_images if text_images else None),
            PixelEncoder(identities.samples.identity, self.encode_samples),
            PixelEncoder(conditioning.identity, self.encode_images),
        )

    def encode_text(self, captions: list[str]) -> list[dict[str, torch.Tensor]]:
        """One cache entry per caption."""
        run, encoders = self.run, self.components.text()
        self.truncated += find_truncated(encoders, captions, run.config.tokenizer_max_length)
        return encode_captions(run.family, encoders, captions, run.config)

    def encode_with_images(self, caption: str, images: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """The cache entry of a caption that is read with images."""
        return encode_caption_with_images(
            self.run.family, self.components.text(), caption, to_images(images), self.run.config
        )

    def encode_samples(
        self, pixels: torch.Tensor, waveforms: Sequence[np.ndarray | None] = ()
    ) -> dict[str, torch.Tensor]:
        """All that is cached of samples (B, 3, H, W) or (B, 3, F, H, W) in -1..1."""
        return encode_sample(self.run, self.components, pixels, waveforms)

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """The latents of what lies beside samples."""
        return encode_latents(self.components, pixels)


def to_images(images: list[np.ndarray]) -> list[Image]:
    """uint8 (H, W, 3), or (F, H, W, 3) of which the first frame counts, as PIL images."""
    from PIL import Image

    return [Image.fromarray(pixels if pixels.ndim == 3 else pixels[0]) for pixels in images]


def require_prompts(repository: Repository, config: Config, prompts: Iterable[Prompt]) -> RequiredCaptions:
    """What the caches need for validation."""
    captions, with_images = collect_captions(repository, config, prompts)
    return RequiredCaptions(frozenset(captions), tuple(with_images))


def fill_text_cache(filler: CacheFiller, encoders: RunEncoders) -> None:
    """Fill the text cache and let the encoders go. They are loaded only if something is missing."""
    run, truncated = encoders.run, encoders.truncated
    with phase(run.bus, "text cache"):
        filler.fill_text()
        if not filler.plan.reads_while_training:
            encoders.components.unload_text()
    if truncated:
        message = (
            f"{len(truncated)} captions are longer than the text encoders read (tokenizer_max_length = "
            f"{run.config.tokenizer_max_length}); their ends are not seen. For example '{truncated[0][:60]}...'."
        )
        run.bus.emit(Warn(message=message, about="captions"))


def fill_latent_cache(filler: CacheFiller, encoders: RunEncoders, processes: int) -> None:
    """Fill the latent cache and let the VAE go. Images that turn out damaged must leave enough for a batch."""
    with phase(encoders.run.bus, "latent cache"):
        filled = filler.fill_latents()
        if processes and (filled.dropped or processes > 1):
            filler.plan.validate(processes)
        if not filler.plan.encodes_while_training:
            encoders.components.unload_vae()
