"""The same work for many items by several threads, with progress, without holding a task object per item."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from darkroom.storage.base import OnProgress

Item = TypeVar("Item")


def for_all(
    work: Callable[[Item], None],
    items: Iterable[Item],
    threads: int,
    total: int = 0,
    on_progress: OnProgress | None = None,
) -> None:
    """Call `work` for every item, at most `threads` at once. The first exception stops the rest and is raised here."""
    feed, lock, stop = iter(items), threading.Lock(), threading.Event()
    failed: list[BaseException] = []
    finished = 0

    def next_item() -> Item | None:
        with lock:
            return None if stop.is_set() else next(feed, None)

    def run() -> None:
        nonlocal finished
        try:
            while (item := next_item()) is not None:
                work(item)
                with lock:
                    finished += 1
                    if on_progress is not None:
                        on_progress(finished, total)
        except BaseException as cause:
            failed.append(cause)
            stop.set()

    pool = [
        threading.Thread(target=run, name="storage", daemon=True) for _ in range(max(1, min(threads, total or threads)))
    ]
    for thread in pool:
        thread.start()
    try:
        for thread in pool:
            thread.join()
    finally:
        stop.set()  # an interrupt: threads finish their item and no more
    if failed:
        raise failed[0]
