"""Time, behind one small seam so that tests need not wait."""

from __future__ import annotations

import datetime
import time


class Clock:
    """The machine's clock."""

    def utc_timestamp(self) -> str:
        """The moment in UTC, ISO 8601, to the millisecond."""
        return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")

    def seconds(self) -> float:
        """Monotonic seconds; only differences mean something."""
        return time.monotonic()


class FixedClock(Clock):
    """A clock for tests: moves only when told to."""

    def __init__(self, start: float = 0.0):
        self.value = start

    def utc_timestamp(self) -> str:
        """The start of 1970 plus the seconds told."""
        return datetime.datetime.fromtimestamp(self.value, datetime.UTC).isoformat(timespec="milliseconds")

    def seconds(self) -> float:
        """The seconds told so far."""
        return self.value

    def tick(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.value += seconds
