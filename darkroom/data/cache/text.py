"""Captions to conditions, once: each caption becomes a dict of tensors without a batch dimension.

Some encoders look at images while they read; then a caption has an entry for what was seen with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from darkroom.core.errors import DataError
from darkroom.data.cache.shards import FillReport, ShardCache, cache_key, fill, group_items, open_for_filling
from darkroom.media.reference_image import ReferenceImage

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.data.index.table import OnProgress

EncodeText = Callable[[list[str]], "list[dict[str, Tensor]]"]
"""Captions to one dict of tensors each."""

EncodeTextWithImages = Callable[[str, "list[np.ndarray]"], "dict[str, Tensor]"]
"""A caption and the images, uint8 (H, W, 3) or (F, H, W, 3), that are looked at with it."""


@dataclass(frozen=True)
class TextEncoders:
    """The text encoders of a run: their identity, and what runs them on captions alone and with images.

    The identity says everything about them that changes their output. The functions may be left out where nothing is
    encoded.
    """

    identity: str
    encode: EncodeText | None = None
    encode_with_images: EncodeTextWithImages | None = None

    def read(self, caption: str, images: Sequence[ReferenceImage]) -> dict[str, Tensor]:
        """The condition of one caption."""
        if not images:
            assert self.encode is not None
            return self.encode([caption])[0]
        assert self.encode_with_images is not None
        return self.encode_with_images(caption, [image.pixels() for image in images])


class TextCache:
    """The conditions of captions, for one encoder. `identity` says everything about it that changes its output.

    With `live` a caption that is not there is encoded when it is asked for, and with `keep` it is also stored.
    """

    def __init__(self, cache: ShardCache, identity: str, live: TextEncoders | None = None, keep: bool = True):
        self.cache, self.identity, self.live, self.keep = cache, identity, live, keep

    def key(self, caption: str, images: Sequence[ReferenceImage] = ()) -> str:
        """The entry of a caption."""
        image_names = {"seen": [image.name for image in images]} if images else {}
        return cache_key(kind="text", caption=caption, encoder=self.identity, **image_names)

    def missing(self, captions: Iterable[str]) -> list[str]:
        """The captions that are not in the cache, each once."""
        return [caption for caption in dict.fromkeys(captions) if not self.cache.has(self.key(caption))]

    def fill(
        self, captions: Sequence[str], encode: EncodeText, batch: int = 1, on_progress: OnProgress | None = None
    ) -> FillReport:
        """Encode the captions that the cache lacks, `batch` at a time."""
        started = time.monotonic()
        open_for_filling(self.cache)
        todo, total = self.missing(captions), len(dict.fromkeys(captions))
        groups = group_items(((self.key(caption), caption) for caption in todo), max(1, batch))
        encoded = fill(self.cache, groups, encode, _count_progress(on_progress, len(todo)))
        return FillReport(encoded, total - encoded, {}, time.monotonic() - started)

    def fill_with_images(
        self,
        pairs: Iterable[tuple[str, Sequence[ReferenceImage]]],
        total: int,
        encode: EncodeTextWithImages,
        on_progress: OnProgress | None = None,
    ) -> FillReport:
        """Encode the captions, each with its images, that the cache lacks. Images are read as they come."""
        started = time.monotonic()
        open_for_filling(self.cache)
        keys, count = set(), _count_progress(on_progress, total)

        def todo() -> Iterable[list[tuple[str, tuple[str, Sequence[ReferenceImage]]]]]:
            for caption, images in pairs:
                key = self.key(caption, images)
                if key in keys or self.cache.has(key):
                    count(1)
                else:
                    yield [(key, (caption, images))]
                keys.add(key)

        def encode_group(group: list[tuple[str, Sequence[ReferenceImage]]]) -> list[dict[str, Tensor]]:
            return [encode(caption, [image.pixels() for image in images]) for caption, images in group]

        encoded = fill(self.cache, todo(), encode_group, count)
        return FillReport(encoded, len(keys) - encoded, {}, time.monotonic() - started)

    def get(self, caption: str, images: Sequence[ReferenceImage] = ()) -> dict[str, Tensor]:
        """The condition of a caption, read with these images."""
        key = self.key(caption, images)
        try:
            return self.cache.get(key)
        except KeyError as cause:
            if self.live is not None:
                entry = self.live.read(caption, images)
                if self.keep:
                    self.cache.put(key, entry)
                return entry
            shortened = caption if len(caption) <= 60 else caption[:57] + "..."
            raise DataError(
                f"The caption '{shortened}' is not in the text cache {self.cache.folder}.\n"
                "  Start again without skipping the text cache; only what is missing is made."
            ) from cause


def _count_progress(on_progress: OnProgress | None, total: int) -> Callable[[int], None]:
    finished = 0

    def count(size: int) -> None:
        nonlocal finished
        finished += size
        if on_progress is not None:
            on_progress(finished, total)

    return count
