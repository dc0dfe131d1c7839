"""Asking again: with growing, jittered pauses, for a bounded time, and only where repeating is harmless.

Reads, listings, whole writes of the same bytes and deletions may all be repeated: doing them twice gives what doing
them once gives. A store raises `Passing` for what may go away by itself; anything else ends the attempts at once.

The pauses double from `first` to `most` seconds, each drawn from its upper half, so that many threads which lost the
same server do not all return in the same moment ("equal jitter" of M. Brooker, Exponential Backoff And Jitter, 2015).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from darkroom.core.log import logger
from darkroom.storage.base import REMEDY, Unreachable

log = logger(__name__)
Result = TypeVar("Result")

MIN_ATTEMPTS = 3  # even if the first ones used up the time by themselves
MAX_RETRY_AFTER = 120.0  # seconds: the longest `Retry-After` that is honoured
MAX_RETRY_AFTERS = 5  # and how often one call waits for it beyond its own patience
QUIET = 1.0  # seconds between two lines in the log; in between, other threads meet the same trouble


class Passing(Exception):
    """This attempt failed in a way that may pass. `wait`: seconds that the server asked for, if it did."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


@dataclass
class Retry:
    """How patient to be. Shared by all threads of a store; tests give small numbers and their own clock."""

    total: float = 60.0  # seconds since the first failure, after which the last failure is reported
    first: float = 0.5  # seconds, upper bound of the first pause
    max_pause: float = 8.0  # seconds, upper bound of any pause
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random
    _last_report: float = field(default=float("-inf"), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def pause(self, attempt: int) -> float:
        """Seconds after the `attempt`-th failure, counted from 0: between half and all of min(most, first * 2**n)."""
        bound = min(self.max_pause, self.first * 2.0 ** min(attempt, 60))
        return bound * (0.5 + 0.5 * self.draw())

    def call(
        self, work: Callable[[], Result], action: str, store: str, remedy: str = REMEDY, limit: int | None = None
    ) -> Result:
        """The result of `work`, repeated while it raises Passing. Raises Unreachable when patience is over, or after
        `limit` attempts."""
        failures, retry_afters, began, until = 0, 0, 0.0, 0.0
        while True:
            try:
                return work()
            except Passing as trouble:
                current = self.clock()
                if failures == 0:
                    began, until = current, current + self.total
                failures += 1
                pause = self.pause(failures - 1)
                if trouble.wait is not None and retry_afters < MAX_RETRY_AFTERS:
                    # the server says when it will answer: that wait is not charged to our patience
                    retry_afters += 1
                    until += min(trouble.wait, MAX_RETRY_AFTER)
                    pause = max(pause, min(trouble.wait, MAX_RETRY_AFTER))
                if failures == limit or (current + pause > until and failures >= MIN_ATTEMPTS):
                    raise Unreachable(store, failures, current - began, str(trouble), remedy) from None
                self._report(store, action, str(trouble), failures, pause)
            self.sleep(pause)

    def _report(self, store: str, action: str, trouble: str, failures: int, pause: float) -> None:
        with self._lock:
            current = self.clock()
            loud = current - self._last_report >= QUIET
            self._last_report = current if loud else self._last_report
        tell = log.warning if loud else log.debug
        tell("%s: %s failed (%s); attempt %d follows in %.1f s", store, action, trouble, failures + 1, pause)
