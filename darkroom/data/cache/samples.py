"""The samples of one dataset: their latents and captions in the caches, and what lies beside them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from darkroom.data.cache.latents import SampleCache
from darkroom.data.cache.text import TextCache
from darkroom.data.index.buckets import Buckets
from darkroom.data.index.conditioning import ConditioningDataset
from darkroom.data.index.table import Index
from darkroom.media.images import BadImage
from darkroom.media.reference_image import ReferenceImage


@dataclass(frozen=True)
class CachedConditioning:
    """A companion of a source with its cache."""

    dataset: ConditioningDataset
    cache: SampleCache


@dataclass(frozen=True)
class SampleSource:
    """Where the samples of one dataset come from."""

    id: str
    index: Index
    buckets: Buckets
    latents: SampleCache
    texts: TextCache
    empty: TextCache  # holds the condition of a dropped caption
    conditioning: tuple[CachedConditioning, ...] = ()
    combined: bool = False  # several images beside a sample are attached at once, not one of them
    is_regularization: bool = False
    slider_strength: float | None = None
    timestep_offset: float = 0.0
    is_i2v: bool | None = None
    text_images: str = ""  # what is looked at while captions are read: Needs.reads

    def with_role(self, role: str) -> list[CachedConditioning]:
        """The companions of one role, in the listed order."""
        return [b for b in self.conditioning if b.dataset.role == role]

    @property
    def is_segmented(self) -> bool:
        """Is there a mask that may be left out of a batch?"""
        return any(b.dataset.entry.conditioning_type == "segmentation" for b in self.with_role("mask"))

    def conditioning_choices(self, row: int) -> list[list[CachedConditioning]]:
        """What may be beside one sample: all images that it has, or each of them in turn."""
        present = [b for b in self.conditioning if b.dataset.role != "mask" and b.dataset.present[row]]
        return [present] if self.combined or len(present) < 2 else [[b] for b in present]

    def choose_conditioning(self, row: int, epoch: int) -> list[CachedConditioning]:
        """The images beside one sample in this epoch."""
        choices = self.conditioning_choices(row)
        if len(choices) == 1:
            return choices[0]
        return choices[zlib.crc32(f"{self.index.path(row)}\0{epoch}".encode()) % len(choices)]

    def captions_of(self, row: int, conditioning: Sequence[CachedConditioning]) -> tuple[str, ...]:
        """The captions of a sample: those of the image beside it when that brings its own."""
        captioned = [b for b in conditioning if b.dataset.has_captions]
        return captioned[0].dataset.index.captions_of(row) if captioned else self.index.captions_of(row)

    def reference_images(self, row: int, conditioning: Sequence[CachedConditioning]) -> tuple[ReferenceImage, ...]:
        """What is looked at while a caption of this sample is read."""
        if self.text_images == "start":
            return (self.latents.reference_image(row),)
        return tuple(
            b.cache.reference_image(row) for b in conditioning if self.text_images and b.dataset.role == "reference"
        )

    def iterate_image_captions(
        self, rows: Iterable[int], dropped: bool
    ) -> Iterator[tuple[str, tuple[ReferenceImage, ...]]]:
        """Every caption of these samples, and with `dropped` the empty one, with all that it may be read with.

        A sample whose images cannot be read is passed over; the latent cache reports it.
        """
        for row in rows:
            for conditioning in self.conditioning_choices(row):
                with suppress(BadImage):
                    images = self.reference_images(row, conditioning)
                    for caption in dict.fromkeys([*self.captions_of(row, conditioning), *([""] if dropped else [])]):
                        yield caption, images
