"""Captions to conditions, once: each caption becomes a dict of tensors without a batch dimension.

Some encoders look at pictures while they read; then a caption has an entry for what was seen with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from darkroom.core.errors import DataError
from darkroom.data.cache.shards import FillReport, ShardCache, cache_key, fill, in_groups, open_for_filling
from darkroom.media.look import Look

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.data.index.table import Say

EncodeText = Callable[[list[str]], "list[dict[str, Tensor]]"]
"""Captions to one dict of tensors each."""

EncodeSeen = Callable[[str, "list[np.ndarray]"], "dict[str, Tensor]"]
"""A caption and the pictures, uint8 (H, W, 3) or (F, H, W, 3), that are looked at with it."""


@dataclass(frozen=True)
class Readers:
    """The encoders of captions, alone and with pictures, for entries that are made when they are asked for."""

    text: EncodeText
    seen: EncodeSeen | None = None

    def read(self, caption: str, looks: Sequence[Look]) -> dict[str, Tensor]:
        """The condition of one caption."""
        if not looks:
            return self.text([caption])[0]
        assert self.seen is not None
        return self.seen(caption, [look.pixels() for look in looks])


class TextCache:
    """The conditions of captions, for one encoder. `identity` says everything about it that changes its output.

    With `live` a caption that is not there is encoded when it is asked for, and with `keep` it is also stored.
    """

    def __init__(self, cache: ShardCache, identity: str, live: Readers | None = None, keep: bool = True):
        self.cache, self.identity, self.live, self.keep = cache, identity, live, keep

    def key(self, caption: str, looks: Sequence[Look] = ()) -> str:
        """The entry of a caption."""
        seen = {"seen": [look.name for look in looks]} if looks else {}
        return cache_key(kind="text", caption=caption, encoder=self.identity, **seen)

    def missing(self, captions: Iterable[str]) -> list[str]:
        """The captions that are not in the cache, each once."""
        return [caption for caption in dict.fromkeys(captions) if not self.cache.has(self.key(caption))]

    def fill(self, captions: Sequence[str], encode: EncodeText, batch: int = 1, say: Say | None = None) -> FillReport:
        """Encode the captions that the cache lacks, `batch` at a time."""
        started = time.monotonic()
        open_for_filling(self.cache)
        todo, total = self.missing(captions), len(dict.fromkeys(captions))
        groups = in_groups(((self.key(caption), caption) for caption in todo), max(1, batch))
        made = fill(self.cache, groups, encode, _counter(say, len(todo)))
        return FillReport(made, total - made, {}, time.monotonic() - started)

    def fill_seen(
        self, pairs: Iterable[tuple[str, Sequence[Look]]], total: int, encode: EncodeSeen, say: Say | None = None
    ) -> FillReport:
        """Encode the captions, each with its pictures, that the cache lacks. Pictures are read as they come."""
        started = time.monotonic()
        open_for_filling(self.cache)
        known, counted = set(), _counter(say, total)

        def todo() -> Iterable[list[tuple[str, tuple[str, Sequence[Look]]]]]:
            for caption, looks in pairs:
                key = self.key(caption, looks)
                if key in known or self.cache.has(key):
                    counted(1)
                else:
                    yield [(key, (caption, looks))]
                known.add(key)

        def one(group: list[tuple[str, Sequence[Look]]]) -> list[dict[str, Tensor]]:
            return [encode(caption, [look.pixels() for look in looks]) for caption, looks in group]

        made = fill(self.cache, todo(), one, counted)
        return FillReport(made, len(known) - made, {}, time.monotonic() - started)

    def get(self, caption: str, looks: Sequence[Look] = ()) -> dict[str, Tensor]:
        """The condition of a caption, read with these pictures."""
        key = self.key(caption, looks)
        try:
            return self.cache.get(key)
        except KeyError as cause:
            if self.live is not None:
                made = self.live.read(caption, looks)
                if self.keep:
                    self.cache.put(key, made)
                return made
            shown = caption if len(caption) <= 60 else caption[:57] + "..."
            raise DataError(
                f"The caption '{shown}' is not in the text cache {self.cache.folder}.\n"
                "  Start again without skipping the text cache; only what is missing is made."
            ) from cause


def _counter(say: Say | None, total: int) -> Callable[[int], None]:
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if say is not None:
            say(done, total)

    return count
