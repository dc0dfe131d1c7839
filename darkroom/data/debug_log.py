"""What people ask to be told while data is read: names of files, batches, what the sampler has drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from darkroom.core import log as logs

if TYPE_CHECKING:
    from darkroom.data.batches.batch import Batch
    from darkroom.options.config import Config

log = logs.logger(__name__)


@dataclass
class DebugLog:
    """Writes to the log what the options print_filenames, debug_dataset_loader and print_sampler_statistics ask for."""

    filenames: bool = False
    batches: bool = False
    statistics: bool = False
    sampled: Counter[str] = field(default_factory=Counter)

    @classmethod
    def from_config(cls, config: Config) -> DebugLog:
        """What the options of a run ask for."""
        return cls(config.print_filenames, config.debug_dataset_loader, config.print_sampler_statistics)

    def file(self, dataset: str, path: str) -> None:
        """A file is about to be read."""
        if self.filenames:
            log.info("reading %s: %s", dataset, path)

    def batch(self, batch: Batch, last: bool) -> None:
        """A batch was made; `last` of its epoch."""
        if self.batches:
            shape = "x".join(map(str, batch.latents.shape))
            log.info(
                "epoch %d batch %d from %s: %s, %s", batch.epoch, batch.position, batch.dataset, shape, batch.paths
            )
        if self.statistics:
            self.sampled[batch.dataset] += len(batch)
            if last:
                counts = ", ".join(f"{count} of {name}" for name, count in sorted(self.sampled.items()))
                log.info("epoch %d: drawn so far %s", batch.epoch, counts)


NO_DEBUG_LOG = DebugLog()
