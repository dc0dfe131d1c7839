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
from typing import NoReturn, TypeVar

import tenacity

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
        call = _Call(self, action, store, remedy, limit)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Passing),
            wait=call.wait,
            stop=call.is_over,
            before_sleep=call.report,
            retry_error_callback=call.give_up,
            sleep=self.sleep,
        )
        return retrying(work)

    def report(self, store: str, action: str, failure: Passing, failures: int, pause: float) -> None:
        """A line in the log, as a warning unless another thread has just written one."""
        with self._lock:
            now = self.clock()
            is_loud = now - self._last_report >= QUIET
            self._last_report = now if is_loud else self._last_report
        write = log.warning if is_loud else log.debug
        write("%s: %s failed (%s); attempt %d follows in %.1f s", store, action, failure, failures + 1, pause)


@dataclass
class _Call:
    """What tenacity asks during one call, in this order after each failure: how long to wait, and whether to end."""

    retry: Retry
    action: str
    store: str
    remedy: str
    limit: int | None
    retry_afters: int = 0
    began: float = 0.0
    until: float = 0.0

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds until the next attempt."""
        if state.attempt_number == 1:
            self.began = self.retry.clock()
            self.until = self.began + self.retry.total
        pause = self.retry.pause(state.attempt_number - 1)
        asked = _failure(state).wait
        if asked is None or self.retry_afters == MAX_RETRY_AFTERS:
            return pause
        # the server says when it will answer: that wait is not charged to our patience
        asked = min(asked, MAX_RETRY_AFTER)
        self.retry_afters += 1
        self.until += asked
        return max(pause, asked)

    def is_over(self, state: tenacity.RetryCallState) -> bool:
        """Whether the attempts end here."""
        is_late = self.retry.clock() + state.upcoming_sleep > self.until
        return state.attempt_number == self.limit or (is_late and state.attempt_number >= MIN_ATTEMPTS)

    def report(self, state: tenacity.RetryCallState) -> None:
        """Say that another attempt follows."""
        self.retry.report(self.store, self.action, _failure(state), state.attempt_number, state.upcoming_sleep)

    def give_up(self, state: tenacity.RetryCallState) -> NoReturn:
        """Raises Unreachable."""
        waited = self.retry.clock() - self.began
        raise Unreachable(self.store, state.attempt_number, waited, str(_failure(state)), self.remedy)


def _failure(state: tenacity.RetryCallState) -> Passing:
    failure = state.outcome and state.outcome.exception()
    assert isinstance(failure, Passing)
    return failure
