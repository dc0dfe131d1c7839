"""From a dataset file to batches, for the code that runs a job.

    plan = prepare(config, datasets, bus, needs).scan()
    plan.fill_text(encode_text, identity)
    plan.fill_latents(encode_pixels, identity)
    with plan.loader() as loader:
        for batch in loader.epoch(1): ...

Everything up to and including the estimate works without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from darkroom.core.errors import DataError
from darkroom.core.events import Bus, Progress, Warn
from darkroom.core.files import digest, expand_home
from darkroom.data import report as reports
from darkroom.data.batches.order import START, Base, DatasetShape, Lengths, Order, steps_and_epochs
from darkroom.data.cache.encoders import EncodePixels
from darkroom.data.cache.filler import CacheFiller, on_demand
from darkroom.data.cache.latents import DAMAGED, SampleCache
from darkroom.data.cache.shards import FillReport
from darkroom.data.cache.text import EncodeText, EncodeTextWithImages, TextCache, TextEncoders
from darkroom.data.debug_log import DebugLog
from darkroom.data.index import generated
from darkroom.data.index.assign import assign_sizes
from darkroom.data.index.buckets import Buckets, make_buckets, schedule_buckets, validate_feasible, validate_sizes
from darkroom.data.index.build import IndexTerms, build_index, empty_report, read_sizes_table, sizing_of, table_of
from darkroom.data.index.conditioning import ConditioningDataset, drop_incomplete_samples, pair_conditioning
from darkroom.data.index.table import CODE, Index, OnProgress
from darkroom.data.manifest import Manifest, manifest_of
from darkroom.data.mask_check import describe_useless_masks
from darkroom.data.planned import PlannedDataset
from darkroom.data.process_group import SINGLE_PROCESS, ProcessGroup
from darkroom.data.requirements import DataRequirements
from darkroom.media.images import INSTALL, READERS, Traits
from darkroom.media.reference_image import ReferenceImage
from darkroom.options.datasets import DatasetFile, SampleDataset, TextEmbeds
from darkroom.options.datasets.entries import LOSS_MASKS
from darkroom.storage import open_store
from darkroom.storage.base import Missing, Refused, Store

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.data.batches.batch import Batch
    from darkroom.data.batches.loader import BatchLoader, SampleSource, Stack
    from darkroom.options.config import Config

SEED = 42
"""Used when no seed is set: crops must be the same at every start for the caches to hold."""

EXAMPLES = 5
MANY = 1000
"""Files after which a listing tells how far it is."""


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


def prepare_plan(
    config: Config,
    datasets: DatasetFile,
    bus: Bus,
    requirements: DataRequirements,
    *,
    alignment: int | None = None,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> DatasetPlan:
    """The plan of a run. Nothing is opened yet. `alignment` overrides what the options say."""
    return DatasetPlan(config, datasets, bus, requirements, alignment, process_group)


class DatasetPlan:
    """A dataset file on its way to batches. The caller goes through scan, fill and loader in this order."""

    def __init__(
        self,
        config: Config,
        file: DatasetFile,
        bus: Bus,
        requirements: DataRequirements,
        alignment: int | None = None,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ):
        self.config, self.file, self.bus, self.requirements, self.process_group = (
            config,
            file,
            bus,
            requirements,
            process_group,
        )
        self.required_captions: frozenset[str] = frozenset()
        self.required_image_captions: list[tuple[str, Sequence[ReferenceImage]]] = []
        self.seed = SEED if config.seed is None else config.seed
        self.accumulation = config.gradient_accumulation_steps
        self.oversubscribe = config.allow_dataset_oversubscription
        self.prune = not config.disable_bucket_pruning
        self.mode = config.data_backend_sampling
        self.combined = config.conditioning_multidataset_sampling == "combined"
        self.caption_dropout = config.caption_dropout_probability
        self.output = expand_home(config.output_dir)
        self.cache_dir = expand_home(config.cache_dir) if config.cache_dir else self.output / "cache"
        self.terms = IndexTerms(
            requirements,
            self.cache_dir / "index",
            self.seed,
            alignment or config.aspect_bucket_alignment,
            config.aspect_bucket_rounding,
            process_group=process_group,
            keep_vanished=config.ignore_missing_files,
            save_seconds=config.metadata_update_interval,
            telling=config.debug_aspect_buckets,
        )
        self.debug_log = DebugLog(
            filenames=config.print_filenames,
            statistics=config.print_sampler_statistics,
            batches=config.debug_dataset_loader,
        )
        keeps_crops = config.aspect_bucket_disable_rebuild
        self.caches = CacheFiller(file, requirements, keeps_crops, self.debug_log, self._warn)
        self.datasets: list[PlannedDataset] = []
        self.warnings: list[str] = []  # all that were emitted
        self._stores: dict[str, Store] = {}
        self._epoch: tuple[int, list[PlannedDataset], list[SampleSource]] | None = None

    # ------------------------------------------------------------------ scanning

    def scan(self, *, lenient: bool = False) -> DatasetPlan:
        """List all storages, read what changed, make buckets. Raises ConfigError, DataError, DiskFullError.

        With `lenient` a dataset of which nothing can be used, and samples that the family cannot take, stay in the plan
        instead of ending it: for those who want to look at them.
        """
        if self.process_group.is_first:
            for message in self.file.warnings:
                self._warn("datasets", message)
        if not lenient:
            self._validate_requirements()
        entries = [e for e in self.file.samples if e.is_training or e.dataset_type == "eval"]
        self.datasets = [self._scan(entry) for entry in entries]
        for d in [] if lenient else self.datasets:
            if d.buckets.count == 0:
                raise empty_report(d.entry, d.index, d.drop_counts, self._effective(d.entry, 1))
        return self

    def _validate_requirements(self) -> None:
        """Refuse what the family cannot be trained on."""
        for entry in self.file.samples:
            kind = entry.dataset_type
            if entry.video and entry.video.is_i2v is not None and not self.requirements.may_start:
                self._warn(entry.id, "video.is_i2v has no effect here: the flavour itself says what clips start from.")
            if entry.audio and not self.requirements.audio_format:
                self._warn(entry.id, f"audio has no effect: {self.requirements.display_name} does not train on sound.")
            if entry.layers and not self.requirements.layers:
                self._warn(
                    entry.id,
                    f"layers only keeps numbered pictures out: {self.requirements.display_name} trains on whole "
                    "pictures.",
                )
            if self.requirements.layers and not entry.layers and kind != "conditioning":
                raise DataError(
                    f"Dataset '{entry.id}' has no layers, and {self.requirements.display_name} trains on pictures "
                    "with their layers "
                    'here.\n  Set "layers": true, with name_0.png, name_1.png, ... beside each name.png.'
                )
            if kind in ("image", "video") and kind not in self.requirements.media:
                offered = " and ".join(sorted(self.requirements.media))
                raise DataError(
                    f"Dataset '{entry.id}' is of type {kind}, and {self.requirements.display_name} trains on "
                    f"{offered}.\n"
                    f"  Change its dataset_type, disable it, or choose a family that trains on {kind}."
                )
            if self.requirements.batch and entry.is_training and entry.train_batch_size > self.requirements.batch:
                raise DataError(
                    f"Dataset '{entry.id}' has train_batch_size = {entry.train_batch_size}, and captions of several "
                    "lengths in one batch need a mask, which this attention_mechanism does not take.\n"
                    f"  Set its train_batch_size to {self.requirements.batch}, or choose another attention_mechanism."
                )
            file_type = str(entry.conditioning_type)
            takes = (
                self.requirements.references
                if file_type.startswith("reference")
                else self.requirements.control is not None
            )
            if kind == "conditioning" and file_type not in LOSS_MASKS and not takes and entry.source_dataset_id:
                raise DataError(
                    f"Dataset '{entry.id}' brings {file_type} pictures, and {self.requirements.display_name} takes "
                    "none as it is "
                    "trained here.\n  Take it out of conditioning_data, or choose a family or flavour that takes them."
                )

    def store_of(self, entry: SampleDataset) -> Store:
        """Where the samples of a dataset are, opened once."""
        if entry.id not in self._stores:
            self._stores[entry.id] = open_store(entry.location)
        return self._stores[entry.id]

    def _terms_of(self, entry: SampleDataset) -> IndexTerms:
        filters = self.file.text_of(entry).caption_filter_list
        return replace(self.terms, filters=filters, sizes_table=read_sizes_table(self.output, entry))

    def _build_index(self, entry: SampleDataset) -> Index:
        on_progress = self._report_progress(f"scan {entry.id}")
        index = build_index(
            entry,
            self.store_of(entry),
            self._terms_of(entry),
            on_progress=on_progress,
            on_warn=lambda text: self._warn(entry.id, text),
        )
        if index.opened == 0 and len(index) >= MANY:  # the listing has shown a bar that nothing else will end
            on_progress(len(index), len(index))
        return index

    def _scan(self, entry: SampleDataset) -> PlannedDataset:
        index = self._build_index(entry)
        dataset = PlannedDataset(entry, index, Buckets(()), self._pair_conditioning(entry, index))
        self._bucket(dataset)
        self._explain(dataset)
        self._mention(dataset)
        return dataset

    def _pair_conditioning(self, entry: SampleDataset, index: Index) -> list[ConditioningDataset]:
        """Everything beside a dataset. Images that are still to be generated count as being there."""
        conditioning = []
        for conditioning_entry in self.file.conditioning_of(entry):
            if conditioning_entry.generator is not None and generated.missing(index, conditioning_entry):
                conditioning.append(
                    ConditioningDataset(
                        conditioning_entry, index.select_rows(np.arange(len(index)), absent="missing companion")
                    )
                )
                conditioning[-1].index.numbers["unfit"][:] = 0
            else:
                conditioning.append(pair_conditioning(index, self._build_index(conditioning_entry), conditioning_entry))
        if (
            self.requirements.requires_control
            and entry.is_training
            and not any(c.role == "control" for c in conditioning)
        ):
            raise DataError(
                f"Dataset '{entry.id}' has no control pictures, and this run of {self.requirements.display_name} "
                "trains on them.\n"
                "  Name a dataset of conditioning_type controlnet in its conditioning_data, or have them made: "
                '"conditioning": {"type": "canny"}.'
            )
        references = [c for c in conditioning if c.role == "reference" and not c.entry.optional]
        if self.requirements.text_images == "references" and entry.is_training and not references:
            raise DataError(
                f"Dataset '{entry.id}' has no reference pictures, and {self.requirements.display_name} reads its "
                "captions with "
                "them.\n  Name a dataset of conditioning_type reference_strict or reference_loose in its "
                "conditioning_data, with a picture for every sample."
            )
        return conditioning

    def _bucket(self, d: PlannedDataset) -> None:
        drop_incomplete_samples(d.index, d.conditioning, self.combined)
        d.buckets = make_buckets(d.index, d.entry, d.conditioning, prune=self.prune, oversubscribe=self.oversubscribe)

    def generate(self) -> int:
        """Make the conditioning images that are still missing. Returns how many. Raises DataError, DiskFullError."""
        count = 0
        for d in self.datasets:
            wanting = [c.entry for c in d.conditioning if c.entry.generator and generated.missing(d.index, c.entry)]
            for entry in wanting if self.process_group.is_first else []:
                count += generated.make(d.index, entry, self.seed, self._report_progress(f"generate {entry.id}"))
            if wanting:
                self.process_group.wait()
                d.conditioning = self._pair_conditioning(d.entry, d.index)
                self._bucket(d)
        return count

    def count_missing_generated(self) -> dict[str, int]:
        """Conditioning dataset to the number of images that are still to be generated for it."""
        return {
            c.entry.id: count
            for d in self.datasets
            for c in d.conditioning
            if c.entry.generator and (count := len(generated.missing(d.index, c.entry)))
        }

    def to_delete(self) -> list[tuple[str, str, str]]:
        """(dataset, path, reason) of every file that filling the caches would delete from the dataset itself."""
        paths = []
        for d in self.datasets:
            reasons = {"resolution_filter"} if d.entry.delete_unwanted_images else set()
            reasons |= set(DAMAGED) if d.entry.delete_problematic_images else set()
            if reasons and d.index.store.writable:
                paths += [(d.id, path, reason) for path, reason in d.index.iterate_dropped() if reason in reasons]
        return paths

    def _delete(self) -> None:
        """Delete what `to_delete` lists. Not while scanning: a mere plan, or another process, must delete nothing."""
        counts: dict[str, int] = {}
        for name, path, _ in self.to_delete():
            d = next(d for d in self.datasets if d.id == name)
            with suppress(Missing, Refused):
                d.index.store.delete(path)
                counts[name] = counts.get(name, 0) + 1
        for name, count in counts.items():
            options = "delete_unwanted_images, delete_problematic_images"
            self._warn(name, f"{count} files that are too small or broken were deleted ({options}).")

    def _explain(self, dataset: PlannedDataset) -> None:
        """One warning about everything that is not used, with some names and what installs a missing reader."""
        if not dataset.drop_counts or not self.process_group.is_first:
            return
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dataset.drop_counts.items()))
        names = [
            f"{path} ({reason})"
            for (path, reason), _ in zip(dataset.index.iterate_dropped(), range(EXAMPLES), strict=False)
        ]
        lacking = [reader for reader in READERS if reader.missing in dataset.drop_counts]
        self._warn(
            dataset.id,
            f"Dataset '{dataset.id}': not used: {counts}."
            + (f" For example {'; '.join(names)}." if names else "")
            + (f" Install what is missing with: {INSTALL}" if lacking else ""),
        )

    def _mention(self, dataset: PlannedDataset) -> None:
        """Warnings about what is used and may not be what was meant."""
        if not self.process_group.is_first:
            return
        if len(rows := dataset.rows_with(Traits.ANIMATED)):
            examples = "; ".join(dataset.index.path(int(row)) for row in rows[:EXAMPLES])
            self._warn(
                dataset.id,
                f"Dataset '{dataset.id}': {len(rows)} of its images are animated or have several pages; only the first "
                f"frame of each is used. For example {examples}.",
            )
        for about, index in ((dataset.id, dataset.index), *((c.entry.id, c.index) for c in dataset.conditioning)):
            if index.leaving:
                self._warn(
                    about,
                    f"Dataset '{about}': {len(index.leaving)} symbolic links lead out of its folder, and what is there "
                    f"is used. For example {'; '.join(index.leaving[:EXAMPLES])}.",
                )
        for c in dataset.conditioning:
            for sentence in describe_useless_masks(dataset.index, c) if c.role == "mask" else ():
                self._warn(c.entry.id, sentence)

    def _report_progress(self, phase: str) -> OnProgress:
        last = -1

        def report(finished: int, total: int) -> None:
            nonlocal last
            # a listing does not know its end; it is told as it comes, and other work once a per cent
            share = finished * 100 // total if total else -finished
            if share != last:
                last = share
                self.bus.emit(Progress(phase=phase, done=finished, total=total))

        return report

    def _warn(self, about: str, message: str) -> None:
        self.warnings.append(message)
        self.bus.emit(Warn(message=message, about=about))

    # ------------------------------------------------------------------ what there is

    @property
    def training(self) -> list[PlannedDataset]:
        """The datasets that are trained on, in the order of the file."""
        return [d for d in self.datasets if d.entry.is_training]

    def require_captions(
        self, captions: Iterable[str], image_captions: Iterable[tuple[str, Sequence[ReferenceImage]]] = ()
    ) -> DatasetPlan:
        """Keep these captions, alone or with images, in the default text cache too: validation prompts."""
        self.required_captions = frozenset([*self.required_captions, *captions])
        self.required_image_captions = [*self.required_image_captions, *image_captions]
        return self

    def manifest_hash(self) -> str:
        """A hash of which samples with which captions, crops and companions are trained on."""
        return digest(
            [[d.id, d.index.fingerprint(), [c.index.fingerprint() for c in d.conditioning]] for d in self.datasets]
        )

    def captions_by_cache(self) -> dict[str, list[str]]:
        """Text cache id to the captions it has to hold, each once, sorted."""
        captions: dict[str, set[str]] = {t.id: set() for t in self.file.text_embeds}
        for d in self.datasets:
            cache = captions[self.file.text_of(d.entry).id]
            if self.requirements.text_images:
                continue
            for index, entry in ((d.index, d.entry), *((c.index, c.entry) for c in d.conditioning if c.has_captions)):
                cache.update(() if entry.skips("text") else index.distinct_captions())
        if self.caption_dropout > 0 and not self.requirements.text_images:
            captions[self.file.default_text.id].add("")
        captions[self.file.default_text.id].update(self.required_captions)
        return {name: sorted(texts) for name, texts in captions.items()}

    def captions(self) -> list[str]:
        """All captions, each once, sorted; with "" when captions are sometimes dropped."""
        return sorted({text for texts in self.captions_by_cache().values() for text in texts})

    def _effective(self, entry: SampleDataset, ranks: int) -> int:
        return entry.train_batch_size * ranks * self.accumulation

    def order(self, ranks: int = 1, base: Base = START) -> Order:
        """The order of batches for `ranks` data-parallel processes, of data that are what they are since `base`."""
        recrops = any(self.caches.recrops(d.entry) for d in self.training)
        by_epoch = (lambda n: self._shapes(self.in_epoch(n), ranks)) if recrops else None
        return Order(
            self._shapes(self.training, ranks),
            seed=self.seed,
            ranks=ranks,
            accumulation=self.accumulation,
            mode=self.mode,
            by_epoch=by_epoch,
            base=base,
        )

    def manifest(self, ranks: int = 1) -> Manifest:
        """What is trained on, row by row, to be compared with what it is at a resume."""
        return manifest_of(self.training, self._shapes(self.training, ranks))

    def _shapes(self, datasets: Sequence[PlannedDataset], ranks: int) -> list[DatasetShape]:
        return [
            DatasetShape(
                id=d.id,
                bucket_sizes=d.buckets.sizes,
                batch_size=d.entry.train_batch_size,
                repeats=d.entry.repeats,
                probability=d.entry.probability,
                start_epoch=d.entry.start_epoch,
                end_epoch=d.entry.end_epoch,
                start_step=d.entry.start_step,
                end_step=d.entry.end_step,
                disable_after_epoch_step=d.entry.disable_after_epoch_step,
                slider_strength=d.entry.slider_strength,
                scheduled=schedule_buckets(d.buckets, d.entry, self._effective(d.entry, ranks), self.oversubscribe),
            )
            for d in datasets
        ]

    @property
    def lengths(self) -> Lengths:
        """Lengths for one process."""
        return self.lengths_for(1)

    def lengths_for(self, ranks: int) -> Lengths:
        """Lengths of the first epoch for several processes."""
        return self.order(ranks).lengths()

    def steps_and_epochs(self, ranks: int = 1, base: Base = START) -> tuple[int, int]:
        """(max_train_steps, num_train_epochs) with the one that is left open computed; without either, one epoch.

        With `ignore_final_epochs` the number of steps alone decides.
        """
        steps, epochs = self.config.max_train_steps, self.config.num_train_epochs
        if steps and self.config.ignore_final_epochs:
            epochs = None
        return steps_and_epochs(self.lengths_for(ranks).batches_per_epoch, self.accumulation, steps, epochs, base)

    def validate(self, ranks: int = 1) -> None:
        """Every bucket must fill an effective batch. Raises DataError for the first dataset where one does not."""
        for d in self.training:
            if d.buckets.count == 0:
                raise empty_report(d.entry, d.index, d.drop_counts, self._effective(d.entry, ranks))
            validate_sizes(d.entry, d.buckets, self.requirements)
            validate_feasible(
                d.entry, d.buckets, ranks=ranks, accumulation=self.accumulation, oversubscribe=self.oversubscribe
            )
            deals = schedule_buckets(d.buckets, d.entry, self._effective(d.entry, ranks), self.oversubscribe)
            if (deals != d.buckets.sizes * (d.entry.repeats + 1)).any():
                self._warn(
                    d.id,
                    f"Dataset '{d.id}' is oversubscribed: pictures of its small buckets are repeated to fill batches.",
                )

    # ------------------------------------------------------------------ epochs with crops of their own

    def in_epoch(self, n: int) -> list[PlannedDataset]:
        """The training datasets as they are in epoch `n` (from 1)."""
        if self._epoch is None or self._epoch[0] != n:
            datasets = [self._recrop(d, n) if n > 1 and self.caches.recrops(d.entry) else d for d in self.training]
            self._epoch = (n, datasets, [])
        return self._epoch[1]

    def _recrop(self, d: PlannedDataset, n: int) -> PlannedDataset:
        """A dataset with the crops of epoch `n`, and buckets made of them."""
        index = d.index.select_rows(np.arange(len(d.index)), absent="vanished")
        index.numbers["part"], index.numbers["unfit"] = d.index.numbers["part"].copy(), d.index.numbers["unfit"].copy()
        terms = self._terms_of(d.entry)
        sizing = sizing_of(
            d.entry,
            alignment=terms.alignment,
            rounding=terms.rounding,
            requirements=terms.requirements,
            table=terms.sizes_table,
        )
        table = table_of(d.entry, d.index.store)
        assign_sizes(index, np.arange(len(index)), d.entry, sizing, (self.seed, n), table)
        conditioning = [self._with_crops_of(index, c) for c in d.conditioning]
        dataset = PlannedDataset(d.entry, index, Buckets(()), conditioning)
        self._bucket(dataset)
        return dataset

    @staticmethod
    def _with_crops_of(source: Index, conditioning: ConditioningDataset) -> ConditioningDataset:
        if not conditioning.entry.is_aligned or conditioning.index.origin is None:
            return conditioning
        return pair_conditioning(source, conditioning.index.origin[0], conditioning.entry)

    # ------------------------------------------------------------------ caches

    def use_encoders(
        self,
        *,
        text_identity: str | None = None,
        latent_identity: str | None = None,
        plain_identity: str | None = None,
    ) -> DatasetPlan:
        """Say which encoders' caches are meant, when nothing is to be encoded here."""
        self.caches.use_encoders(text_identity, latent_identity, plain_identity)
        return self

    def text_cache(self, name: str) -> TextCache:
        """The text cache with this id."""
        return self.caches.texts(name)

    def latent_cache(self, d: PlannedDataset, epoch: int = 1) -> SampleCache:
        """The latent cache of a dataset."""
        return self.caches.samples(d, epoch)

    def missing(self) -> MissingEntries:
        """What the caches of the encoders in `use` lack; all of it when their identity is unknown."""
        latents = 0
        for d in self.datasets:
            for cache, rows in self.caches.to_fill(d):
                latents += len(rows) if cache is None else int((~cache.is_cached(rows)).sum())
        return MissingEntries(len(self._missing_texts()), latents)

    def _missing_texts(self) -> list[str]:
        """Captions that are encoded before training and not cached yet."""
        missing = []
        captions = self.captions_by_cache()
        for entry in self.file.text_embeds:
            if not on_demand(entry):
                captions_of_cache = captions[entry.id]
                missing += (
                    self.text_cache(entry.id).missing(captions_of_cache)
                    if self.caches.text_identity
                    else captions_of_cache
                )
                missing += self._missing_image_captions(entry)
        return missing

    def _missing_image_captions(self, entry: TextEmbeds) -> list[str]:
        """The same for captions that are read with images; those of images that were never read are missing."""
        missing: list[str] = []
        cache = self.text_cache(entry.id) if self.caches.text_identity else None
        for d in self._image_datasets(entry):
            indexes = [d.index, *(c.index for c in d.conditioning if c.role == "reference")]
            for row in d.index.usable.tolist():
                if cache is None or any(index.hashes[row] == b"" for index in indexes):
                    missing += d.index.captions_of(row)
                    continue
                pairs = self.source(d).iterate_image_captions([row], self.caption_dropout > 0)
                missing += [caption for caption, images in pairs if not cache.cache.has(cache.key(caption, images))]
        return missing

    @property
    def encodes_while_training(self) -> bool:
        """Whether the VAE is needed during training."""
        return any(d.entry.on_demand or self.caches.recrops(d.entry) for d in self.datasets)

    @property
    def reads_while_training(self) -> bool:
        """Whether the text encoders are needed during training."""
        return any(map(on_demand, self.file.text_embeds))

    def fill_text(
        self, encode: EncodeText, identity: str, encode_with_images: EncodeTextWithImages | None = None
    ) -> FillReport:
        """Encode all captions that are not cached. Raises DiskFullError and what the encoder raises.

        `seen` encodes those that are read with images; the identities of latents must be in `use` for it.
        """
        self.use_encoders(text_identity=identity)
        self.caches.set_text_encoders(TextEncoders(encode, encode_with_images))
        self.generate()  # what is made may have captions of its own
        total = FillReport()
        for entry in self.file.text_embeds:
            if on_demand(entry) or entry.skips("text"):
                continue
            captions = self.captions_by_cache()[entry.id]
            share = self.process_group.share(np.arange(len(captions)), entry.write_batch_size)
            total += self.text_cache(entry.id).fill(
                [captions[i] for i in share],
                encode,
                entry.text_encoder_batch_size,
                self._report_progress("encode text"),
            )
            if encode_with_images is not None:
                total += self._fill_image_captions(entry, encode_with_images)
            if self.process_group.size > 1:
                self.process_group.wait()
                self.caches.shards_of(entry).refresh()
        return total

    def _fill_image_captions(self, entry: TextEmbeds, encode: EncodeTextWithImages) -> FillReport:
        """Encode what is read with images and belongs in this text cache."""
        cache, on_progress, total = self.text_cache(entry.id), self._report_progress("encode text"), FillReport()
        for d in self._image_datasets(entry):
            rows = self.process_group.share(d.index.usable, entry.write_batch_size)
            pairs = self.source(d).iterate_image_captions(rows.tolist(), self.caption_dropout > 0)
            total += cache.fill_with_images(pairs, self._pairs(d, rows), encode, on_progress)
        if entry is self.file.default_text and self.process_group.is_first:
            total += cache.fill_with_images(
                self.required_image_captions, len(self.required_image_captions), encode, on_progress
            )
        return total

    def _image_datasets(self, entry: TextEmbeds) -> list[PlannedDataset]:
        """The datasets of a text cache whose captions are read with images."""
        datasets = [d for d in self.datasets if self.file.text_of(d.entry) is entry and not d.entry.skips("text")]
        return [d for d in datasets if self.requirements.text_images]

    def _pairs(self, d: PlannedDataset, rows: np.ndarray) -> int:
        """How many captions of these samples are read with images, at most."""
        images = sum(c.role != "mask" for c in d.conditioning)
        per_image = sum(len(d.index.captions_of(int(row))) for row in rows) + len(rows) * (self.caption_dropout > 0)
        return per_image * (1 if self.combined else max(1, images))

    def fill_latents(
        self, encode: EncodePixels, identity: str, plain: tuple[EncodePixels, str] | None = None
    ) -> FillReport:
        """Encode all samples that are not cached. Undecodable ones are left out, reported, and remembered.

        `plain` encodes images beside samples, when it is another encoder than the one of the samples.
        """
        self.use_encoders(latent_identity=identity, plain_identity=plain[1] if plain else identity)
        self.caches.set_sample_encoders(encode, plain[0] if plain else encode)
        self.generate()
        if self.process_group.is_first:
            self._delete()
        total = FillReport()
        for d in self.datasets:
            report = self._fill(d)
            total += report
            before = d.buckets.count
            self._bucket(d)  # also when another process met what had to be left out
            if d.buckets.count != before or report.dropped:
                self._explain(d)
            if d.buckets.count == 0:
                raise empty_report(d.entry, d.index, d.drop_counts, self._effective(d.entry, 1))
        return total

    def _fill(self, d: PlannedDataset) -> FillReport:
        """Fill the caches of one dataset and of what is beside it."""
        total = FillReport()
        for c in d.conditioning:
            if c.entry.on_demand or d.entry.on_demand or c.entry.skips("vae"):
                continue
            unfit = c.index.numbers["unfit"].copy()
            c.index.numbers["unfit"][d.index.is_dropped != 0] = CODE["missing companion"]  # what goes with nothing
            total += self._fill_cache(self.caches.conditioning_cache(d, c), c, c.entry)
            c.index.numbers["unfit"] = unfit
        drop_incomplete_samples(d.index, d.conditioning, self.combined)
        if not d.entry.on_demand and not d.entry.skips("vae"):
            total += self._fill_cache(self.caches.samples(d), None, d.entry)
        return total

    def _fill_cache(self, cache: SampleCache, c: ConditioningDataset | None, entry: SampleDataset) -> FillReport:
        """Fill one cache, and agree with the other processes about it."""
        encode = self.caches.encoder_of(c)[1]
        assert encode is not None
        report = cache.fill(encode, entry, self._report_progress("encode latents"), self.process_group)
        cache.agree(self.process_group)
        dropped = {f"{entry.id}: {path}": reason for path, reason in report.dropped.items()}
        return FillReport(report.encoded, report.reused, dropped, report.seconds)

    def text(self, caption: str, images: Sequence[ReferenceImage] = ()) -> dict[str, Tensor]:
        """The condition of a caption, read with these images, from the default text cache."""
        return self.text_cache(self.file.default_text.id).get(caption, images)

    # ------------------------------------------------------------------ batches

    def source(self, d: PlannedDataset, epoch: int = 1) -> SampleSource:
        """A dataset with its caches."""
        from darkroom.data.batches.loader import CachedConditioning, SampleSource

        return SampleSource(
            d.id,
            d.index,
            d.buckets,
            self.latent_cache(d, epoch),
            self.text_cache(self.file.text_of(d.entry).id),
            self.text_cache(self.file.default_text.id),
            tuple(CachedConditioning(c, self.caches.conditioning_cache(d, c)) for c in d.conditioning),
            self.combined,
            d.entry.is_regularisation_data,
            d.entry.slider_strength,
            d.entry.timestep_sampling_offset,
            d.entry.video.is_i2v if d.entry.video else None,
            self.requirements.text_images,
        )

    def sources(self, epoch: int) -> list[SampleSource]:
        """The training datasets with their caches, as they are in an epoch. Latents of epochs before go."""
        datasets = self.in_epoch(epoch)
        assert self._epoch is not None
        if not self._epoch[2]:
            for d in self.training if self.process_group.is_first else []:
                if self.caches.recrops(d.entry):
                    self.caches.forget_other_epochs(d.entry, epoch)
            self._epoch[2].extend(self.source(d, epoch) for d in datasets)
        return self._epoch[2]

    @property
    def prefetches(self) -> bool:
        """Are batches made ahead? If nobody has said so, not where encoders would be at work beside the step."""
        if self.config.dataloader_prefetch is not None:
            return self.config.dataloader_prefetch
        return not (self.encodes_while_training or self.reads_while_training)

    def loader(
        self,
        *,
        rank: int = 0,
        ranks: int = 1,
        stack: Stack | None = None,
        order: Order | None = None,
        pins: bool = False,
    ) -> BatchLoader:
        """The batches of one process; with `pins` in memory that a GPU copies from without being waited for."""
        from darkroom.data.batches.loader import BatchLoader

        return BatchLoader(
            order or self.order(ranks),
            self.sources,
            rank=rank,
            caption_dropout=self.caption_dropout,
            conditioning_dropout=self.config.conditioning_dropout_probability,
            masked_loss_probability=self.config.masked_loss_probability,
            stack=stack,
            prefetch=self.prefetches,
            qlen=self.config.dataloader_prefetch_qlen,
            pins=pins,
            on_warn=self._warn,
            debug_log=self.debug_log,
        )

    def eval_loader(self, dataset: str, *, stack: Stack | None = None, limit: int | None = None) -> Iterator[Batch]:
        """The samples of a held-out dataset, one by one, always in the same order and with their first caption."""
        from darkroom.data.batches.loader import RandomChoices, gather

        planned = next((d for d in self.datasets if d.id == dataset), None)
        if planned is None:
            raise DataError(f"There is no dataset '{dataset}'; there are {', '.join(d.id for d in self.datasets)}.")
        source = self.source(planned)
        for position, row in enumerate(planned.index.usable[:limit].tolist()):
            random_choices = RandomChoices(
                [source.captions_of(row, source.choose_conditioning(row, 0))[0]], [False], [False], [True]
            )
            yield gather(source, [row], random_choices, stack, 0, position)

    # ------------------------------------------------------------------ telling

    def estimate(self, latent_bytes: Callable[[int, int, int], int], text_bytes: Callable[[str], int]) -> Estimate:
        """Entries and bytes the caches will need. `latent_bytes` is given a target's width, height and frames."""
        latents = reused = written = 0
        for d in self.datasets:
            for cache, rows in self.caches.to_fill(d):
                index = d.index if cache is None else cache.index
                is_cached = np.zeros(len(rows), bool) if cache is None else cache.is_cached(rows)
                reused += int(is_cached.sum())
                latents += int((~is_cached).sum())
                columns = [index.numbers[name][rows[~is_cached]] for name in ("target_width", "target_height", "count")]
                for shape, count in zip(*np.unique(np.stack(columns, 1), axis=0, return_counts=True), strict=True):
                    written += int(count) * latent_bytes(*map(int, shape))
        texts = self._missing_texts()
        total = sum(len(c) for c in self.captions_by_cache().values())
        return Estimate(latents, reused, len(texts), total - len(texts), written + sum(map(text_bytes, texts)))

    def report(self, ranks: int = 1) -> str:
        """The table that is printed before training."""
        return reports.table(self.datasets, self.lengths_for(ranks))

    def as_dict(self, ranks: int = 1) -> dict[str, Any]:
        """The same for machines."""
        return reports.as_dict(self.datasets, self.lengths_for(ranks), self.seed)
