"""Attempts are bounded in number and time, spread, logged, and made only where they may help."""

from __future__ import annotations

import logging
import time
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.storage.base import Refused, Unreachable, describe_error, ending_of, hide_url_secrets
from darkroom.storage.parallel import for_all
from darkroom.storage.retry import MAX_RETRY_AFTER, MAX_RETRY_AFTERS, MIN_ATTEMPTS, Passing, Retry


class Clock:
    """A clock that only sleeping moves, and what was slept."""

    def __init__(self, attempt: float = 0.0):
        self.now, self.attempt = 0.0, attempt
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def fail(self) -> None:
        self.now += self.attempt
        raise Passing("it broke")

    def retry(self, **keys) -> Retry:
        return Retry(sleep=self.sleep, clock=lambda: self.now, **keys)


numbers = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 10_000), st.floats(0.01, 10), st.floats(0.01, 100), numbers)
def test_a_pause_is_between_half_and_all_of_its_bound(attempt, first, most, drawn) -> None:
    pause = Retry(first=first, max_pause=most, draw=lambda: drawn).pause(attempt)

    bound = min(most, first * 2.0 ** min(attempt, 60))
    assert bound / 2 <= pause <= bound <= most


@given(st.floats(0, 300), st.floats(0.05, 5), st.floats(1, 30), st.floats(0, 100), numbers)
def test_patience_ends(total, first, most, attempt, drawn) -> None:
    clock = Clock(attempt)
    with pytest.raises(Unreachable) as caught:
        clock.retry(total=total, first=first, max_pause=most, draw=lambda: drawn).call(
            clock.fail, "reading", "the store"
        )

    assert caught.value.attempts == len(clock.slept) + 1 >= MIN_ATTEMPTS
    if len(clock.slept) >= MIN_ATTEMPTS:
        assert sum(clock.slept) <= total
    assert max(clock.slept) <= most


def test_a_minute_is_the_default() -> None:
    clock = Clock()
    with pytest.raises(Unreachable, match="does not answer after"):
        clock.retry().call(clock.fail, "reading", "the store")

    assert 45 < sum(clock.slept) <= 60
    assert 8 <= len(clock.slept) <= 25


def test_what_fails_twice_and_then_works_costs_nothing(caplog) -> None:
    caplog.set_level(logging.DEBUG, "darkroom")
    clock, left = Clock(), [1, 2]

    def work() -> str:
        if left:
            left.pop()
            clock.fail()
        return "here"

    assert clock.retry().call(work, "reading 'a.jpg'", "s3://bucket") == "here"
    assert len(clock.slept) == 2
    assert (
        caplog.records[0]
        .getMessage()
        .startswith("s3://bucket: reading 'a.jpg' failed (it broke); attempt 2 follows in")
    )
    assert len(caplog.records) == 2


def test_what_will_not_pass_is_not_repeated() -> None:
    clock, calls = Clock(), []

    def work() -> None:
        calls.append(1)
        raise Refused("no")

    with pytest.raises(Refused):
        clock.retry().call(work, "reading", "the store")
    assert (len(calls), clock.slept) == (1, [])


def test_a_limit_of_attempts_is_kept() -> None:
    clock = Clock()
    with pytest.raises(Unreachable, match="after 1 attempt:"):
        clock.retry().call(clock.fail, "reading", "the store", limit=1)
    assert clock.slept == []


@given(st.floats(0, 1e9))
def test_a_server_may_ask_for_a_wait_but_not_for_ever(asked) -> None:
    clock = Clock()

    def busy() -> None:
        raise Passing("HTTP 429", wait=asked)

    with pytest.raises(Unreachable):
        clock.retry(total=10).call(busy, "reading", "the store")
    assert clock.slept[0] >= min(asked, MAX_RETRY_AFTER)
    assert sum(clock.slept) <= 10 + MAX_RETRY_AFTERS * MAX_RETRY_AFTER


def test_many_threads_in_trouble_do_not_flood_the_terminal(caplog) -> None:
    caplog.set_level(logging.INFO, "darkroom")
    retry = Retry(total=0.05, first=0.001, max_pause=0.005)

    def work(number: int) -> None:
        with pytest.raises(Unreachable):
            retry.call(Clock().fail, "reading", "the store")

    for_all(work, range(16), 16)
    assert len(caplog.records) <= 2


def test_threads_stop_at_the_first_failure_and_it_is_raised() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 5:
            raise ValueError("five")
        time.sleep(0.001)
        done.append(number)

    with pytest.raises(ValueError, match="five"):
        for_all(work, range(100_000), 4)
    assert len(done) < 1000


def test_progress_of_threads_counts_every_item() -> None:
    told: list[tuple[int, int]] = []
    for_all(lambda n: None, range(50), 4, 50, lambda done, total: told.append((done, total)))
    assert told == [(n, 50) for n in range(1, 51)]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:word@host:9/a/b.jpg?token=1#x", "https://host:9/a/b.jpg"),
        ("memory://a/b", "memory://a/b"),
        ("a/b?c.jpg", "a/b?c.jpg"),
    ],
)
def test_urls_are_shown_without_credentials(url, shown) -> None:
    assert hide_url_secrets(url) == shown


def test_causes_are_told_on_one_short_line_without_secrets() -> None:
    cause = OSError("no\n\n answer from https://me:word@host/x?X-Amz-Signature=abc for swordfish " + "x" * 1000)
    said = describe_error(cause, ["swordfish"])

    assert "\n" not in said
    assert len(said) <= 300
    assert not [secret for secret in ("word@", "abc", "swordfish") if secret in said]


@given(st.text(alphabet="ab./# ü", max_size=12))
def test_endings_are_those_of_pathlib(path) -> None:
    name = path.rpartition("/")[2]
    assert ending_of(path) == (PurePosixPath(name).suffix.lower() if name.strip(".") else "")
