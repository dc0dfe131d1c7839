"""Epochs and steps. Emits events; whoever saves, validates or reports listens."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TypeVar

from darkroom.core.errors import Interrupted
from darkroom.core.events import Bus, Step
from darkroom.train.state import TrainState
from darkroom.train.step import Stepper

if TYPE_CHECKING:
    from darkroom.data.batches.batch import Batch

Item = TypeVar("Item")
# of a signal, as `signal.signal` takes and returns it
Handler = Callable[[int, FrameType | None], object] | int | None


class Loader(Protocol):
    """Where batches come from."""

    def epoch(self, n: int, start: int, stopped: Callable[[], bool]) -> Iterator[Batch]:
        """The micro-batches of epoch n from position `start` on. It may end early once `stopped` says so."""


def group_batches(batches: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Micro-batches in groups of `size`; the last group of an epoch may be smaller."""
    group: list[Item] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class StopRequest:
    """SIGINT and SIGTERM ask for an end after the current step; a second one ends at once."""

    def __init__(self) -> None:
        self.name = ""
        self._old: dict[int, Handler] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def raise_if_requested(self) -> None:
        """Raises Interrupted if somebody has asked for an end."""
        if self.name:
            raise Interrupted(self.name)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


@contextlib.contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the program as Ctrl-C does: at once, but with caches written and files closed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Loop:
    """Runs a stepper over a loader until `total` steps are done. Epoch n has `length(n)` micro-batches."""

    def __init__(
        self, stepper: Stepper, loader: Loader, length: Callable[[int], int], state: TrainState, total: int, bus: Bus
    ):
        self.stepper, self.loader, self.length = stepper, loader, length
        self.state, self.total, self.bus = state, total, bus
        self.accumulation = stepper.options.gradient_accumulation_steps
        self._mark = time.monotonic()

    def run(self, stop: StopRequest) -> None:
        """Train. Raises Interrupted after a signal, with the last step finished and its event emitted."""
        self._mark = time.monotonic()
        while self.state.step < self.total:
            if self.state.position >= self.length(self.state.epoch):  # counted with data that were more
                self.state.epoch, self.state.position = self.state.epoch + 1, 0
            for batches in group_batches(self._batches(stop), self.accumulation):
                ended = self._step(batches)
                stop.raise_if_requested()
                if ended or self.state.step >= self.total:
                    break

    def _batches(self, stop: StopRequest) -> Iterator[Batch]:
        """What is left of the epoch. Raises Interrupted after a signal: a group that is not whole is not trained on."""
        for batch in self.loader.epoch(self.state.epoch, start=self.state.position, stopped=lambda: bool(stop.name)):
            stop.raise_if_requested()
            yield batch
        stop.raise_if_requested()

    def _step(self, batches: list[Batch]) -> bool:
        """One update; True if it was the last of its epoch."""
        device = self.stepper.accelerator.device
        epoch = self.state.epoch
        result = self.stepper([batch.to(device) for batch in batches], self.state.step)
        samples = result.samples * self.stepper.accelerator.num_processes
        ended = self.state.advance(batches[-1].position + 1, self.length(epoch), samples)
        now = time.monotonic()
        rates = {"samples_per_second": samples / max(now - self._mark, 1e-9), "seconds": now - self._mark}
        event = Step(
            step=self.state.step,
            terms=result.losses,
            metrics=result.metrics | rates,
            bands=result.losses_by_level,
            total=self.total,
            epoch=epoch,
            epoch_ended=ended,
        )
        self.bus.emit(event)
        # what listeners did (saving, rendering) is not the step's time
        self._mark = time.monotonic()
        return ended
