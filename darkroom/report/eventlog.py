"""One JSON line per event in `events.jsonl`: what the report, the web pages and people read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from darkroom.core.clock import Clock
from darkroom.core.events import Event, Progress, Step
from darkroom.core.files import explain_disk_full
from darkroom.core.log import redact_values


class EventRow(TypedDict, total=False):
    """An event as its line has it: these are fields of several events that are read again."""

    event: str
    time: str
    step: int
    total: int
    epoch: int
    phase: str
    seconds: float
    host_memory: int
    device_memory: int
    summary: dict[str, object]
    terms: dict[str, float]
    metrics: dict[str, float]
    bands: list[tuple[float, float]]
    lr: float
    pictures: list[dict[str, str]]
    message: str
    about: str
    status: str


ENCODER = json.JSONEncoder(default=str)


class EventLog:
    """Appends every event but bare progress. Lines are flushed, so a killed run keeps all but the last."""

    def __init__(self, path: Path, clock: Clock):
        self.path, self.clock = path, clock
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run

    def __call__(self, event: Event) -> None:
        """Append one event."""
        if isinstance(event, Progress):
            return
        row = {"time": self.clock.utc_timestamp(), "event": event.name, **vars(event)}
        # a step has numbers only, and there are many
        shown = row if isinstance(event, Step) else redact_values(row)
        with explain_disk_full(self.path, "an event"):
            self._file.write(ENCODER.encode(shown) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file. Raises DiskFullError if the last events do not fit."""
        with explain_disk_full(self.path, "an event"):
            self._file.close()


def _drop_torn_line(path: Path) -> None:
    """A kill in the middle of a write leaves half a line; remove it."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def read(path: Path) -> list[EventRow]:
    """Every whole event of a log, without the steps that a later start went back behind."""
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]  # a line without an end is still being written, or never will be
    rows: list[EventRow] = [json.loads(line) for line in complete.splitlines() if line.startswith("{")]
    return list(_without_abandoned_steps(rows))


def _without_abandoned_steps(rows: list[EventRow]) -> Iterator[EventRow]:
    begun: float = math.inf  # the step behind which a start that comes later in the log has gone on
    remaining = []
    for row in reversed(rows):
        if row["event"] == "step":
            if row["step"] > begun:
                continue
            begun = min(begun, row["step"] - 1)
        elif row["event"] == "run_start" and (row["step"] or not row.get("summary", {}).get("resumed")):
            begun = min(begun, row["step"])
        remaining.append(row)
    yield from reversed(remaining)
