"""The caches of a plan: where each is kept, which encoder made what is in it, and what is made on demand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from darkroom.data.cache.encoders import Encoders, PixelEncoder, keep_pixels, make_latent_encoder, make_mask_encoder
from darkroom.data.cache.latents import Encode, SampleCache
from darkroom.data.cache.samples import CachedConditioning, SampleSource
from darkroom.data.cache.shards import ShardCache
from darkroom.data.cache.text import TextCache
from darkroom.data.debug_log import DebugLog
from darkroom.data.index.clips import Clipping
from darkroom.data.index.conditioning import ConditioningDataset
from darkroom.data.plan import DatasetPlan
from darkroom.data.planned import PlannedDataset
from darkroom.media.reference_image import ReferenceImage
from darkroom.options.datasets import SampleDataset, TextEmbeds
from darkroom.options.datasets.entries import CacheLocation
from darkroom.options.datasets.locations import LocalFiles, S3Files
from darkroom.storage import open_store
from darkroom.storage.mirror import Mirror

if TYPE_CHECKING:
    from torch import Tensor


class DatasetCaches:
    """Opens the caches of a plan's datasets for the encoders of a run, each once, and reads them."""

    def __init__(self, plan: DatasetPlan, encoders: Encoders):
        self.plan, self.encoders = plan, encoders
        self._debug_log = DebugLog.from_config(plan.config)
        self._shards: dict[Path, ShardCache] = {}

    # -- texts --------------------------------------------------------------------------------------------------------

    def texts(self, name: str) -> TextCache:
        """The text cache with this id."""
        entry = next(t for t in self.plan.file.text_embeds if t.id == name)
        encoders = self.encoders.text
        live = encoders if entry.on_demand and encoders.encode is not None else None
        return TextCache(self.shards_of(entry), encoders.identity, live, keep=not entry.text_cache_disable)

    def shards_of(self, entry: TextEmbeds) -> ShardCache:
        """The shards behind a text cache."""
        return self._open(entry.cache_dir, entry, entry.location)

    def text(self, caption: str, images: Sequence[ReferenceImage] = ()) -> dict[str, Tensor]:
        """The condition of a caption, read with these images, from the default text cache."""
        return self.texts(self.plan.file.default_text.id).get(caption, images)

    # -- samples ------------------------------------------------------------------------------------------------------

    def samples(self, d: PlannedDataset, epoch: int = 1) -> SampleCache:
        """The latents of a dataset. Crops that change with the epoch have a folder for each."""
        recrops = self.plan.scanner.recrops(d.entry)
        folder = d.entry.cache_dir_vae / f"epoch-{epoch}" if recrops else d.entry.cache_dir_vae
        return self._samples(folder, d.entry, None, d, d.entry.on_demand or (recrops and epoch > 1))

    def conditioning(self, d: PlannedDataset, c: ConditioningDataset) -> SampleCache:
        """What is kept of a companion: latents, masks at their size, or pixels."""
        live = c.entry.on_demand or d.entry.on_demand or self.plan.scanner.recrops(d.entry)
        return self._samples(c.entry.cache_dir_vae, c.entry, c, c, live)

    def source(self, d: PlannedDataset, epoch: int = 1) -> SampleSource:
        """A dataset with its caches."""
        file = self.plan.file
        return SampleSource(
            d.id,
            d.index,
            d.buckets,
            self.samples(d, epoch),
            self.texts(file.text_of(d.entry).id),
            self.texts(file.default_text.id),
            tuple(CachedConditioning(c, self.conditioning(d, c)) for c in d.conditioning),
            self.plan.scanner.combined,
            d.entry.is_regularisation_data,
            d.entry.slider_strength,
            d.entry.timestep_sampling_offset,
            d.entry.video.is_i2v if d.entry.video else None,
            self.plan.requirements.text_images,
        )

    def encoder_of(self, c: ConditioningDataset | None) -> tuple[str, Encode | None]:
        """Identity and encoder of samples (None) or of what is beside them."""
        requirements, samples = self.plan.requirements, self.encoders.samples
        if c is None:
            return _latent_encoder(samples, requirements.audio_format is not None)
        if c.role == "mask":
            kind: Literal["mask", "segmentation"] = "mask" if c.entry.conditioning_type == "mask" else "segmentation"
            axes = "layers" if requirements.layers else requirements.temporal
            return f"{kind} {requirements.downscale} {axes}", make_mask_encoder(kind, requirements)
        if c.role == "control" and requirements.control == "pixels":
            return "pixels", keep_pixels
        return _latent_encoder(self.encoders.conditioning or samples)

    def to_fill(self, d: PlannedDataset) -> Iterator[tuple[SampleCache, np.ndarray]]:
        """Each cache that is filled by the VAE before training, with its rows."""
        if not d.entry.on_demand:
            yield self.samples(d), d.index.usable
        for c in d.conditioning:
            if c.role != "mask" and not c.entry.on_demand:
                yield self.conditioning(d, c), np.flatnonzero((d.index.is_dropped == 0) & c.present)

    def _samples(
        self,
        folder: Path,
        entry: SampleDataset,
        c: ConditioningDataset | None,
        of: PlannedDataset | ConditioningDataset,
        live: bool,
    ) -> SampleCache:
        identity, encode = self.encoder_of(c)
        requirements = self.plan.requirements
        has_audio = c is None and (entry.audio is None or entry.audio.auto_split)
        return SampleCache(
            self._open(folder, entry, self._find_mirror_location(folder, entry)),
            of.index,
            identity,
            Clipping(entry.video, requirements) if entry.video is not None else None,
            encode if live else None,
            keep=not entry.vae_cache_disable,
            debug_log=self._debug_log,
            audio_format=requirements.audio_format if has_audio else None,
            may_be_silent=entry.audio is None or entry.audio.allow_zero_audio,
        )

    # -- folders ------------------------------------------------------------------------------------------------------

    def forget_other_epochs(self, entry: SampleDataset, epoch: int) -> None:
        """Remove the latents of crops that are not those of `epoch`."""
        for old in entry.cache_dir_vae.glob("epoch-*"):
            if old.name != f"epoch-{epoch}":
                self._shards.pop(old, None)
                shutil.rmtree(old, ignore_errors=True)

    def _find_mirror_location(self, folder: Path, entry: SampleDataset) -> CacheLocation | None:
        """The storage that a dataset's latents are copied to, or None."""
        named = self.plan.file.store_of(entry)
        location = named.location if named else None
        if isinstance(location, S3Files):  # several datasets may name it, and each has a folder of its own there
            parts = (location.aws_data_prefix.strip("/"), entry.id, *folder.relative_to(entry.cache_dir_vae).parts)
            location = location.model_copy(update={"aws_data_prefix": "/".join(filter(None, parts))})
        return location

    def _open(self, folder: Path, entry: SampleDataset | TextEmbeds, location: CacheLocation | None) -> ShardCache:
        """The shards in a folder, with a copy in a remote storage when `location` names one."""
        if folder not in self._shards:
            mirror = None
            if location is not None and not isinstance(location, LocalFiles):
                mirror = Mirror(open_store(location), folder)
                mirror.pull()
            self._shards[folder] = ShardCache(
                folder,
                compress=entry.compress_cache,
                write_batch=entry.write_batch_size,
                on_warn=lambda text: self.plan.reporter.warn(entry.id, text),
                on_shard=mirror.push if mirror else None,
            )
        return self._shards[folder]


def _latent_encoder(encoder: PixelEncoder, hears: bool = False) -> tuple[str, Encode | None]:
    encode = encoder.encode
    return encoder.identity, None if encode is None else make_latent_encoder(encode, hears)
