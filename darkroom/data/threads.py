"""Many small reads, in order, by threads where that helps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

CHUNK = 64
"""Files per task of a reading thread: large enough that handing tasks over costs nothing against opening files."""

SLOW = 0.5e-3
"""Seconds per file above which waiting, not computing, is what takes the time."""

WINDOW = 1024
"""Remote files that are asked for before their answers are handed on."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_chunks(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, remote: bool = False
) -> Iterator[list[Result]]:
    """Results in order, a chunk at a time: by threads where files answer slowly, else in place.

    On a local disk a header costs 0.1 ms of Python, and threads would only wait for each other; on shared storage it
    costs milliseconds of waiting, which threads share. The first chunk tells which it is, unless the store is known to
    be `remote`; then every read is a task of its own.
    """
    if remote and workers > 1:
        with ThreadPoolExecutor(workers, thread_name_prefix="files") as pool:
            for i in range(0, len(items), WINDOW):
                yield list(pool.map(work, items[i : i + WINDOW]))
        return
    started = time.monotonic()
    first = [work(item) for item in items[:CHUNK]]
    slow = time.monotonic() - started > SLOW * len(first)
    yield first
    following = [items[i : i + CHUNK] for i in range(CHUNK, len(items), CHUNK)]
    if not slow or workers == 1:
        yield from ([work(item) for item in chunk] for chunk in following)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="files") as pool:
        yield from pool.map(lambda chunk: [work(item) for item in chunk], following)
