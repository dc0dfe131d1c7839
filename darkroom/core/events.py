"""What happens during a run, told to whoever listens.

The loop emits events; trackers, the event log, progress bars, checkpoints and validation subscribe. `train` therefore
imports none of them. Listeners run in the order in which they were added, in the calling thread.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar, cast


@dataclasses.dataclass(frozen=True)
class Event:
    """Base of all events; `step` counts finished optimizer steps."""

    step: int = 0

    @property
    def name(self) -> str:
        """The snake_case name under which the event is logged."""
        return _to_snake_case(type(self).__name__)


@functools.cache
def _to_snake_case(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


@dataclasses.dataclass(frozen=True)
class RunStart(Event):
    """The run is about to do something; `summary` holds what a reader wants to know first."""

    summary: dict[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Phase(Event):
    """A phase ended: seconds it took, and the most bytes that the process held in it, on the host and on the GPU."""

    phase: str = ""
    seconds: float = 0.0
    host_memory: int = 0
    device_memory: int = 0


@dataclasses.dataclass(frozen=True)
class Progress(Event):
    """Work inside a phase moved on, `done` of `total` units."""

    phase: str = ""
    done: int = 0
    total: int = 0
    unit: str = "items"


@dataclasses.dataclass(frozen=True)
class Step(Event):
    """One optimizer step was taken."""

    terms: dict[str, float] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    bands: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    total: int = 0
    epoch: int = 1
    epoch_ended: bool = False


@dataclasses.dataclass(frozen=True)
class Checkpoint(Event):
    """A checkpoint folder is complete."""

    path: str = ""
    kind: str = "step"


@dataclasses.dataclass(frozen=True)
class Validation(Event):
    """Images were rendered: rows of `{name, prompt, path, resolution}`."""

    pictures: list[dict[str, str]] = dataclasses.field(default_factory=list)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Preview(Event):
    """A validation image after `done` of `total` sampling steps is at `path`."""

    prompt: str = ""
    path: str = ""
    done: int = 0
    total: int = 0


@dataclasses.dataclass(frozen=True)
class Publish(Event):
    """Something was handed to the outside; `uri` says where it is now."""

    uri: str = ""


@dataclasses.dataclass(frozen=True)
class Warn(Event):
    """Something a person should read, and what it was about."""

    message: str = ""
    about: str = ""

    @property
    def name(self) -> str:
        return "warning"


@dataclasses.dataclass(frozen=True)
class RunEnd(Event):
    """The run is over: `status` is completed, interrupted or failed."""

    status: str = "completed"
    message: str = ""


E = TypeVar("E", bound=Event)


class Bus:
    """Listeners by event class."""

    def __init__(self) -> None:
        self._listeners: list[tuple[type[Event], Callable[[Event], None]]] = []

    def on(self, kind: type[E], listener: Callable[[E], None]) -> None:
        """Call `listener` for every event of `kind` (a base class hears all its subclasses)."""
        self._listeners.append((kind, cast("Callable[[Event], None]", listener)))

    def emit(self, event: Event) -> None:
        """Tell every listener, in order."""
        for kind, listener in self._listeners:
            if isinstance(event, kind):
                listener(event)
