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
from darkroom.data.cache.filler import Caching, on_demand
from darkroom.data.cache.latents import DAMAGED, SampleCache
from darkroom.data.cache.shards import FillReport
from darkroom.data.cache.text import EncodeSeen, EncodeText, Readers, TextCache
from darkroom.data.debug_log import Watch
from darkroom.data.index import generated
from darkroom.data.index.assign import decide
from darkroom.data.index.buckets import Buckets, check_feasible, check_sizes, make_buckets, scheduled
from darkroom.data.index.build import Terms, empty_report, read_sizes_table, sizing_of, survey, table_of
from darkroom.data.index.conditioning import Companion, leave_out_incomplete, paired
from darkroom.data.index.table import CODE, Index, Say
from darkroom.data.manifest import Manifest, manifest_of
from darkroom.data.mask_check import useless_masks
from darkroom.data.planned import PlannedDataset
from darkroom.data.process_group import ALONE, Team
from darkroom.data.requirements import Needs
from darkroom.media.images import INSTALL, READERS, Traits
from darkroom.media.look import Look
from darkroom.options.datasets import DatasetFile, SampleDataset, TextEmbeds, setting
from darkroom.options.datasets.entries import LOSS_MASKS
from darkroom.storage import open_store
from darkroom.storage.base import Missing, Refused, Store

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.data.batches.batch import Batch
    from darkroom.data.batches.loader import Loader, Source, Stack
    from darkroom.options.config import Config

SEED = 42
"""Used when no seed is set: crops must be the same at every start for the caches to hold."""

EXAMPLES = 5
MANY = 1000
"""Files after which a listing tells how far it is."""


@dataclass(frozen=True)
class Lacking:
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
    config: Config,
    datasets: DatasetFile,
    bus: Bus,
    needs: Needs,
    *,
    alignment: int | None = None,
    team: Team = ALONE,
) -> Plan:
    """The plan of a run. Nothing is opened yet. `alignment` overrides what the options say."""
    return Plan(config, datasets, bus, needs, alignment, team)


