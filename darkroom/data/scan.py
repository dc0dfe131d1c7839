"""From the storages of a dataset file to datasets in buckets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from darkroom.core.files import expand_home
from darkroom.data.index import generated
from darkroom.data.index.assign import assign_sizes
from darkroom.data.index.buckets import Buckets, make_buckets
from darkroom.data.index.build import IndexTerms, build_index, table_of
from darkroom.data.index.conditioning import ConditioningDataset, drop_incomplete_samples, pair_conditioning
from darkroom.data.index.empty import empty_report
from darkroom.data.index.sizing import read_sizes_table, sizing_of
from darkroom.data.index.table import Index
from darkroom.data.planned import PlannedDataset
from darkroom.data.process_group import SINGLE_PROCESS, ProcessGroup
from darkroom.data.report import describe_surprises, describe_unused
from darkroom.data.reporter import DataReporter
from darkroom.data.requirements import DataRequirements
from darkroom.data.suitability import require_conditioning, validate_suitability
from darkroom.options.datasets import DatasetFile, SampleDataset
from darkroom.storage import open_store
from darkroom.storage.base import Store

if TYPE_CHECKING:
    from darkroom.options.config import Config

SEED = 42
"""Used when no seed is set: crops must be the same at every start for the caches to hold."""

MANY = 1000
"""Files after which a listing tells how far it is."""


class DatasetScanner:
    """Lists the storages of a dataset file, reads what changed, and sorts samples into buckets.

    It stays with the plan that it made: buckets are sorted anew when samples turn out damaged, when images beside them
    have been generated, and in epochs with crops of their own.
    """

    def __init__(
        self,
        config: Config,
        file: DatasetFile,
        reporter: DataReporter,
        requirements: DataRequirements,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ):
        self.config, self.file, self.reporter = config, file, reporter
        self.requirements, self.process_group = requirements, process_group
        self.output = expand_home(config.output_dir)
        cache_dir = expand_home(config.cache_dir) if config.cache_dir else self.output / "cache"
        self.combined = config.conditioning_multidataset_sampling == "combined"
        self.terms = IndexTerms(
            requirements,
            cache_dir / "index",
            SEED if config.seed is None else config.seed,
            config.aspect_bucket_alignment,
            config.aspect_bucket_rounding,
            process_group=process_group,
            keep_vanished=config.ignore_missing_files,
            save_seconds=config.metadata_update_interval,
            telling=config.debug_aspect_buckets,
        )
        self._stores: dict[str, Store] = {}

    def scan(self, *, lenient: bool = False) -> tuple[PlannedDataset, ...]:
        """All datasets that are trained on or held out. Raises ConfigError, DataError, DiskFullError.

        With `lenient` a dataset of which nothing can be used, and samples that the family cannot take, are among them
        instead of ending it.
        """
        if self.process_group.is_first:
            for message in self.file.warnings:
                self.reporter.warn("datasets", message)
        if not lenient:
            for about, message in validate_suitability(self.file, self.requirements):
                self.reporter.warn(about, message)
        entries = [e for e in self.file.samples if e.is_training or e.dataset_type == "eval"]
        datasets = tuple([self._scan_dataset(entry) for entry in entries])
        for d in () if lenient else datasets:
            self.refuse_empty(d)
        return datasets

    def _scan_dataset(self, entry: SampleDataset) -> PlannedDataset:
        index = self._build_index(entry)
        dataset = PlannedDataset(entry, index, Buckets(()), self.pair_conditioning(entry, index))
        self.assign_buckets(dataset)
        self.explain_unused(dataset)
        if self.process_group.is_first:
            for about, message in describe_surprises(dataset):
                self.reporter.warn(about, message)
        return dataset

    def _store_of(self, entry: SampleDataset) -> Store:
        """Where the samples of a dataset are, opened once."""
        if entry.id not in self._stores:
            self._stores[entry.id] = open_store(entry.location)
        return self._stores[entry.id]

    def _terms_of(self, entry: SampleDataset) -> IndexTerms:
        filters = self.file.text_of(entry).caption_filter_list
        return replace(self.terms, filters=filters, sizes_table=read_sizes_table(self.output, entry))

    def _build_index(self, entry: SampleDataset) -> Index:
        on_progress = self.reporter.track(f"scan {entry.id}")
        index = build_index(
            entry,
            self._store_of(entry),
            self._terms_of(entry),
            on_progress=on_progress,
            on_warn=lambda text: self.reporter.warn(entry.id, text),
        )
        if index.opened == 0 and len(index) >= MANY:  # the listing has shown a bar that nothing else will end
            on_progress(len(index), len(index))
        return index

    def pair_conditioning(self, entry: SampleDataset, index: Index) -> list[ConditioningDataset]:
        """Everything beside a dataset. Images that are still to be generated count as being there."""
        conditioning = [self._pair(paired, index) for paired in self.file.conditioning_of(entry)]
        roles = {c.role for c in conditioning if not (c.role == "reference" and c.entry.optional)}
        require_conditioning(entry, roles, self.requirements)
        return conditioning

    def _pair(self, entry: SampleDataset, index: Index) -> ConditioningDataset:
        if entry.generator is None or not generated.missing(index, entry):
            return pair_conditioning(index, self._build_index(entry), entry)
        paired = ConditioningDataset(entry, index.select_rows(np.arange(len(index)), absent="missing companion"))
        paired.index.numbers["unfit"][:] = 0
        return paired

    def assign_buckets(self, d: PlannedDataset) -> None:
        """Sort the samples that can be used into buckets, anew if they were sorted before."""
        drop_incomplete_samples(d.index, d.conditioning, self.combined)
        d.buckets = make_buckets(
            d.index,
            d.entry,
            d.conditioning,
            prune=not self.config.disable_bucket_pruning,
            oversubscribe=self.config.allow_dataset_oversubscription,
        )

    def explain_unused(self, d: PlannedDataset) -> None:
        """One warning about everything of a dataset that is not used, from the first process."""
        if self.process_group.is_first:
            for message in describe_unused(d):
                self.reporter.warn(d.id, message)

    def refuse_empty(self, d: PlannedDataset, ranks: int = 1) -> None:
        """Raises DataError for a dataset of which nothing can be used."""
        if d.buckets.count == 0:
            raise empty_report(d.entry, d.index, d.drop_counts, self.effective_batch(d.entry, ranks))

    def effective_batch(self, entry: SampleDataset, ranks: int) -> int:
        """Samples of a dataset that one update takes."""
        return entry.train_batch_size * ranks * self.config.gradient_accumulation_steps

    # -- epochs with crops of their own -------------------------------------------------------------------------------

    def recrops(self, entry: SampleDataset) -> bool:
        """Whether a dataset draws its crops anew in every epoch."""
        keeps_crops = self.config.aspect_bucket_disable_rebuild
        has_random_crops = entry.crop and entry.crop_aspect == "random" and not keeps_crops
        return entry.vae_cache_clear_each_epoch or has_random_crops

    def recrop(self, d: PlannedDataset, epoch: int) -> PlannedDataset:
        """A dataset with the crops of an epoch, and buckets made of them."""
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
        assign_sizes(index, np.arange(len(index)), d.entry, sizing, (terms.seed, epoch), table)
        dataset = PlannedDataset(d.entry, index, Buckets(()), list(_take_crops_of(index, d.conditioning)))
        self.assign_buckets(dataset)
        return dataset


def _take_crops_of(source: Index, conditioning: list[ConditioningDataset]) -> Iterator[ConditioningDataset]:
    """What is beside a dataset; pixel-aligned images get the crops of their samples."""
    for c in conditioning:
        if c.entry.is_aligned and c.index.origin is not None:
            yield pair_conditioning(source, c.index.origin[0], c.entry)
        else:
            yield c
