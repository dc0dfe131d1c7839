"""Fills the caches of a plan: what they lack, what that will take, and encoding it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from darkroom.data.cache.caches import DatasetCaches
from darkroom.data.cache.latents import SampleCache
from darkroom.data.cache.shards import FillReport
from darkroom.data.cache.text import EncodeTextWithImages
from darkroom.data.index.conditioning import ConditioningDataset, drop_incomplete_samples
from darkroom.data.index.table import CODE
from darkroom.data.planned import PlannedDataset
from darkroom.media.reference_image import ReferenceImage
from darkroom.options.datasets import SampleDataset, TextEmbeds


@dataclass(frozen=True)
class RequiredCaptions:
    """Captions that the default text cache has to hold beside those of the datasets: validation prompts.

    `with_images` are those that are read with images.
    """

    alone: frozenset[str] = frozenset()
    with_images: tuple[tuple[str, Sequence[ReferenceImage]], ...] = ()


@dataclass(frozen=True)
class MissingEntries:
    """How many entries the caches lack."""

    texts: int
    latents: int


@dataclass(frozen=True)
class Estimate:
    """What the caches will need: entries to make, entries that are there, bytes of those to make."""

    latents_to_make: int
    latents_to_reuse: int
    texts_to_make: int
    texts_to_reuse: int
    bytes_to_write: int


class CacheFiller:
    """Fills the caches of a plan with what its datasets and the required captions need."""

    def __init__(self, caches: DatasetCaches, required: RequiredCaptions = RequiredCaptions()):
        self.caches, self.plan, self.required = caches, caches.plan, required
        self._drops_captions = self.plan.config.caption_dropout_probability > 0

    # -- what there is to do ------------------------------------------------------------------------------------------

    def captions_by_cache(self) -> dict[str, list[str]]:
        """Text cache id to the captions it has to hold, each once, sorted."""
        captions, default = self.plan.captions_by_cache(), self.plan.file.default_text.id
        return {**captions, default: sorted({*captions[default], *self.required.alone})}

    def captions(self) -> list[str]:
        """All captions, each once, sorted; with "" when captions are sometimes dropped."""
        return sorted({text for texts in self.captions_by_cache().values() for text in texts})

    def missing(self) -> MissingEntries:
        """What the caches lack."""
        caches = [(cache, rows) for d in self.plan.datasets for cache, rows in self.caches.to_fill(d)]
        latents = sum(int((~cache.is_cached(rows)).sum()) for cache, rows in caches)
        return MissingEntries(len(self._missing_texts()), latents)

    def _missing_texts(self) -> list[str]:
        """Captions that are encoded before training and not cached yet."""
        missing, captions = [], self.captions_by_cache()
        for entry in self.plan.file.text_embeds:
            if not entry.on_demand:
                missing += self.caches.texts(entry.id).missing(captions[entry.id])
                missing += self._missing_image_captions(entry)
        return missing

    def _missing_image_captions(self, entry: TextEmbeds) -> list[str]:
        """The same for captions that are read with images; those of images that were never read are missing."""
        missing: list[str] = []
        cache = self.caches.texts(entry.id)
        for d in self.plan.image_datasets(entry):
            indexes = [d.index, *(c.index for c in d.conditioning if c.role == "reference")]
            for row in d.index.usable.tolist():
                if any(index.hashes[row] == b"" for index in indexes):
                    missing += d.index.captions_of(row)
                    continue
                pairs = self.caches.source(d).iterate_image_captions([row], self._drops_captions)
                missing += [caption for caption, images in pairs if not cache.cache.has(cache.key(caption, images))]
        return missing

    def estimate(self, latent_bytes: Callable[[int, int, int], int], text_bytes: Callable[[str], int]) -> Estimate:
        """Entries and bytes the caches will need. `latent_bytes` is given a target's width, height and frames."""
        latents = reused = written = 0
        for d in self.plan.datasets:
            for cache, rows in self.caches.to_fill(d):
                is_cached = cache.is_cached(rows)
                reused += int(is_cached.sum())
                latents += int((~is_cached).sum())
                numbers, todo = cache.index.numbers, rows[~is_cached]
                columns = [numbers[name][todo] for name in ("target_width", "target_height", "count")]
                for shape, count in zip(*np.unique(np.stack(columns, 1), axis=0, return_counts=True), strict=True):
                    written += int(count) * latent_bytes(*map(int, shape))
        texts = self._missing_texts()
        total = sum(len(c) for c in self.captions_by_cache().values())
        return Estimate(latents, reused, len(texts), total - len(texts), written + sum(map(text_bytes, texts)))

    # -- texts --------------------------------------------------------------------------------------------------------

    def fill_text(self) -> FillReport:
        """Encode all captions that are not cached. Raises DiskFullError and what the encoder raises."""
        self.plan.generate()  # what is made may have captions of its own
        encoders, group, total = self.caches.encoders.text, self.plan.process_group, FillReport()
        for entry in self.plan.file.text_embeds:
            if entry.on_demand or entry.skips("text"):
                continue
            assert encoders.encode is not None
            captions = self.captions_by_cache()[entry.id]
            share = group.share(np.arange(len(captions)), entry.write_batch_size)
            total += self.caches.texts(entry.id).fill(
                [captions[i] for i in share],
                encoders.encode,
                entry.text_encoder_batch_size,
                self.plan.reporter.track("encode text"),
            )
            if encoders.encode_with_images is not None:
                total += self._fill_image_captions(entry, encoders.encode_with_images)
            if group.size > 1:
                group.wait()
                self.caches.shards_of(entry).refresh()
        return total

    def _fill_image_captions(self, entry: TextEmbeds, encode: EncodeTextWithImages) -> FillReport:
        """Encode what is read with images and belongs in this text cache."""
        group, total = self.plan.process_group, FillReport()
        cache, on_progress = self.caches.texts(entry.id), self.plan.reporter.track("encode text")
        for d in self.plan.image_datasets(entry):
            rows = group.share(d.index.usable, entry.write_batch_size)
            pairs = self.caches.source(d).iterate_image_captions(rows.tolist(), self._drops_captions)
            total += cache.fill_with_images(pairs, self._count_pairs(d, rows), encode, on_progress)
        if entry is self.plan.file.default_text and group.is_first:
            required = self.required.with_images
            total += cache.fill_with_images(required, len(required), encode, on_progress)
        return total

    def _count_pairs(self, d: PlannedDataset, rows: np.ndarray) -> int:
        """How many captions of these samples are read with images, at most."""
        images = sum(c.role != "mask" for c in d.conditioning)
        per_image = sum(len(d.index.captions_of(int(row))) for row in rows) + len(rows) * self._drops_captions
        return per_image * (1 if self.plan.scanner.combined else max(1, images))

    # -- samples ------------------------------------------------------------------------------------------------------

    def fill_latents(self) -> FillReport:
        """Encode all samples that are not cached. Undecodable ones are left out, reported, and remembered.

        Raises DataError where nothing of a dataset is left, DiskFullError, and what the encoder raises.
        """
        self.plan.generate()
        if self.plan.process_group.is_first:
            self.plan.delete_unusable()
        scanner, total = self.plan.scanner, FillReport()
        for d in self.plan.datasets:
            report = self._fill_dataset(d)
            total += report
            before = d.buckets.count
            scanner.assign_buckets(d)  # also when another process met what had to be left out
            if d.buckets.count != before or report.dropped:
                scanner.explain_unused(d)
            scanner.refuse_empty(d)
        return total

    def _fill_dataset(self, d: PlannedDataset) -> FillReport:
        """Fill the caches of one dataset and of what is beside it."""
        total = FillReport()
        for c in d.conditioning:
            if c.entry.on_demand or d.entry.on_demand or c.entry.skips("vae"):
                continue
            unfit = c.index.numbers["unfit"].copy()
            c.index.numbers["unfit"][d.index.is_dropped != 0] = CODE["missing companion"]  # what goes with nothing
            total += self._fill_cache(self.caches.conditioning(d, c), c, c.entry)
            c.index.numbers["unfit"] = unfit
        drop_incomplete_samples(d.index, d.conditioning, self.plan.scanner.combined)
        if not d.entry.on_demand and not d.entry.skips("vae"):
            total += self._fill_cache(self.caches.samples(d), None, d.entry)
        return total

    def _fill_cache(self, cache: SampleCache, c: ConditioningDataset | None, entry: SampleDataset) -> FillReport:
        """Fill one cache, and agree with the other processes about it."""
        encode = self.caches.encoder_of(c)[1]
        assert encode is not None
        group = self.plan.process_group
        report = cache.fill(encode, entry, self.plan.reporter.track("encode latents"), group)
        cache.agree(group)
        dropped = {f"{entry.id}: {path}": reason for path, reason in report.dropped.items()}
        return FillReport(report.encoded, report.reused, dropped, report.seconds)
