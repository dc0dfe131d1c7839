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

LEAST_ATTEMPTS = 3  # even if the first ones used up the time by themselves
ASKED_MOST = 120.0  # seconds: the longest `Retry-After` that is honoured
ASKED_TIMES = 5  # and how often one call waits for it beyond its own patience
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
    most: float = 8.0  # seconds, upper bound of any pause
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random
    _said: float = field(default=float("-inf"), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def pause(self, attempt: int) -> float:
        """Seconds after the `attempt`-th failure, counted from 0: between half and all of min(most, first * 2**n)."""
        bound = min(self.most, self.first * 2.0 ** min(attempt, 60))
        return bound * (0.5 + 0.5 * self.draw())

    def call(
        self, work: Callable[[], Result], what: str, store: str, remedy: str = REMEDY, limit: int | None = None
    ) -> Result:
        """The result of `work`, repeated while it raises Passing. Raises Unreachable when patience is over, or after
        `limit` attempts."""
        failures, asked, began, until = 0, 0, 0.0, 0.0
        while True:
            try:
                return work()
            except Passing as trouble:
                now = self.clock()
                if failures == 0:
                    began, until = now, now + self.total
                failures += 1
                pause = self.pause(failures - 1)
                if trouble.wait is not None and asked < ASKED_TIMES:
                    # the server says when it will answer: that wait is not charged to our patience
                    asked += 1
                    until += min(trouble.wait, ASKED_MOST)
                    pause = max(pause, min(trouble.wait, ASKED_MOST))
                if failures == limit or (now + pause > until and failures >= LEAST_ATTEMPTS):
                    raise Unreachable(store, failures, now - began, str(trouble), remedy) from None
                self._report(store, what, str(trouble), failures, pause)
            self.sleep(pause)

    def _report(self, store: str, what: str, trouble: str, failures: int, pause: float) -> None:
        with self._lock:
            now = self.clock()
            loud = now - self._said >= QUIET
            self._said = now if loud else self._said
        tell = log.warning if loud else log.debug
        tell("%s: %s failed (%s); attempt %d follows in %.1f s", store, what, trouble, failures + 1, pause)
