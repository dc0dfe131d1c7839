"""From a dataset file to batches, for the code that runs a job.

    plan = prepare(config, datasets, bus, model_family).scan()
    plan.fill_text(encode_text, identity)
    plan.fill_latents(encode_pixels, identity)
    with plan.loader() as loader:
        for batch in loader.epoch(1): ...

Everything up to and including the estimate works without torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from darkroom.core.errors import DataError
from darkroom.core.events import Bus, Progress, Warn
from darkroom.core.files import digest
from darkroom.data import report as reports
from darkroom.data.buckets import Buckets, check_feasible, make_buckets, scheduled
from darkroom.data.cache import FillReport, ShardCache
from darkroom.data.index import CODE, Index, Say, empty_report, scan, sizing_of
from darkroom.data.latent_cache import EncodePixels, LatentCache
from darkroom.data.order import DatasetShape, Lengths, Order, steps_and_epochs
from darkroom.data.text_cache import EncodeText, TextCache
from darkroom.media.resize import Size
from darkroom.options.dataset import DatasetFile, ImageDataset, setting

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.data.loader import Loader, Source, Stack
    from darkroom.data.sample import Batch

SEED = 42
"""Used when no seed is set: crops must be the same at every start for the caches to hold."""

EXAMPLES = 5


@dataclass(eq=False)
class PlannedDataset:
    """One dataset of the plan, after the scan."""

    entry: ImageDataset
    index: Index
    buckets: Buckets

    @property
    def id(self) -> str:
        """The entry's id."""
        return self.entry.id

    @property
    def dropped(self) -> dict[str, int]:
        """How many pictures are not used, by reason."""
        counts = {**self.index.reasons(), **(self.index.problems or {})}
        return counts | ({"max_num_samples": self.index.left_out} if self.index.left_out else {})


@dataclass(frozen=True)
class Missing:
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


def prepare(
    config: Any,
    datasets: DatasetFile,
    bus: Bus,
    model_family: str,
    *,
    alignment: int | None = None,
    canvas: int | None = None,
) -> Plan:
    """The plan of a run. Nothing is opened yet. `alignment` and `canvas` (pixels) override what the options say."""
    return Plan(config, datasets, bus, model_family, alignment, canvas)


