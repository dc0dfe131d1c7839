"""Where a run stands: the counters that, with weights, optimizer and generators, make a resume exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass
class TrainState:
    """Counters of a run.

    step            optimizer steps finished
    epoch           the epoch of the next batch, from 1
    position        the number of the next micro-batch inside that epoch, from 0
    samples         samples seen by all ranks together
    total           optimizer steps that the run is planned to have
    base_step       steps that were finished when the data last changed; 0 if they never did
    base_epoch      the first epoch of the data as they are now
    schedule_at     where on the learning-rate schedule `base_step` stands, in steps of that schedule
    schedule_total  length of the schedule; 0 for that of the run, as long as the data have not changed
    """

    step: int = 0
    epoch: int = 1
    position: int = 0
    samples: int = 0
    total: int = 0
    base_step: int = 0
    base_epoch: int = 1
    schedule_at: float = 0.0
    schedule_total: int = 0

    @classmethod
    def from_dict(cls, saved: Mapping[str, object]) -> TrainState:
        """The counters of a checkpoint; those that older checkpoints lack have their defaults.

        Raises ValueError for a value that is no number.
        """
        counters: dict[str, float] = {}  # all of them whole but one
        for field in dataclasses.fields(cls):
            value = saved.get(field.name, field.default)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"its {field.name} is {value!r}, which is no number")
            counters[field.name] = float(value) if field.name == "schedule_at" else int(value)
        return cls(**counters)  # type: ignore[arg-type] # those that are declared whole are

    def advance(self, position: int, epoch_length: int, samples: int) -> bool:
        """Count one finished step whose next micro-batch is `position`; True if that step ended an epoch."""
        self.step += 1
        self.samples += samples
        self.position = position
        if position < epoch_length:
            return False
        self.epoch, self.position = self.epoch + 1, 0
        return True

    def start_on_other_data(self, last_epoch: int | None) -> None:
        """Begin a new epoch, as the order of batches is another from here on. `last_epoch` is the last to be trained.

        The learning rate goes on where it was on its schedule. An epoch that was just to begin, and the last one,
        which nothing would follow, begin anew under their own number.
        """
        if self.position and (last_epoch is None or self.epoch < last_epoch):
            self.epoch += 1
        self.schedule_at = self.find_schedule_position(self.step)
        self.schedule_total = self.schedule_total or self.total
        self.position, self.base_step, self.base_epoch = 0, self.step, self.epoch

    def find_schedule_position(self, step: int) -> float:
        """Where `step` stands on the learning-rate schedule, which ends with the run although the data changed."""
        if not self.schedule_total:
            return step
        remaining = max(1, self.total - self.base_step)
        return self.schedule_at + (step - self.base_step) * (self.schedule_total - self.schedule_at) / remaining
