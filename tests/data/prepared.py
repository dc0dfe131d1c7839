"""A scanned plan with its caches and its batches in one, as most tests of the data layer want them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from darkroom.data.batches.batch import Batch
from darkroom.data.batches.loader import BatchLoader, Stack
from darkroom.data.batches.order import Order
from darkroom.data.batches.source import BatchSource
from darkroom.data.cache.caches import DatasetCaches
from darkroom.data.cache.encoders import EncodePixels, Encoders, PixelEncoder
from darkroom.data.cache.filler import CacheFiller, MissingEntries, RequiredCaptions
from darkroom.data.cache.latents import SampleCache
from darkroom.data.cache.samples import SampleSource
from darkroom.data.cache.shards import FillReport
from darkroom.data.cache.text import EncodeText, EncodeTextWithImages, TextEncoders
from darkroom.data.plan import DatasetPlan
from darkroom.data.planned import PlannedDataset
from darkroom.media.reference_image import ReferenceImage


class PreparedData:
    """What a plan says is said here too. Encoders are named, or handed in, where a test comes to them."""

    def __init__(self, plan: DatasetPlan):
        self.plan, self.required = plan, RequiredCaptions()
        self.encoders = Encoders(TextEncoders("text-1"), PixelEncoder("vae-1"))
        self._caches: DatasetCaches | None = None
        self._batches: dict[tuple[int, int], BatchSource] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plan, name)

    @property
    def caches(self) -> DatasetCaches:
        self._caches = self._caches or DatasetCaches(self.plan, self.encoders)
        return self._caches

    @property
    def filler(self) -> CacheFiller:
        return CacheFiller(self.caches, self.required)

    def _use(self, **encoders: Any) -> None:
        """Other encoders: what is in the caches is another's then."""
        self.encoders = replace(self.encoders, **encoders)
        self._caches, self._batches = None, {}

    def use_encoders(self, text_identity: str = "text-1", latent_identity: str = "vae-1") -> PreparedData:
        self._use(text=TextEncoders(text_identity), samples=PixelEncoder(latent_identity))
        return self

    def require_captions(
        self, captions: Iterable[str], with_images: Iterable[tuple[str, Sequence[ReferenceImage]]] = ()
    ) -> PreparedData:
        self.required = RequiredCaptions(frozenset(captions), tuple(with_images))
        return self

    def fill_text(
        self, encode: EncodeText, identity: str, encode_with_images: EncodeTextWithImages | None = None
    ) -> FillReport:
        self._use(text=TextEncoders(identity, encode, encode_with_images))
        return self.filler.fill_text()

    def fill_latents(
        self, encode: EncodePixels, identity: str, plain: tuple[EncodePixels, str] | None = None
    ) -> FillReport:
        self._use(
            samples=PixelEncoder(identity, encode), conditioning=PixelEncoder(plain[1], plain[0]) if plain else None
        )
        return self.filler.fill_latents()

    def missing(self) -> MissingEntries:
        return self.filler.missing()

    def latent_cache(self, d: PlannedDataset) -> SampleCache:
        return self.caches.samples(d)

    def text(self, caption: str, images: Sequence[ReferenceImage] = ()) -> dict[str, torch.Tensor]:
        return self.caches.text(caption, images)

    def batches(self, rank: int = 0, ranks: int = 1) -> BatchSource:
        if (rank, ranks) not in self._batches:
            self._batches[rank, ranks] = BatchSource(self.caches, rank=rank, ranks=ranks)
        return self._batches[rank, ranks]

    def order(self) -> Order:
        return self.batches().order

    def sources(self, epoch: int) -> list[SampleSource]:
        return self.batches().sources(epoch)

    def loader(self, *, rank: int = 0, ranks: int = 1, stack: Stack | None = None) -> BatchLoader:
        batches = self.batches(rank, ranks)
        batches.stack = stack
        return batches.loader()

    def eval_loader(self, dataset: str, limit: int | None = None) -> Iterator[Batch]:
        return self.batches().eval_loader(dataset, limit=limit)