class Plan:
    """A dataset file on its way to batches. The caller goes through scan, fill and loader in this order."""

    def __init__(
        self,
        config: Any,
        file: DatasetFile,
        bus: Bus,
        family: str,
        alignment: int | None = None,
        canvas: int | None = None,
    ):
        self.config, self.file, self.bus, self.family, self.canvas = config, file, bus, family, canvas
        self.wanted: frozenset[str] = frozenset()
        self.alignment = alignment or int(setting(config, "aspect_bucket_alignment", 64))
        self.rounding = int(setting(config, "aspect_bucket_rounding", 2))
        self.seed = int(setting(config, "seed", SEED))
        self.accumulation = int(setting(config, "gradient_accumulation_steps", 1))
        self.oversubscribe = bool(setting(config, "allow_dataset_oversubscription", False))
        self.prune = not setting(config, "disable_bucket_pruning", False)
        self.mode = str(setting(config, "data_backend_sampling", "auto-weighting"))
        self.caption_dropout = float(setting(config, "caption_dropout_probability", 0.1))
        self.output = Path(str(setting(config, "output_dir", "output"))).expanduser()
        self.cache_dir = Path(str(setting(config, "cache_dir", self.output / "cache"))).expanduser()
        self.datasets: list[PlannedDataset] = []
        self.text_identity: str | None = None
        self.latent_identity: str | None = None
        self._stores: dict[Path, ShardCache] = {}

    # ------------------------------------------------------------------ scanning

    def scan(self) -> Plan:
        """List all folders, read what changed, make buckets. Raises DataError, DiskFullError."""
        for message in self.file.warnings:
            self.bus.emit(Warn(message=message, about="datasets"))
        self.datasets = [self._scan(entry) for entry in self.file.images]
        return self

    def _scan(self, entry: ImageDataset) -> PlannedDataset:
        sizing = sizing_of(
            entry, alignment=self.alignment, rounding=self.rounding, canvas=self.canvas, table=self._sizes_table(entry)
        )
        index = scan(
            entry,
            sizing,
            self.cache_dir / "index",
            self.seed,
            filters=self.file.text_of(entry).caption_filter_list,
            on_progress=self._say(f"scan {entry.id}"),
            on_warn=lambda text: self._warn(entry.id, text),
        )
        made = PlannedDataset(
            entry, index, make_buckets(index, entry, prune=self.prune, oversubscribe=self.oversubscribe)
        )
        self._explain(made)
        if made.buckets.count == 0:
            raise empty_report(entry, index, made.dropped, self._effective(entry, 1))
        return made

    def _sizes_table(self, entry: ImageDataset) -> dict[float, Size]:
        """Target sizes by aspect that a person (or SimpleTuner) wrote into the output folder for this resolution."""
        if entry.size_kind != "area":
            return {}
        path = self.output / f"aspect_resolution_map-{entry.in_unit(entry.resolution)}.json"
        try:
            return {
                float(key): (int(size[0]), int(size[1]))
                for key, size in json.loads(path.read_text(encoding="utf-8")).items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, IndexError, AttributeError) as cause:
            raise DataError(
                f"The resolution map {path} cannot be read: {cause}\n"
                '  It holds one object such as {"1.75": [1344, 768]}; correct or remove it.'
            ) from cause

    def _delete_unwanted(self, entry: ImageDataset, index: Index) -> None:
        rows = np.flatnonzero(index.numbers["unfit"] == CODE["resolution_filter"])
        for row in rows:
            (index.root / index.path(int(row))).unlink(missing_ok=True)
        if len(rows):
            self._warn(
                entry.id, f"{len(rows)} pictures below minimum_image_size were deleted (delete_unwanted_images)."
            )

    def _explain(self, made: PlannedDataset) -> None:
        """One warning about everything that is not used, with some names."""
        if not made.dropped:
            return
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(made.dropped.items()))
        names = [
            f"{path} ({reason})" for (path, reason), _ in zip(made.index.left_out_rows(), range(EXAMPLES), strict=False)
        ]
        self._warn(
            made.id,
            f"Dataset '{made.id}': not used: {counts}." + (f" For example {'; '.join(names)}." if names else ""),
        )

    def _say(self, phase: str) -> Say:
        last = -1

        def say(done: int, total: int) -> None:
            nonlocal last
            share = done * 100 // max(total, 1)
            if share != last:
                last = share
                self.bus.emit(Progress(phase=phase, done=done, total=total))

        return say

    def _warn(self, about: str, message: str) -> None:
        self.bus.emit(Warn(message=message, about=about))

    # ------------------------------------------------------------------ what there is

    @property
    def training(self) -> list[PlannedDataset]:
        """The datasets that are trained on, in the order of the file."""
        return [d for d in self.datasets if d.entry.dataset_type == "image"]

    @property
    def evaluation(self) -> list[PlannedDataset]:
        """The datasets that are held out."""
        return [d for d in self.datasets if d.entry.dataset_type == "eval"]

    def want(self, captions: Iterable[str]) -> Plan:
        """Keep these captions in the default text cache too: validation prompts."""
        self.wanted = frozenset([*self.wanted, *captions])
        return self

    def manifest_hash(self) -> str:
        """A hash of which pictures with which captions and crops are trained on."""
        return digest([[d.id, d.index.fingerprint()] for d in self.datasets])

    def captions_by_cache(self) -> dict[str, list[str]]:
        """Text cache id to the captions it has to hold, each once, sorted."""
        found: dict[str, set[str]] = {t.id: set() for t in self.file.text_embeds}
        for d in self.datasets:
            found[self.file.text_of(d.entry).id].update(d.index.distinct_captions())
        if self.caption_dropout > 0:
            found[self.file.default_text.id].add("")
        found[self.file.default_text.id].update(self.wanted)
        return {name: sorted(texts) for name, texts in found.items()}

    def captions(self) -> list[str]:
        """All captions, each once, sorted; with "" when captions are sometimes dropped."""
        return sorted({text for texts in self.captions_by_cache().values() for text in texts})

    def _effective(self, entry: ImageDataset, ranks: int) -> int:
        return entry.train_batch_size * ranks * self.accumulation

    def order(self, ranks: int = 1) -> Order:
        """The order of batches for `ranks` data-parallel processes."""
        shapes = [
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
                scheduled=scheduled(d.buckets, d.entry, self._effective(d.entry, ranks), self.oversubscribe),
            )
            for d in self.training
        ]
        return Order(shapes, seed=self.seed, ranks=ranks, accumulation=self.accumulation, mode=self.mode)

    @property
    def lengths(self) -> Lengths:
        """Lengths for one process."""
        return self.lengths_for(1)

    def lengths_for(self, ranks: int) -> Lengths:
        """Lengths of the first epoch for several processes."""
        return self.order(ranks).lengths()

    def steps_and_epochs(self, ranks: int = 1) -> tuple[int, int]:
        """(max_train_steps, num_train_epochs) with the one that is left open computed; without either, one epoch.

        With `ignore_final_epochs` the number of steps alone decides.
        """
        steps = setting(self.config, "max_train_steps")
        epochs = setting(self.config, "num_train_epochs")
        if steps and setting(self.config, "ignore_final_epochs", False):
            epochs = None
        return steps_and_epochs(self.lengths_for(ranks).batches_per_epoch, self.accumulation, steps, epochs)

    def check(self, ranks: int = 1) -> None:
        """Every bucket must fill an effective batch. Raises DataError for the first dataset where one does not."""
        for d in self.training:
            if d.buckets.count == 0:
                raise empty_report(d.entry, d.index, d.dropped, self._effective(d.entry, ranks))
            check_feasible(
                d.entry, d.buckets, ranks=ranks, accumulation=self.accumulation, oversubscribe=self.oversubscribe
            )
            deals = scheduled(d.buckets, d.entry, self._effective(d.entry, ranks), self.oversubscribe)
            if (deals != d.buckets.sizes * (d.entry.repeats + 1)).any():
                self._warn(
                    d.id,
                    f"Dataset '{d.id}' is oversubscribed: pictures of its small buckets are repeated to fill batches.",
                )

    # ------------------------------------------------------------------ caches

    def use(self, *, text_identity: str | None = None, latent_identity: str | None = None) -> Plan:
        """Say which encoders' caches are meant, when nothing is to be encoded here."""
        self.text_identity = text_identity or self.text_identity
        self.latent_identity = latent_identity or self.latent_identity
        return self

    def _store(self, folder: Path, entry: Any) -> ShardCache:
        """The cache in a folder, opened once."""
        if folder not in self._stores:
            self._stores[folder] = ShardCache(
                folder,
                compress=entry.compress_cache,
                write_batch=entry.write_batch_size,
                on_warn=lambda text: self._warn(entry.id, text),
            )
        return self._stores[folder]

    def text_cache(self, name: str) -> TextCache:
        """The text cache with this id."""
        entry = next(t for t in self.file.text_embeds if t.id == name)
        return TextCache(self._store(entry.cache_dir, entry), _given(self.text_identity, "fill_text"))

    def latent_cache(self, d: PlannedDataset) -> LatentCache:
        """The latent cache of a dataset."""
        return LatentCache(
            self._store(d.entry.cache_dir_vae, d.entry), d.index, _given(self.latent_identity, "fill_latents")
        )

    def missing(self) -> Missing:
        """What the caches of the encoders in `use` lack; all of it when their identity is unknown."""
        by_cache = self.captions_by_cache()
        texts = [
            len(c) if self.text_identity is None else len(self.text_cache(n).missing(c)) for n, c in by_cache.items()
        ]
        latents = [
            len(d.index.usable)
            if self.latent_identity is None
            else int((~self.latent_cache(d).known(d.index.usable)).sum())
            for d in self.datasets
        ]
        return Missing(sum(texts), sum(latents))

    def fill_text(self, encode: EncodeText, identity: str) -> FillReport:
        """Encode all captions that are not cached. Raises DiskFullError and what the encoder raises."""
        self.use(text_identity=identity)
        total = FillReport()
        for entry in self.file.text_embeds:
            captions = self.captions_by_cache()[entry.id]
            total += self.text_cache(entry.id).fill(
                captions, encode, entry.text_encoder_batch_size, self._say("encode text")
            )
        return total

    def fill_latents(self, encode: EncodePixels, identity: str) -> FillReport:
        """Encode all pictures that are not cached. Undecodable ones are left out, reported, and remembered."""
        self.use(latent_identity=identity)
        total = FillReport()
        for d in self.datasets:
            if d.entry.delete_unwanted_images:  # not while scanning: a mere plan, or another rank, must delete nothing
                self._delete_unwanted(d.entry, d.index)
            report = self.latent_cache(d).fill(encode, d.entry, self._say("encode latents"))
            total += FillReport(
                report.made, report.reused, {f"{d.id}: {p}": r for p, r in report.dropped.items()}, report.seconds
            )
            if report.dropped:
                d.buckets = make_buckets(d.index, d.entry, prune=self.prune, oversubscribe=self.oversubscribe)
                self._explain(d)
            if d.buckets.count == 0:
                raise empty_report(d.entry, d.index, d.dropped, self._effective(d.entry, 1))
        return total

    def text(self, caption: str) -> dict[str, Tensor]:
        """The condition of a caption from the default text cache."""
        return self.text_cache(self.file.default_text.id).get(caption)

    # ------------------------------------------------------------------ batches

    def source(self, d: PlannedDataset) -> Source:
        """A dataset with its caches."""
        from darkroom.data.loader import Source

        return Source(
            d.id,
            d.index,
            d.buckets,
            self.latent_cache(d),
            self.text_cache(self.file.text_of(d.entry).id),
            self.text_cache(self.file.default_text.id),
            d.entry.is_regularisation_data,
            d.entry.slider_strength,
            d.entry.timestep_sampling_offset,
        )

    def loader(
        self, *, rank: int = 0, ranks: int = 1, stack: Stack | None = None, order: Order | None = None
    ) -> Loader:
        """The batches of one process."""
        from darkroom.data.loader import Loader

        return Loader(
            order or self.order(ranks),
            [self.source(d) for d in self.training],
            rank=rank,
            caption_dropout=self.caption_dropout,
            stack=stack,
            prefetch=bool(setting(self.config, "dataloader_prefetch", False)),
            qlen=int(setting(self.config, "dataloader_prefetch_qlen", 10)),
        )

    def eval_loader(self, dataset: str, *, stack: Stack | None = None, limit: int | None = None) -> Iterator[Batch]:
        """The samples of a held-out dataset, one by one, always in the same order and with their first caption."""
        from darkroom.data.loader import gather

        found = next((d for d in self.datasets if d.id == dataset), None)
        if found is None:
            raise DataError(f"There is no dataset '{dataset}'; there are {', '.join(d.id for d in self.datasets)}.")
        source = self.source(found)
        for position, row in enumerate(found.index.usable[:limit].tolist()):
            yield gather(source, [row], [found.index.captions_of(row)[0]], [False], stack, 0, position)

    # ------------------------------------------------------------------ telling

    def estimate(self, latent_bytes: Callable[[int, int], int], text_bytes: Callable[[str], int]) -> Estimate:
        """Entries and bytes the caches will need. `latent_bytes` is given a target's width and height."""
        latents = reused = written = 0
        for d in self.datasets:
            rows = d.index.usable
            known = np.zeros(len(rows), bool) if self.latent_identity is None else self.latent_cache(d).known(rows)
            reused += int(known.sum())
            latents += int((~known).sum())
            todo = rows[~known]
            shapes = np.stack([d.index.numbers["target_width"][todo], d.index.numbers["target_height"][todo]], 1)
            for (width, height), count in zip(*np.unique(shapes, axis=0, return_counts=True), strict=True):
                written += int(count) * latent_bytes(int(width), int(height))
        texts = [
            t
            for n, c in self.captions_by_cache().items()
            for t in (c if self.text_identity is None else self.text_cache(n).missing(c))
        ]
        total = sum(len(c) for c in self.captions_by_cache().values())
        return Estimate(latents, reused, len(texts), total - len(texts), written + sum(map(text_bytes, texts)))

    def report(self, ranks: int = 1) -> str:
        """The table that is printed before training."""
        return reports.table(self, ranks)

    def as_dict(self, ranks: int = 1) -> dict[str, Any]:
        """The same for machines."""
        return reports.as_dict(self, ranks)


def _given(identity: str | None, step: str) -> str:
    if identity is None:
        raise RuntimeError(f"call {step} or use before asking for this cache")
    return identity
