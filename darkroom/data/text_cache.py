"""Captions to conditions, once: each caption becomes a dict of tensors without a batch dimension."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from darkroom.core.errors import DataError
from darkroom.data.cache import FillReport, ShardCache, cache_key, fill, in_groups, open_for_filling

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.data.index import Say

EncodeText = Callable[[list[str]], "list[dict[str, Tensor]]"]
"""Captions to one dict of tensors each."""


class TextCache:
    """The conditions of captions, for one encoder. `identity` says everything about it that changes its output.

    With `encode` a caption that is not there is encoded when it is asked for, and with `keep` it is also stored.
    """

    def __init__(self, cache: ShardCache, identity: str, encode: EncodeText | None = None, keep: bool = True):
        self.cache, self.identity, self.encode, self.keep = cache, identity, encode, keep

    def key(self, caption: str) -> str:
        """The entry of a caption."""
        return cache_key(kind="text", caption=caption, encoder=self.identity)

    def missing(self, captions: Sequence[str]) -> list[str]:
        """The captions that are not in the cache, each once."""
        return [caption for caption in dict.fromkeys(captions) if not self.cache.has(self.key(caption))]

    def fill(self, captions: Sequence[str], encode: EncodeText, batch: int = 1, say: Say | None = None) -> FillReport:
        """Encode the captions that the cache lacks, `batch` at a time."""
        started = time.monotonic()
        open_for_filling(self.cache)
        todo, total = self.missing(captions), len(dict.fromkeys(captions))
        groups = in_groups(((self.key(caption), caption) for caption in todo), max(1, batch))
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            if say is not None:
                say(done, len(todo))

        made = fill(self.cache, groups, encode, count)
        return FillReport(made, total - made, {}, time.monotonic() - started)

    def get(self, caption: str) -> dict[str, Tensor]:
        """The condition of a caption."""
        try:
            return self.cache.get(self.key(caption))
        except KeyError as cause:
            if self.encode is not None:
                return self._make(caption)
            shown = caption if len(caption) <= 60 else caption[:57] + "..."
            raise DataError(
                f"The caption '{shown}' is not in the text cache {self.cache.folder}.\n"
                "  Start again without skipping the text cache; only what is missing is made."
            ) from cause

    def _make(self, caption: str) -> dict[str, Tensor]:
        assert self.encode is not None
        made = self.encode([caption])[0]
        if self.keep:
            self.cache.put(self.key(caption), made)
        return made
