"""Phases of a run: how long each took and the most memory that was held in it."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator

import torch

from darkroom.core.events import Bus, Phase
from darkroom.core.memory import resident_bytes

# between two looks at what the process holds: short at first, as a phase may be
SECONDS, LATER_SECONDS = 0.01, 0.1
SHORT = 100


class Gauge:
    """The most bytes that this process held while it was open: on the host, looked at every so often, and on the GPU,
    as torch counts them. One gauge is open at a time."""

    def __init__(self) -> None:
        self.host = self.device = 0
        self._stopped = threading.Event()
        self._looking = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Gauge:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.host = resident_bytes()
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._looking.join()
        self.host = max(self.host, resident_bytes())
        if torch.cuda.is_available():
            self.device = torch.cuda.max_memory_allocated()

    def _sample(self) -> None:
        samples = itertools.count()
        while not self._stopped.wait(SECONDS if next(samples) < SHORT else LATER_SECONDS):
            self.host = max(self.host, resident_bytes())


@contextlib.contextmanager
def phase(bus: Bus, name: str, step: int = 0) -> Iterator[Gauge]:
    """Tell the bus when the body has finished."""
    start = time.monotonic()
    with Gauge() as gauge:
        yield gauge
    seconds = time.monotonic() - start
    bus.emit(Phase(step=step, phase=name, seconds=seconds, host_memory=gauge.host, device_memory=gauge.device))
