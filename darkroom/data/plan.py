"""From a dataset file to what is trained on: datasets, their buckets, and how long they keep a run busy.

    plan = scan_datasets(config, datasets, bus, requirements)
    caches = DatasetCaches(plan, encoders)  # data/cache/caches.py
    filler = CacheFiller(caches, required)  # data/cache/filler.py
    filler.fill_text()
    filler.fill_latents()
    with BatchSource(caches).loader() as loader:  # data/batches/source.py
        for batch in loader.epoch(1): ...

Everything here works without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from darkroom.core.events import Bus
from darkroom.core.files import digest
from darkroom.data import report as reports
from darkroom.data.batches.order import START, Base, DatasetShape, Lengths, Order, steps_and_epochs
from darkroom.data.index import generated
from darkroom.data.index.buckets import schedule_buckets, validate_feasible, validate_sizes
from darkroom.data.index.table import DAMAGED
from darkroom.data.manifest import Manifest, manifest_of
from darkroom.data.planned import PlannedDataset
from darkroom.data.process_group import SINGLE_PROCESS, ProcessGroup
from darkroom.data.reporter import DataReporter
from darkroom.data.requirements import DataRequirements
from darkroom.data.scan import DatasetScanner
from darkroom.data.suitability import fit_conditioning
from darkroom.options.datasets import DatasetFile, TextEmbeds
from darkroom.storage.base import Missing, Refused

if TYPE_CHECKING:
    from darkroom.options.config import Config


def scan_datasets(
    config: Config,
    file: DatasetFile,
    bus: Bus,
    requirements: DataRequirements,
    *,
    process_group: ProcessGroup = SINGLE_PROCESS,
    lenient: bool = False,
) -> DatasetPlan:
    """List all storages, read what changed, make buckets. Raises ConfigError, DataError, DiskFullError.

    With `lenient` a dataset of which nothing can be used, and samples that the family cannot take, stay in the plan
    instead of ending it: for those who want to look at them.
    """
    file = fit_conditioning(file, requirements)
    scanner = DatasetScanner(config, file, DataReporter(bus), requirements, process_group)
    return DatasetPlan(scanner, scanner.scan(lenient=lenient))


@dataclass(frozen=True, eq=False)
class DatasetPlan:
    """What is trained on. Its datasets change only where samples turn out damaged, or images are generated for them."""

    scanner: DatasetScanner
    datasets: tuple[PlannedDataset, ...]

    @property
    def config(self) -> Config:
        """The options of the run."""
        return self.scanner.config

    @property
    def file(self) -> DatasetFile:
        """The dataset file."""
        return self.scanner.file

    @property
    def requirements(self) -> DataRequirements:
        """What the family asks of data."""
        return self.scanner.requirements

    @property
    def process_group(self) -> ProcessGroup:
        """The processes that prepare data together."""
        return self.scanner.process_group

    @property
    def reporter(self) -> DataReporter:
        """Where warnings and progress go."""
        return self.scanner.reporter

    @property
    def seed(self) -> int:
        """What crops and the order of batches are drawn from."""
        return self.scanner.terms.seed

    @property
    def training(self) -> list[PlannedDataset]:
        """The datasets that are trained on, in the order of the file."""
        return [d for d in self.datasets if d.entry.is_training]

    @property
    def encodes_while_training(self) -> bool:
        """Whether the VAE is needed during training."""
        return any(d.entry.on_demand or self.scanner.recrops(d.entry) for d in self.datasets)

    @property
    def reads_while_training(self) -> bool:
        """Whether the text encoders are needed during training."""
        return any(entry.on_demand for entry in self.file.text_embeds)

    # -- captions -----------------------------------------------------------------------------------------------------

    def captions_by_cache(self) -> dict[str, list[str]]:
        """Text cache id to the captions of the datasets that it has to hold, each once, sorted."""
        captions: dict[str, set[str]] = {t.id: set() for t in self.file.text_embeds}
        if self.requirements.text_images:  # each is read with an image, and has an entry for that
            return {name: [] for name in captions}
        for d in self.datasets:
            cache = captions[self.file.text_of(d.entry).id]
            for index, entry in ((d.index, d.entry), *((c.index, c.entry) for c in d.conditioning if c.has_captions)):
                cache.update(() if entry.skips("text") else index.distinct_captions())
        if self.config.caption_dropout_probability > 0:
            captions[self.file.default_text.id].add("")
        return {name: sorted(texts) for name, texts in captions.items()}

    def captions(self) -> list[str]:
        """All captions, each once, sorted; with "" when captions are sometimes dropped."""
        return sorted({text for texts in self.captions_by_cache().values() for text in texts})

    def image_datasets(self, text: TextEmbeds) -> list[PlannedDataset]:
        """The datasets of a text cache whose captions are read with images."""
        if not self.requirements.text_images:
            return []
        return [d for d in self.datasets if self.file.text_of(d.entry) is text and not d.entry.skips("text")]

    # -- lengths ------------------------------------------------------------------------------------------------------

    def shapes(self, ranks: int = 1, datasets: Sequence[PlannedDataset] | None = None) -> list[DatasetShape]:
        """What the order of batches has to know of the training datasets, or of these."""
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
                short=d.entry.short_batches,
                scheduled=self._schedule(d, ranks),
            )
            for d in (self.training if datasets is None else datasets)
        ]

    def _schedule(self, d: PlannedDataset, ranks: int) -> np.ndarray:
        """How often each bucket is dealt in an epoch, with what oversubscription adds."""
        oversubscribe = self.config.allow_dataset_oversubscription
        return schedule_buckets(d.buckets, d.entry, self.scanner.effective_batch(d.entry, ranks), oversubscribe)

    @property
    def lengths(self) -> Lengths:
        """Lengths for one process."""
        return self.lengths_for(1)

    def lengths_for(self, ranks: int) -> Lengths:
        """Lengths of the first epoch for several processes."""
        config = self.config
        order = Order(
            self.shapes(ranks),
            seed=self.seed,
            ranks=ranks,
            accumulation=config.gradient_accumulation_steps,
            mode=config.data_backend_sampling,
        )
        return order.lengths()

    def steps_and_epochs(self, ranks: int = 1, base: Base = START) -> tuple[int, int]:
        """(max_train_steps, num_train_epochs) with the one that is left open computed; without either, one epoch.

        With `ignore_final_epochs` the number of steps alone decides.
        """
        steps, epochs = self.config.max_train_steps, self.config.num_train_epochs
        if steps and self.config.ignore_final_epochs:
            epochs = None
        batches = self.lengths_for(ranks).batches_per_epoch
        return steps_and_epochs(batches, self.config.gradient_accumulation_steps, steps, epochs, base)

    def validate(self, ranks: int = 1) -> None:
        """Every bucket must fill an effective batch. Raises DataError for the first dataset where one does not."""
        for d in self.training:
            self.scanner.refuse_empty(d, ranks)
            validate_sizes(d.entry, d.buckets, self.requirements)
            validate_feasible(
                d.entry,
                d.buckets,
                ranks=ranks,
                accumulation=self.config.gradient_accumulation_steps,
                oversubscribe=self.config.allow_dataset_oversubscription,
            )
            if (self._schedule(d, ranks) != d.buckets.sizes * (d.entry.repeats + 1)).any():
                self.reporter.warn(
                    d.id,
                    f"Dataset '{d.id}' is oversubscribed: pictures of its small buckets are repeated to fill batches.",
                )

    # -- files of the datasets ----------------------------------------------------------------------------------------

    def generate(self) -> int:
        """Make the conditioning images that are still missing. Returns how many. Raises DataError, DiskFullError."""
        count = 0
        for d in self.datasets:
            todo = [c.entry for c in d.conditioning if c.entry.generator and generated.missing(d.index, c.entry)]
            for entry in todo if self.process_group.is_first else []:
                count += generated.make(d.index, entry, self.seed, self.reporter.track(f"generate {entry.id}"))
            if todo:
                self.process_group.wait()
                d.conditioning = self.scanner.pair_conditioning(d.entry, d.index)
                self.scanner.assign_buckets(d)
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

    def delete_unusable(self) -> None:
        """Delete what `to_delete` lists. Not while scanning: a mere plan, or another process, must delete nothing."""
        counts: dict[str, int] = {}
        for name, path, _ in self.to_delete():
            d = next(d for d in self.datasets if d.id == name)
            with suppress(Missing, Refused):
                d.index.store.delete(path)
                counts[name] = counts.get(name, 0) + 1
        for name, count in counts.items():
            options = "delete_unwanted_images, delete_problematic_images"
            self.reporter.warn(name, f"{count} files that are too small or broken were deleted ({options}).")

    # -- for people ---------------------------------------------------------------------------------------------------

    def manifest_hash(self) -> str:
        """A hash of which samples with which captions, crops and companions are trained on."""
        return digest(
            [[d.id, d.index.fingerprint(), [c.index.fingerprint() for c in d.conditioning]] for d in self.datasets]
        )

    def manifest(self, ranks: int = 1) -> Manifest:
        """What is trained on, row by row, to be compared with what it is at a resume."""
        return manifest_of(self.training, self.shapes(ranks))

    def report(self, ranks: int = 1) -> str:
        """The table that is printed before training."""
        return reports.table(self.datasets, self.lengths_for(ranks))

    def as_dict(self, ranks: int = 1) -> dict[str, object]:
        """The same for machines."""
        return reports.as_dict(self.datasets, self.lengths_for(ranks), self.seed)
