"""What preparing data has to say: warnings, which are kept, and how far it is."""

from __future__ import annotations

from darkroom.core.events import Bus, Progress, Warn
from darkroom.data.index.table import OnProgress


class DataReporter:
    """Emits what the steps of preparing data report on the bus of a run; `warnings` has all that were emitted."""

    def __init__(self, bus: Bus):
        self.bus = bus
        self.warnings: list[str] = []

    def warn(self, about: str, message: str) -> None:
        """Emit a warning about a dataset, by its id."""
        self.warnings.append(message)
        self.bus.emit(Warn(message=message, about=about))

    def track(self, phase: str) -> OnProgress:
        """A function that emits how far a phase is, whenever that has changed by a per cent."""
        last = -1

        def report(finished: int, total: int) -> None:
            nonlocal last
            # a listing does not know its end; it is told as it comes, and other work once a per cent
            share = finished * 100 // total if total else -finished
            if share != last:
                last = share
                self.bus.emit(Progress(phase=phase, done=finished, total=total))

        return report
