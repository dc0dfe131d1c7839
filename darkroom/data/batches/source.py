"""The batches of a plan: their order, and the loaders that make them out of the caches."""

from __future__ import annotations

from collections.abc import Iterator

from darkroom.core.errors import DataError
from darkroom.data.batches.batch import Batch
from darkroom.data.batches.loader import BatchLoader, RandomChoices, Stack, gather
from darkroom.data.batches.order import START, Base, Order
from darkroom.data.cache.caches import DatasetCaches
from darkroom.data.cache.samples import SampleSource
from darkroom.data.debug_log import DebugLog
from darkroom.data.planned import PlannedDataset


class BatchSource:
    """Batches of what a plan has, read from its caches, for one of `ranks` data-parallel processes.

    `base` says since when the data are what they are; `stack` joins the conditions of several captions.
    """

    def __init__(
        self,
        caches: DatasetCaches,
        *,
        rank: int = 0,
        ranks: int = 1,
        base: Base = START,
        stack: Stack | None = None,
    ):
        self.caches, self.plan = caches, caches.plan
        self.rank, self.ranks, self.stack = rank, ranks, stack
        self._debug_log = DebugLog.from_config(self.plan.config)
        self._epoch: tuple[int, list[PlannedDataset], list[SampleSource]] | None = None
        self.order = self._make_order(base)

    def _make_order(self, base: Base) -> Order:
        plan, config = self.plan, self.plan.config
        recrops = any(plan.scanner.recrops(d.entry) for d in plan.training)
        return Order(
            plan.shapes(self.ranks),
            seed=plan.seed,
            ranks=self.ranks,
            accumulation=config.gradient_accumulation_steps,
            mode=config.data_backend_sampling,
            by_epoch=(lambda n: plan.shapes(self.ranks, self.datasets_in(n))) if recrops else None,
            base=base,
        )

    def datasets_in(self, epoch: int) -> list[PlannedDataset]:
        """The training datasets as they are in an epoch (from 1): those with crops of their own are cropped anew."""
        if self._epoch is None or self._epoch[0] != epoch:
            scanner = self.plan.scanner
            datasets = [
                scanner.recrop(d, epoch) if epoch > 1 and scanner.recrops(d.entry) else d for d in self.plan.training
            ]
            self._epoch = (epoch, datasets, [])
        return self._epoch[1]

    def sources(self, epoch: int) -> list[SampleSource]:
        """The training datasets with their caches, as they are in an epoch. Latents of epochs before go."""
        datasets = self.datasets_in(epoch)
        assert self._epoch is not None
        if not self._epoch[2]:
            for d in self.plan.training if self.plan.process_group.is_first else []:
                if self.plan.scanner.recrops(d.entry):
                    self.caches.forget_other_epochs(d.entry, epoch)
            self._epoch[2].extend(self.caches.source(d, epoch) for d in datasets)
        return self._epoch[2]

    @property
    def prefetches(self) -> bool:
        """Are batches made ahead? If nobody has said so, not where encoders would be at work beside the step."""
        if self.plan.config.dataloader_prefetch is not None:
            return self.plan.config.dataloader_prefetch
        return not (self.plan.encodes_while_training or self.plan.reads_while_training)

    def loader(self, *, pins: bool = False) -> BatchLoader:
        """The batches of this process; with `pins` in memory that a GPU copies from without being waited for."""
        config = self.plan.config
        return BatchLoader(
            self.order,
            self.sources,
            rank=self.rank,
            caption_dropout=config.caption_dropout_probability,
            conditioning_dropout=config.conditioning_dropout_probability,
            masked_loss_probability=config.masked_loss_probability,
            stack=self.stack,
            prefetch=self.prefetches,
            qlen=config.dataloader_prefetch_qlen,
            pins=pins,
            on_warn=self.plan.reporter.warn,
            debug_log=self._debug_log,
        )

    def eval_loader(self, dataset: str, *, limit: int | None = None) -> Iterator[Batch]:
        """The samples of a held-out dataset, one by one, always in the same order and with their first caption."""
        planned = next((d for d in self.plan.datasets if d.id == dataset), None)
        if planned is None:
            raise DataError(
                f"There is no dataset '{dataset}'; there are {', '.join(d.id for d in self.plan.datasets)}."
            )
        source = self.caches.source(planned)
        for position, row in enumerate(planned.index.usable[:limit].tolist()):
            random_choices = RandomChoices(
                [source.captions_of(row, source.choose_conditioning(row, 0))[0]], [False], [False], [True]
            )
            yield gather(source, [row], random_choices, self.stack, 0, position)
