"""The caches of a plan: where each is kept, which encoder made what is in it, and what is made on demand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from darkroom.data.cache.encoders import EncodePixels, keep_pixels, make_latent_encoder, make_mask_encoder
from darkroom.data.cache.latents import Encode, SampleCache
from darkroom.data.cache.shards import ShardCache
from darkroom.data.cache.text import TextCache, TextEncoders
from darkroom.data.debug_log import DebugLog
from darkroom.data.index.clips import Clipping
from darkroom.data.index.conditioning import ConditioningDataset
from darkroom.data.planned import PlannedDataset
from darkroom.data.requirements import DataRequirements
from darkroom.options.datasets import DatasetFile, SampleDataset, TextEmbeds
from darkroom.options.datasets.locations import LocalFiles, S3Files
from darkroom.storage import open_store
from darkroom.storage.mirror import Mirror


class CacheFiller:
    """Opens caches once. `keeps_crops` says that random aspects stay those of the first epoch.

    Identities name encoders: of texts, of samples, and of images beside samples, which keep nothing but latents.
    """

    def __init__(
        self,
        file: DatasetFile,
        requirements: DataRequirements,
        keeps_crops: bool,
        debug_log: DebugLog,
        warn: Callable[[str, str], None],
    ):
        self.file, self.requirements, self.keeps_crops, self.debug_log, self.warn = (
            file,
            requirements,
            keeps_crops,
            debug_log,
            warn,
        )
        self.text_identity: str | None = None
        self.latent_identity: str | None = None
        self.plain_identity: str | None = None
        self._encoders: tuple[Encode | None, Encode | None] = (None, None)  # of samples, of images beside them
        self._readers: TextEncoders | None = None
        self._shards: dict[Path, ShardCache] = {}

    # -- encoders -----------------------------------------------------------------------------------------------------

    def use_encoders(self, text: str | None = None, latents: str | None = None, plain: str | None = None) -> None:
        """Say which encoders are meant."""
        self.text_identity = text or self.text_identity
        self.latent_identity = latents or self.latent_identity
        self.plain_identity = plain or self.plain_identity or self.latent_identity

    def set_text_encoders(self, readers: TextEncoders) -> None:
        """The encoders for texts on demand."""
        self._readers = readers

    def set_sample_encoders(self, encode: EncodePixels, plain: EncodePixels) -> None:
        """The encoders of samples and of images beside them, also for those on demand."""
        self._encoders = (
            make_latent_encoder(encode, self.requirements.audio_format is not None),
            make_latent_encoder(plain),
        )

    def encoder_of(self, c: ConditioningDataset | None) -> tuple[str, Encode | None]:
        """Identity and encoder of samples (None) or of what is beside them."""
        if c is None:
            return _require_identity(self.latent_identity, "fill_latents"), self._encoders[0]
        if c.role == "mask":
            kind: Literal["mask", "segmentation"] = "mask" if c.entry.conditioning_type == "mask" else "segmentation"
            axes = "layers" if self.requirements.layers else self.requirements.temporal
            return f"{kind} {self.requirements.downscale} {axes}", make_mask_encoder(kind, self.requirements)
        if c.role == "control" and self.requirements.control == "pixels":
            return "pixels", keep_pixels
        return _require_identity(self.plain_identity, "fill_latents"), self._encoders[1]

    # -- caches -------------------------------------------------------------------------------------------------------

    def recrops(self, entry: SampleDataset) -> bool:
        """Whether a dataset draws its crops anew in every epoch."""
        has_random_crops = entry.crop and entry.crop_aspect == "random" and not self.keeps_crops
        return entry.vae_cache_clear_each_epoch or has_random_crops

    def texts(self, name: str) -> TextCache:
        """The text cache with this id."""
        entry = next(t for t in self.file.text_embeds if t.id == name)
        live = self._readers if on_demand(entry) else None
        identity = _require_identity(self.text_identity, "fill_text")
        return TextCache(self.shards_of(entry), identity, live, keep=not entry.text_cache_disable)

    def shards_of(self, entry: TextEmbeds) -> ShardCache:
        """The shards behind a text cache."""
        return self._open(entry.cache_dir, entry, entry.location)

    def samples(self, d: PlannedDataset, epoch: int = 1) -> SampleCache:
        """The latents of a dataset. Crops that change with the epoch have a folder for each."""
        recrops = self.recrops(d.entry)
        folder = d.entry.cache_dir_vae / f"epoch-{epoch}" if recrops else d.entry.cache_dir_vae
        live = d.entry.on_demand or (recrops and epoch > 1)
        return self._samples(folder, d.entry, None, d, live)

    def conditioning_cache(self, d: PlannedDataset, c: ConditioningDataset) -> SampleCache:
        """What is kept of a companion: latents, masks at their size, or pixels."""
        live = c.entry.on_demand or d.entry.on_demand or self.recrops(d.entry)
        return self._samples(c.entry.cache_dir_vae, c.entry, c, c, live)

    def _samples(
        self,
        folder: Path,
        entry: SampleDataset,
        c: ConditioningDataset | None,
        of: PlannedDataset | ConditioningDataset,
        live: bool,
    ) -> SampleCache:
        identity, encode = self.encoder_of(c)
        return SampleCache(
            self._open(folder, entry, self._find_mirror_location(folder, entry)),
            of.index,
            identity,
            Clipping(entry.video, self.requirements) if entry.video is not None else None,
            encode if live else None,
            keep=not entry.vae_cache_disable,
            debug_log=self.debug_log,
            audio_format=self.requirements.audio_format
            if c is None and (entry.audio is None or entry.audio.auto_split)
            else None,
            may_be_silent=entry.audio is None or entry.audio.allow_zero_audio,
        )

    def to_fill(self, d: PlannedDataset) -> Iterator[tuple[SampleCache | None, np.ndarray]]:
        """Each cache that is filled by the VAE before training, with its rows; None while its identity is unknown."""
        if not d.entry.on_demand:
            yield self.samples(d) if self.latent_identity else None, d.index.usable
        for c in d.conditioning:
            if c.role != "mask" and not c.entry.on_demand:
                rows = np.flatnonzero((d.index.is_dropped == 0) & c.present)
                yield self.conditioning_cache(d, c) if self.plain_identity else None, rows

    def forget_other_epochs(self, entry: SampleDataset, epoch: int) -> None:
        """Remove the latents of crops that are not those of `epoch`."""
        for old in entry.cache_dir_vae.glob("epoch-*"):
            if old.name != f"epoch-{epoch}":
                self._shards.pop(old, None)
                shutil.rmtree(old, ignore_errors=True)

    def _find_mirror_location(self, folder: Path, entry: SampleDataset) -> Any:
        """The storage that a dataset's latents are copied to, or None."""
        named = self.file.store_of(entry)
        location = named.location if named else None
        if isinstance(location, S3Files):  # several datasets may name it, and each has a folder of its own there
            parts = (location.aws_data_prefix.strip("/"), entry.id, *folder.relative_to(entry.cache_dir_vae).parts)
            location = location.model_copy(update={"aws_data_prefix": "/".join(filter(None, parts))})
        return location

    def _open(self, folder: Path, entry: Any, location: Any) -> ShardCache:
        """The shards in a folder, with a copy in a remote storage when `where` names one."""
        if folder not in self._shards:
            mirror = None
            if location is not None and not isinstance(location, LocalFiles):
                mirror = Mirror(open_store(location), folder)
                mirror.pull()
            self._shards[folder] = ShardCache(
                folder,
                compress=entry.compress_cache,
                write_batch=entry.write_batch_size,
                on_warn=lambda text: self.warn(entry.id, text),
                on_shard=mirror.push if mirror else None,
            )
        return self._shards[folder]


def on_demand(entry: TextEmbeds) -> bool:
    """Whether texts are encoded when a batch needs them."""
    return entry.text_cache_ondemand or entry.text_cache_disable


def _require_identity(identity: str | None, step: str) -> str:
    if identity is None:
        raise RuntimeError(f"call {step} or use before asking for this cache")
    return identity
