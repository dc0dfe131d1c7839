"""How a family's text is encoded, cached and stacked: the part of a family that text encoders see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from darkroom.families.shared.text import detach_entry, split_entries, stack_entries

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image as PILImage

    from darkroom.families.shared.types import Cond, Settings
    from darkroom.options.config import Config


class TextEncoding:
    """Captions to text conditions. A family implements `encode_text` and `count_text_values`."""

    name: ClassVar[str]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> Cond:
        """Captions to the batched text condition {name: (B, ...)}, with `pipe`, a pipeline of text components only."""
        raise TypeError(f"{type(self).__name__} must define encode_text")

    def encode_text_with_images(
        self, pipe: DiffusionPipeline, caption: str, images: list[PILImage], options: Config
    ) -> Cond:
        """Encode one caption with PIL images of any size; returns what `encode_text` returns for one caption."""
        raise TypeError(f"{type(self).__name__} does not encode text with images")

    def unconditional(self, pipe: DiffusionPipeline, entry: Cond, options: Config) -> Cond:
        """The entry for guidance and caption dropout; `entry` is the encoded empty string."""
        return entry

    def stack_text(self, entries: list[Cond]) -> Cond:
        """Cache entries to a batch."""
        return stack_entries(entries)

    def text_identity(self, options: Config) -> dict[str, object]:
        """What changes text embeddings, such as options that are declared so; part of the cache key."""
        from darkroom.options.config import every_option

        own = (info for info in every_option() if info.cached == "text" and self.name in (info.families or [self.name]))
        return {info.name: getattr(options, info.name) for info in own}

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        """Numbers in one caption's cache entry, from the text encoders' configs by component."""
        raise TypeError(f"{type(self).__name__} must define count_text_values")


def encode_captions(family: TextEncoding, pipe: DiffusionPipeline, captions: list[str], options: Config) -> list[Cond]:
    """One cache entry per caption."""
    import torch

    with torch.no_grad():
        return [detach_entry(entry) for entry in encode_captions_with_grad(family, pipe, captions, options)]


def encode_captions_with_grad(
    family: TextEncoding, pipe: DiffusionPipeline, captions: list[str], options: Config
) -> list[Cond]:
    """One entry per caption, with gradients. The empty caption is the unconditional one: see `unconditional`."""
    entries = split_entries(family.encode_text(pipe, captions, options))
    return [
        entry if caption else family.unconditional(pipe, entry, options)
        for caption, entry in zip(captions, entries, strict=True)
    ]


def encode_caption_with_images(
    family: TextEncoding, pipe: DiffusionPipeline, caption: str, images: list[PILImage], options: Config
) -> Cond:
    """The cache entry of a caption that is encoded with images."""
    import torch

    with torch.no_grad():
        (entry,) = split_entries(family.encode_text_with_images(pipe, caption, images, options))
    return detach_entry(entry)
