"""Progress where nobody watches: plain lines."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from darkroom.core.events import Progress, Step
from darkroom.report.progress import ProgressBars


@pytest.fixture
def bars():
    """Progress into a text of 40 columns that is no terminal."""
    return ProgressBars(Console(file=io.StringIO(), width=40, force_terminal=False))


def lines(bars: ProgressBars) -> list[str]:
    return bars.console.file.getvalue().splitlines()


def step(number: int, total: int = 100) -> Step:
    return Step(step=number, total=total, terms={"a": 0.25, "b": 0.5}, metrics={"seconds": 2.0, "learning_rate": 1e-4})


def test_the_first_step_is_one_line_with_loss_rate_pace_and_time_left(bars):
    bars.on_step(step(1))

    assert lines(bars) == ["step 1/100  loss 0.7500  lr 1.00e-04  2.00 s/step  3 min 18 s left"]


def test_steps_between_are_quiet_and_the_last_is_not(bars):
    for number in (1, 2, 3, 4):
        bars.on_step(step(number, total=4))

    assert [line.split()[1] for line in lines(bars)] == ["1/4", "4/4"]


def test_a_phase_is_told_when_it_is_done(bars):
    for done in (1, 2):
        bars.on_progress(Progress(phase="latent cache", done=done, total=2, unit="pictures"))

    assert lines(bars) == ["latent cache: 2 pictures"]


def test_what_is_said_is_printed_as_it_is(bars):
    bars.print_line("[bold] is no markup here, and long lines are not broken into pieces")

    assert lines(bars) == ["[bold] is no markup here, and long lines are not broken into pieces"]


def test_bars_close_twice_without_harm():
    bars = ProgressBars(Console(file=io.StringIO(), force_terminal=True))
    bars.on_progress(Progress(phase="scan", done=1, total=2))

    bars.close()
    bars.close()

    assert "scan" in bars.console.file.getvalue()
