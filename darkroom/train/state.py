"""Where a run stands: the counters that, with weights, optimizer and generators, make a resume exact."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class TrainState:
    """Counters of a run.

    step      optimizer steps finished
    epoch     the epoch of the next batch, from 1
    position  the number of the next micro-batch inside that epoch, from 0
    samples   samples seen by all ranks together
    """

    step: int = 0
    epoch: int = 1
    position: int = 0
    samples: int = 0

    def advance(self, position: int, epoch_length: int, samples: int) -> bool:
        """Count one finished step whose next micro-batch is `position`; True if that step ended an epoch."""
        self.step += 1
        self.samples += samples
        self.position = position
        if position < epoch_length:
            return False
        self.epoch, self.position = self.epoch + 1, 0
        return True