class Plan:
    """A dataset file on its way to batches. The caller goes through scan, fill and loader in this order."""

    def __init__(
        self,
        config: Config,
        file: DatasetFile,
        bus: Bus,
        needs: Needs,
        alignment: int | None = None,
        team: Team = ALONE,
    ):
        self.config, self.file, self.bus, self.needs, self.team = config, file, bus, needs, team
        self.wanted: frozenset[str] = frozenset()
        self.wanted_seen: list[tuple[str, Sequence[Look]]] = []
        self.seed = int(setting(config, "seed", SEED))
        self.accumulation = int(setting(config, "gradient_accumulation_steps", 1))
        self.oversubscribe = bool(setting(config, "allow_dataset_oversubscription", False))
        self.prune = not setting(config, "disable_bucket_pruning", False)
        self.mode = str(setting(config, "data_backend_sampling", "auto-weighting"))
        self.combined = setting(config, "conditioning_multidataset_sampling", "random") == "combined"
        self.caption_dropout = float(setting(config, "caption_dropout_probability", 0.1))
        self.output = expand_home(str(setting(config, "output_dir", "output")))
        self.cache_dir = expand_home(str(setting(config, "cache_dir", self.output / "cache")))
        self.terms = Terms(
            needs,
            self.cache_dir / "index",
            self.seed,
            alignment or int(setting(config, "aspect_bucket_alignment", 64)),
            int(setting(config, "aspect_bucket_rounding", 2)),
            team=team,
            keep_vanished=bool(setting(config, "ignore_missing_files", False)),
            save_seconds=float(setting(config, "metadata_update_interval", 3600)),
            telling=bool(setting(config, "debug_aspect_buckets", False)),
        )
        self.watch = Watch(
            filenames=bool(setting(config, "print_filenames", False)),
            statistics=bool(setting(config, "print_sampler_statistics", False)),
            batches=bool(setting(config, "debug_dataset_loader", False)),
        )
        keeps_crops = bool(setting(config, "aspect_bucket_disable_rebuild", False))
        self.caches = Caching(file, needs, keeps_crops, self.watch, self._warn)
        self.datasets: list[PlannedDataset] = []
        self.warnings: list[str] = []  # all that were emitted
        self._stores: dict[str, Store] = {}
        self._epoch: tuple[int, list[PlannedDataset], list[Source]] | None = None

    # ------------------------------------------------------------------ scanning

    def scan(self, *, lenient: bool = False) -> Plan:
        """List all storages, read what changed, make buckets. Raises ConfigError, DataError, DiskFullError.

        With `lenient` a dataset of which nothing can be used, and samples that the family cannot take, stay in the plan
        instead of ending it: for those who want to look at them.
        """
        if self.team.is_first:
            for message in self.file.warnings:
                self._warn("datasets", message)
        if not lenient:
            self._check_needs()
        entries = [e for e in self.file.samples if e.is_training or e.dataset_type == "eval"]
        self.datasets = [self._scan(entry) for entry in entries]
        for d in [] if lenient else self.datasets:
            if d.buckets.count == 0:
                raise empty_report(d.entry, d.index, d.dropped, self._effective(d.entry, 1))
        return self

    def _check_needs(self) -> None:
        """Refuse what the family cannot be trained on."""
        for entry in self.file.samples:
            kind = entry.dataset_type
            if entry.video and entry.video.is_i2v is not None and not self.needs.may_start:
                self._warn(entry.id, "video.is_i2v has no effect here: the flavour itself says what clips start from.")
            if entry.audio and not self.needs.sound:
                self._warn(entry.id, f"audio has no effect: {self.needs.called} does not train on sound.")
            if entry.layers and not self.needs.layers:
                self._warn(
                    entry.id, f"layers only keeps numbered pictures out: {self.needs.called} trains on whole pictures."
                )
            if self.needs.layers and not entry.layers and kind != "conditioning":
                raise DataError(
                    f"Dataset '{entry.id}' has no layers, and {self.needs.called} trains on pictures with their layers "
                    'here.\n  Set "layers": true, with name_0.png, name_1.png, ... beside each name.png.'
                )
            if kind in ("image", "video") and kind not in self.needs.media:
                offered = " and ".join(sorted(self.needs.media))
                raise DataError(
                    f"Dataset '{entry.id}' is of type {kind}, and {self.needs.called} trains on {offered}.\n"
                    f"  Change its dataset_type, disable it, or choose a family that trains on {kind}."
                )
            if self.needs.batch and entry.is_training and entry.train_batch_size > self.needs.batch:
                raise DataError(
                    f"Dataset '{entry.id}' has train_batch_size = {entry.train_batch_size}, and captions of several "
                    "lengths in one batch need a mask, which this attention_mechanism does not take.\n"
                    f"  Set its train_batch_size to {self.needs.batch}, or choose another attention_mechanism."
                )
            picture = str(entry.conditioning_type)
            takes = self.needs.references if picture.startswith("reference") else self.needs.control is not None
            if kind == "conditioning" and picture not in LOSS_MASKS and not takes and entry.source_dataset_id:
                raise DataError(
                    f"Dataset '{entry.id}' brings {picture} pictures, and {self.needs.called} takes none as it is "
                    "trained here.\n  Take it out of conditioning_data, or choose a family or flavour that takes them."
                )

    def store_of(self, entry: SampleDataset) -> Store:
        """Where the samples of a dataset are, opened once."""
        if entry.id not in self._stores:
            self._stores[entry.id] = open_store(entry.where)
        return self._stores[entry.id]

    def _terms_of(self, entry: SampleDataset) -> Terms:
        filters = self.file.text_of(entry).caption_filter_list
        return replace(self.terms, filters=filters, sizes_table=read_sizes_table(self.output, entry))

    def _survey(self, entry: SampleDataset) -> Index:
        say = self._say(f"scan {entry.id}")
        index = survey(
            entry,
            self.store_of(entry),
            self._terms_of(entry),
            on_progress=say,
            on_warn=lambda text: self._warn(entry.id, text),
        )
        if index.opened == 0 and len(index) >= MANY:  # the listing has shown a bar that nothing else will end
            say(len(index), len(index))
        return index

    def _scan(self, entry: SampleDataset) -> PlannedDataset:
        index = self._survey(entry)
        made = PlannedDataset(entry, index, Buckets(()), self._companions(entry, index))
        self._bucket(made)
        self._explain(made)
        self._mention(made)
        return made

    def _companions(self, entry: SampleDataset, index: Index) -> list[Companion]:
        """Everything beside a dataset. Pictures that are still to be generated count as being there."""
        made = []
        for companion in self.file.companions(entry):
            if companion.generator is not None and generated.missing(index, companion):
                made.append(Companion(companion, index.selected(np.arange(len(index)), absent="missing companion")))
                made[-1].index.numbers["unfit"][:] = 0
            else:
                made.append(paired(index, self._survey(companion), companion))
        if self.needs.wants_control and entry.is_training and not any(c.role == "control" for c in made):
            raise DataError(
                f"Dataset '{entry.id}' has no control pictures, and this run of {self.needs.called} trains on them.\n"
                "  Name a dataset of conditioning_type controlnet in its conditioning_data, or have them made: "
                '"conditioning": {"type": "canny"}.'
            )
        references = [c for c in made if c.role == "reference" and not c.entry.optional]
        if self.needs.reads == "references" and entry.is_training and not references:
            raise DataError(
                f"Dataset '{entry.id}' has no reference pictures, and {self.needs.called} reads its captions with "
                "them.\n  Name a dataset of conditioning_type reference_strict or reference_loose in its "
                "conditioning_data, with a picture for every sample."
            )
        return made

    def _bucket(self, d: PlannedDataset) -> None:
        leave_out_incomplete(d.index, d.companions, self.combined)
        d.buckets = make_buckets(d.index, d.entry, d.companions, prune=self.prune, oversubscribe=self.oversubscribe)

    def generate(self) -> int:
        """Make the conditioning pictures that are still missing. Returns how many. Raises DataError, DiskFullError."""
        made = 0
        for d in self.datasets:
            wanting = [c.entry for c in d.companions if c.entry.generator and generated.missing(d.index, c.entry)]
            for entry in wanting if self.team.is_first else []:
                made += generated.make(d.index, entry, self.seed, self._say(f"generate {entry.id}"))
            if wanting:
                self.team.wait()
                d.companions = self._companions(d.entry, d.index)
                self._bucket(d)
        return made

    def generated_to_make(self) -> dict[str, int]:
        """Conditioning dataset to the number of pictures that are still to be generated for it."""
        return {
            c.entry.id: count
            for d in self.datasets
            for c in d.companions
            if c.entry.generator and (count := len(generated.missing(d.index, c.entry)))
        }

    def to_delete(self) -> list[tuple[str, str, str]]:
        """(dataset, path, reason) of every file that filling the caches would delete from the dataset itself."""
        found = []
        for d in self.datasets:
            reasons = {"resolution_filter"} if d.entry.delete_unwanted_images else set()
            reasons |= set(DAMAGED) if d.entry.delete_problematic_images else set()
            if reasons and d.index.store.writable:
                found += [(d.id, path, reason) for path, reason in d.index.left_out_rows() if reason in reasons]
        return found

    def _delete(self) -> None:
        """Delete what `to_delete` lists. Not while scanning: a mere plan, or another process, must delete nothing."""
        counts: dict[str, int] = {}
        for name, path, _ in self.to_delete():
            d = next(d for d in self.datasets if d.id == name)
            with suppress(Missing, Refused):
                d.index.store.delete(path)
                counts[name] = counts.get(name, 0) + 1
        for name, count in counts.items():
            asked = "delete_unwanted_images, delete_problematic_images"
            self._warn(name, f"{count} files that are too small or broken were deleted ({asked}).")

    def _explain(self, made: PlannedDataset) -> None:
        """One warning about everything that is not used, with some names and what installs a missing reader."""
        if not made.dropped or not self.team.is_first:
            return
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(made.dropped.items()))
        names = [
            f"{path} ({reason})" for (path, reason), _ in zip(made.index.left_out_rows(), range(EXAMPLES), strict=False)
        ]
        lacking = [reader for reader in READERS if reader.missing in made.dropped]
        self._warn(
            made.id,
            f"Dataset '{made.id}': not used: {counts}."
            + (f" For example {'; '.join(names)}." if names else "")
            + (f" Install what is missing with: {INSTALL}" if lacking else ""),
        )

    def _mention(self, made: PlannedDataset) -> None:
        """Warnings about what is used and may not be what was meant."""
        if not self.team.is_first:
            return
        if len(rows := made.rows_with(Traits.ANIMATED)):
            shown = "; ".join(made.index.path(int(row)) for row in rows[:EXAMPLES])
            self._warn(
                made.id,
                f"Dataset '{made.id}': {len(rows)} of its images are animated or have several pages; only the first "
                f"frame of each is used. For example {shown}.",
            )
        for about, index in ((made.id, made.index), *((c.entry.id, c.index) for c in made.companions)):
            if index.leaving:
                self._warn(
                    about,
                    f"Dataset '{about}': {len(index.leaving)} symbolic links lead out of its folder, and what is there "
                    f"is used. For example {'; '.join(index.leaving[:EXAMPLES])}.",
                )
        for c in made.companions:
            for sentence in useless_masks(made.index, c) if c.role == "mask" else ():
                self._warn(c.entry.id, sentence)

    def _say(self, phase: str) -> Say:
        last = -1

        def say(done: int, total: int) -> None:
            nonlocal last
            # a listing does not know its end; it is told as it comes, and other work once a per cent
            share = done * 100 // total if total else -done
            if share != last:
                last = share
                self.bus.emit(Progress(phase=phase, done=done, total=total))

        return say

    def _warn(self, about: str, message: str) -> None:
        self.warnings.append(message)
        self.bus.emit(Warn(message=message, about=about))

    # ------------------------------------------------------------------ what there is

    @property
    def training(self) -> list[PlannedDataset]:
        """The datasets that are trained on, in the order of the file."""
        return [d for d in self.datasets if d.entry.is_training]

    def want(self, captions: Iterable[str], seen: Iterable[tuple[str, Sequence[Look]]] = ()) -> Plan:
        """Keep these captions, alone or with pictures, in the default text cache too: validation prompts."""
        self.wanted = frozenset([*self.wanted, *captions])
        self.wanted_seen = [*self.wanted_seen, *seen]
        return self

    def manifest_hash(self) -> str:
        """A hash of which samples with which captions, crops and companions are trained on."""
        return digest(
            [[d.id, d.index.fingerprint(), [c.index.fingerprint() for c in d.companions]] for d in self.datasets]
        )

    def captions_by_cache(self) -> dict[str, list[str]]:
        """Text cache id to the captions it has to hold, each once, sorted."""
        found: dict[str, set[str]] = {t.id: set() for t in self.file.text_embeds}
        for d in self.datasets:
            cache = found[self.file.text_of(d.entry).id]
            if self.needs.reads:
                continue
            for index, entry in ((d.index, d.entry), *((c.index, c.entry) for c in d.companions if c.has_captions)):
                cache.update(() if entry.skips("text") else index.distinct_captions())
        if self.caption_dropout > 0 and not self.needs.reads:
            found[self.file.default_text.id].add("")
        found[self.file.default_text.id].update(self.wanted)
        return {name: sorted(texts) for name, texts in found.items()}

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
                scheduled=scheduled(d.buckets, d.entry, self._effective(d.entry, ranks), self.oversubscribe),
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
        steps = setting(self.config, "max_train_steps")
        epochs = setting(self.config, "num_train_epochs")
        if steps and setting(self.config, "ignore_final_epochs", False):
            epochs = None
        return steps_and_epochs(self.lengths_for(ranks).batches_per_epoch, self.accumulation, steps, epochs, base)

    def check(self, ranks: int = 1) -> None:
        """Every bucket must fill an effective batch. Raises DataError for the first dataset where one does not."""
        for d in self.training:
            if d.buckets.count == 0:
                raise empty_report(d.entry, d.index, d.dropped, self._effective(d.entry, ranks))
            check_sizes(d.entry, d.buckets, self.needs)
            check_feasible(
                d.entry, d.buckets, ranks=ranks, accumulation=self.accumulation, oversubscribe=self.oversubscribe
            )
            deals = scheduled(d.buckets, d.entry, self._effective(d.entry, ranks), self.oversubscribe)
            if (deals != d.buckets.sizes * (d.entry.repeats + 1)).any():
                self._warn(
                    d.id,
                    f"Dataset '{d.id}' is oversubscribed: pictures of its small buckets are repeated to fill batches.",
                )

    # ------------------------------------------------------------------ epochs with crops of their own

    def in_epoch(self, n: int) -> list[PlannedDataset]:
        """The training datasets as they are in epoch `n` (from 1)."""
        if self._epoch is None or self._epoch[0] != n:
            made = [self._recropped(d, n) if n > 1 and self.caches.recrops(d.entry) else d for d in self.training]
            self._epoch = (n, made, [])
        return self._epoch[1]

    def _recropped(self, d: PlannedDataset, n: int) -> PlannedDataset:
        """A dataset with the crops of epoch `n`, and buckets made of them."""
        index = d.index.selected(np.arange(len(d.index)), absent="vanished")
        index.numbers["part"], index.numbers["unfit"] = d.index.numbers["part"].copy(), d.index.numbers["unfit"].copy()
        terms = self._terms_of(d.entry)
        sizing = sizing_of(
            d.entry,
            alignment=terms.alignment,
            rounding=terms.rounding,
            needs=terms.needs,
            table=terms.sizes_table,
        )
        table = table_of(d.entry, d.index.store)
        decide(index, np.arange(len(index)), d.entry, sizing, (self.seed, n), table)
        companions = [self._with_crops_of(index, c) for c in d.companions]
        made = PlannedDataset(d.entry, index, Buckets(()), companions)
        self._bucket(made)
        return made

    @staticmethod
    def _with_crops_of(source: Index, companion: Companion) -> Companion:
        if not companion.entry.is_aligned or companion.index.origin is None:
            return companion
        return paired(source, companion.index.origin[0], companion.entry)

    # ------------------------------------------------------------------ caches

    def use(
        self,
        *,
        text_identity: str | None = None,
        latent_identity: str | None = None,
        plain_identity: str | None = None,
    ) -> Plan:
        """Say which encoders' caches are meant, when nothing is to be encoded here."""
        self.caches.use(text_identity, latent_identity, plain_identity)
        return self

    def text_cache(self, name: str) -> TextCache:
        """The text cache with this id."""
        return self.caches.texts(name)

    def latent_cache(self, d: PlannedDataset, epoch: int = 1) -> SampleCache:
        """The latent cache of a dataset."""
        return self.caches.samples(d, epoch)

    def missing(self) -> Lacking:
        """What the caches of the encoders in `use` lack; all of it when their identity is unknown."""
        latents = 0
        for d in self.datasets:
            for cache, rows in self.caches.to_fill(d):
                latents += len(rows) if cache is None else int((~cache.known(rows)).sum())
        return Lacking(len(self._missing_texts()), latents)

    def _missing_texts(self) -> list[str]:
        """Captions that are encoded before training and not cached yet."""
        found = []
        captions = self.captions_by_cache()
        for entry in self.file.text_embeds:
            if not on_demand(entry):
                wanted = captions[entry.id]
                found += self.text_cache(entry.id).missing(wanted) if self.caches.text_identity else wanted
                found += self._missing_seen(entry)
        return found

    def _missing_seen(self, entry: TextEmbeds) -> list[str]:
        """The same for captions that are read with pictures; those of pictures that were never read are missing."""
        found: list[str] = []
        cache = self.text_cache(entry.id) if self.caches.text_identity else None
        for d in self._looked_at(entry):
            indexes = [d.index, *(c.index for c in d.companions if c.role == "reference")]
            for row in d.index.usable.tolist():
                if cache is None or any(index.hashes[row] == b"" for index in indexes):
                    found += d.index.captions_of(row)
                    continue
                pairs = self.source(d).seen_captions([row], self.caption_dropout > 0)
                found += [caption for caption, looks in pairs if not cache.cache.has(cache.key(caption, looks))]
        return found

    @property
    def encodes_while_training(self) -> bool:
        """Whether the VAE is needed during training."""
        return any(d.entry.on_demand or self.caches.recrops(d.entry) for d in self.datasets)

    @property
    def reads_while_training(self) -> bool:
        """Whether the text encoders are needed during training."""
        return any(map(on_demand, self.file.text_embeds))

    def fill_text(self, encode: EncodeText, identity: str, seen: EncodeSeen | None = None) -> FillReport:
        """Encode all captions that are not cached. Raises DiskFullError and what the encoder raises.

        `seen` encodes those that are read with pictures; the identities of latents must be in `use` for it.
        """
        self.use(text_identity=identity)
        self.caches.encode_texts_with(Readers(encode, seen))
        self.generate()  # what is made may have captions of its own
        total = FillReport()
        for entry in self.file.text_embeds:
            if on_demand(entry) or entry.skips("text"):
                continue
            captions = self.captions_by_cache()[entry.id]
            mine = self.team.share(np.arange(len(captions)), entry.write_batch_size)
            total += self.text_cache(entry.id).fill(
                [captions[i] for i in mine], encode, entry.text_encoder_batch_size, self._say("encode text")
            )
            if seen is not None:
                total += self._fill_seen(entry, seen)
            if self.team.size > 1:
                self.team.wait()
                self.caches.shards_of(entry).refresh()
        return total

    def _fill_seen(self, entry: TextEmbeds, encode: EncodeSeen) -> FillReport:
        """Encode what is read with pictures and belongs in this text cache."""
        cache, say, total = self.text_cache(entry.id), self._say("encode text"), FillReport()
        for d in self._looked_at(entry):
            rows = self.team.share(d.index.usable, entry.write_batch_size)
            pairs = self.source(d).seen_captions(rows.tolist(), self.caption_dropout > 0)
            total += cache.fill_seen(pairs, self._pairs(d, rows), encode, say)
        if entry is self.file.default_text and self.team.is_first:
            total += cache.fill_seen(self.wanted_seen, len(self.wanted_seen), encode, say)
        return total

    def _looked_at(self, entry: TextEmbeds) -> list[PlannedDataset]:
        """The datasets of a text cache whose captions are read with pictures."""
        mine = [d for d in self.datasets if self.file.text_of(d.entry) is entry and not d.entry.skips("text")]
        return [d for d in mine if self.needs.reads]

    def _pairs(self, d: PlannedDataset, rows: np.ndarray) -> int:
        """How many captions of these samples are read with pictures, at most."""
        pictures = sum(c.role != "mask" for c in d.companions)
        each = sum(len(d.index.captions_of(int(row))) for row in rows) + len(rows) * (self.caption_dropout > 0)
        return each * (1 if self.combined else max(1, pictures))

    def fill_latents(
        self, encode: EncodePixels, identity: str, plain: tuple[EncodePixels, str] | None = None
    ) -> FillReport:
        """Encode all samples that are not cached. Undecodable ones are left out, reported, and remembered.

        `plain` encodes pictures beside samples, when it is another encoder than the one of the samples.
        """
        self.use(latent_identity=identity, plain_identity=plain[1] if plain else identity)
        self.caches.encode_samples_with(encode, plain[0] if plain else encode)
        self.generate()
        if self.team.is_first:
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
                raise empty_report(d.entry, d.index, d.dropped, self._effective(d.entry, 1))
        return total

    def _fill(self, d: PlannedDataset) -> FillReport:
        """Fill the caches of one dataset and of what is beside it."""
        total = FillReport()
        for c in d.companions:
            if c.entry.on_demand or d.entry.on_demand or c.entry.skips("vae"):
                continue
            unfit = c.index.numbers["unfit"].copy()
            c.index.numbers["unfit"][d.index.dropped != 0] = CODE["missing companion"]  # what goes with nothing
            total += self._filled(self.caches.beside(d, c), c, c.entry)
            c.index.numbers["unfit"] = unfit
        leave_out_incomplete(d.index, d.companions, self.combined)
        if not d.entry.on_demand and not d.entry.skips("vae"):
            total += self._filled(self.caches.samples(d), None, d.entry)
        return total

    def _filled(self, cache: SampleCache, c: Companion | None, entry: SampleDataset) -> FillReport:
        """Fill one cache, and agree with the other processes about it."""
        encode = self.caches.encoder_of(c)[1]
        assert encode is not None
        report = cache.fill(encode, entry, self._say("encode latents"), self.team)
        cache.agree(self.team)
        dropped = {f"{entry.id}: {path}": reason for path, reason in report.dropped.items()}
        return FillReport(report.made, report.reused, dropped, report.seconds)

    def text(self, caption: str, looks: Sequence[Look] = ()) -> dict[str, Tensor]:
        """The condition of a caption, read with these pictures, from the default text cache."""
        return self.text_cache(self.file.default_text.id).get(caption, looks)

    # ------------------------------------------------------------------ batches

    def source(self, d: PlannedDataset, epoch: int = 1) -> Source:
        """A dataset with its caches."""
        from darkroom.data.batches.loader import Beside, Source

        return Source(
            d.id,
            d.index,
            d.buckets,
            self.latent_cache(d, epoch),
            self.text_cache(self.file.text_of(d.entry).id),
            self.text_cache(self.file.default_text.id),
            tuple(Beside(c, self.caches.beside(d, c)) for c in d.companions),
            self.combined,
            d.entry.is_regularisation_data,
            d.entry.slider_strength,
            d.entry.timestep_sampling_offset,
            d.entry.video.is_i2v if d.entry.video else None,
            self.needs.reads,
        )

    def sources(self, epoch: int) -> list[Source]:
        """The training datasets with their caches, as they are in an epoch. Latents of epochs before go."""
        datasets = self.in_epoch(epoch)
        assert self._epoch is not None
        if not self._epoch[2]:
            for d in self.training if self.team.is_first else []:
                if self.caches.recrops(d.entry):
                    self.caches.forget_other_epochs(d.entry, epoch)
            self._epoch[2].extend(self.source(d, epoch) for d in datasets)
        return self._epoch[2]

    @property
    def prefetches(self) -> bool:
        """Are batches made ahead? If nobody has said so, not where encoders would be at work beside the step."""
        asked = setting(self.config, "dataloader_prefetch")
        return not (self.encodes_while_training or self.reads_while_training) if asked is None else bool(asked)

    def loader(
        self,
        *,
        rank: int = 0,
        ranks: int = 1,
        stack: Stack | None = None,
        order: Order | None = None,
        pins: bool = False,
    ) -> Loader:
        """The batches of one process; with `pins` in memory that a GPU copies from without being waited for."""
        from darkroom.data.batches.loader import Loader

        return Loader(
            order or self.order(ranks),
            self.sources,
            rank=rank,
            caption_dropout=self.caption_dropout,
            conditioning_dropout=float(setting(self.config, "conditioning_dropout_probability", 0.0)),
            masked_loss_probability=float(setting(self.config, "masked_loss_probability", 1.0)),
            stack=stack,
            prefetch=self.prefetches,
            qlen=int(setting(self.config, "dataloader_prefetch_qlen", 10)),
            pins=pins,
            on_warn=self._warn,
            watch=self.watch,
        )

    def eval_loader(self, dataset: str, *, stack: Stack | None = None, limit: int | None = None) -> Iterator[Batch]:
        """The samples of a held-out dataset, one by one, always in the same order and with their first caption."""
        from darkroom.data.batches.loader import Draws, gather

        found = next((d for d in self.datasets if d.id == dataset), None)
        if found is None:
            raise DataError(f"There is no dataset '{dataset}'; there are {', '.join(d.id for d in self.datasets)}.")
        source = self.source(found)
        for position, row in enumerate(found.index.usable[:limit].tolist()):
            draws = Draws([source.captions_of(row, source.chosen(row, 0))[0]], [False], [False], [True])
            yield gather(source, [row], draws, stack, 0, position)

    # ------------------------------------------------------------------ telling

    def estimate(self, latent_bytes: Callable[[int, int, int], int], text_bytes: Callable[[str], int]) -> Estimate:
        """Entries and bytes the caches will need. `latent_bytes` is given a target's width, height and frames."""
        latents = reused = written = 0
        for d in self.datasets:
            for cache, rows in self.caches.to_fill(d):
                index = d.index if cache is None else cache.index
                known = np.zeros(len(rows), bool) if cache is None else cache.known(rows)
                reused += int(known.sum())
                latents += int((~known).sum())
                columns = [index.numbers[name][rows[~known]] for name in ("target_width", "target_height", "count")]
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
