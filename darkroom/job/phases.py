"""Phases of a run: how long each took and how much memory the process had used by its end."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

from darkroom.core.events import Bus, Phase


def peak_memory() -> int:
    """Highest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def phase(bus: Bus, name: str, step: int = 0) -> Iterator[None]:
    """Tell the bus when the body has finished."""
    start = time.monotonic()
    yield
    bus.emit(Phase(step=step, phase=name, seconds=time.monotonic() - start, peak_memory=peak_memory()))
