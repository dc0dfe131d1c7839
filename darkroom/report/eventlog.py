"""One JSON line per event in `events.jsonl`: what the report, the web pages and people read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from darkroom.core.clock import Clock
from darkroom.core.events import Event, Progress
from darkroom.core.files import disk_full_says
from darkroom.core.log import redacted


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
        row = {"time": self.clock.now(), "event": event.name, **dataclasses.asdict(event)}
        with disk_full_says(self.path, "an event"):
            self._file.write(json.dumps(redacted(row), default=str) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file. Raises DiskFullError if the last events do not fit."""
        with disk_full_says(self.path, "an event"):
            self._file.close()


def _drop_torn_line(path: Path) -> None:
    """A kill in the middle of a write leaves half a line; remove it."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole event of a log. Steps that a resume repeated count once, the last time."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a line without an end is still being written, or never will be
    rows = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
    latest: dict[int, int] = {row["step"]: i for i, row in enumerate(rows) if row["event"] == "step"}
    return [row for i, row in enumerate(rows) if row["event"] != "step" or latest[row["step"]] == i]
