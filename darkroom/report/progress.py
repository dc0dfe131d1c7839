"""Progress on the terminal: bars with rates and time left where a person watches, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from darkroom.core import events
from darkroom.core.log import redact
from darkroom.core.units import show_duration

if TYPE_CHECKING:
    from rich.progress import TaskID


PLAIN_EVERY = 15.0


@contextlib.contextmanager
def status(title: str, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """Gives a function that says what is being done: in one line that changes, or a line each if no person watches."""
    console = console or Console(file=sys.stderr, highlight=False)
    if not console.is_terminal:
        yield lambda text: console.print(f"{title}: {text}", markup=False, soft_wrap=True)
        return
    with console.status(title) as line:
        yield lambda text: line.update(f"{title}: {escape(text)}")


class ProgressBars:
    """Listens to progress and steps. Time left comes from a moving average of training time alone."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(file=sys.stderr, highlight=False)
        self._bars: Bar | None = None
        self._tasks: dict[str, TaskID] = {}
        # when a plain line was last printed
        self._last_line = time.monotonic()
        self._pace: float | None = None

    @property
    def is_live(self) -> bool:
        """Is a person's terminal at the other end?"""
        return self.console.is_terminal

    def on_progress(self, event: events.Progress) -> None:
        """A phase moved on."""
        if self.is_live:
            self._move(event.phase, event.done, event.total or None, "")
        elif event.done == event.total:
            self.console.print(f"{event.phase}: {event.done} {event.unit}", soft_wrap=True)
        elif time.monotonic() - self._last_line > PLAIN_EVERY:
            self._last_line = time.monotonic()
            of = f" of {event.total}" if event.total else ""
            self.console.print(f"{event.phase}: {event.done}{of} {event.unit}", soft_wrap=True)

    def on_step(self, event: events.Step) -> None:
        """An optimizer step was taken."""
        seconds = event.metrics["seconds"]
        self._pace = seconds if self._pace is None else 0.9 * self._pace + 0.1 * seconds
        if not self.is_live and not self._is_due(event):
            return
        loss = sum(event.terms.values())
        note = f"loss {loss:.4f}  lr {event.metrics['learning_rate']:.2e}  {self._rate()}"
        if self.is_live:
            self._move("training", event.step, event.total, note)
            if event.step == event.total:
                self.close()
        else:
            self._last_line = time.monotonic()
            left = show_duration((event.total - event.step) * self._pace)
            self.console.print(f"step {event.step}/{event.total}  {note}  {left} left", soft_wrap=True)

    def _is_due(self, event: events.Step) -> bool:
        """Is it time for another plain line?"""
        return time.monotonic() - self._last_line > PLAIN_EVERY or event.step in (1, event.total)

    def _rate(self) -> str:
        pace = self._pace or 0.0
        return f"{pace:.2f} s/step" if pace >= 1 else f"{1 / max(pace, 1e-9):.1f} steps/s"

    def _move(self, phase: str, finished: int, total: int | None, note: str) -> None:
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            self._bars = Bar(*columns, console=self.console)
            self._bars.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total, note=note, completed=finished)
        self._bars.update(self._tasks[phase], completed=finished, total=total, note=note)
        if total is not None and finished >= total and phase != "training":
            self._bars.remove_task(self._tasks.pop(phase))

    def print_line(self, text: str) -> None:
        """A plain line above the bars."""
        self.console.print(redact(text), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bars away."""
        if self._bars:
            self._bars.stop()
            self._bars, self._tasks = None, {}
