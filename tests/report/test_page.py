"""The report page: everything inside one file, nothing of it alive."""

from __future__ import annotations

import base64
import re

import pytest
from PIL import Image

from darkroom.core.clock import FixedClock
from darkroom.core.events import Phase, RunEnd, RunStart, Step, Validation, Warn
from darkroom.report import page
from darkroom.report.eventlog import EventLog

EVIL = "<script>alert('x')</script>"


@pytest.fixture
def report(tmp_path):
    """Write a page about some events: `report([events], {options}, {sources})`."""

    def write(events, options=None, sources=None, notes=()) -> str:
        log = EventLog(tmp_path / "events.jsonl", FixedClock())
        for event in events:
            log(event)
        log.close()
        return page.write(tmp_path, options or {}, sources or {}, notes).read_text(encoding="utf-8")

    return write


def step(number: int, loss: float = 0.5, level: float = 0.3) -> Step:
    return Step(
        step=number, terms={"denoise": loss}, metrics={"seconds": 2.0}, bands=[(level, loss), (0.999, loss)], total=4
    )


def test_a_page_shows_how_the_run_went(report):
    html = report([RunStart(summary={"model": "FLUX.1"}), step(1), step(2), Phase(phase="scan", seconds=3.0), RunEnd()])

    for text in ("completed", "2 of 4", "2.0 s", "FLUX.1", "scan", "<polyline", "nearly noise", "step 2"):
        assert text in html


def test_a_run_that_was_killed_says_so(report):
    assert "running or stopped without a word" in report([step(1)])


def test_a_run_without_a_step_has_a_page(report):
    html = report([RunEnd(status="failed")])

    assert "failed" in html
    assert "<svg" not in html


def test_settings_show_only_what_was_set_and_where(report):
    html = report([], {"learning_rate": 0.1, "lora_rank": 16}, {"learning_rate": "config.toml", "lora_rank": "default"})

    assert "config.toml" in html
    assert "lora_rank" not in html


def test_pictures_are_inside_the_page_in_the_order_of_steps(report, tmp_path):
    for number, colour in ((2, "red"), (10, "blue")):
        Image.new("RGB", (2, 2), colour).save(tmp_path / f"step_{number}_cat_0_2x2.png")
    rows = [
        Validation(step=n, pictures=[
            {"name": "cat", "prompt": "a cat", "path": f"step_{n}_cat_0_2x2.png", "resolution": "2x2"}
        ])
        for n in (10, 2)
    ]  # fmt: skip

    html = report(rows)

    shown = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^']+)", html)]
    assert shown == [(tmp_path / f"step_{n}_cat_0_2x2.png").read_bytes() for n in (2, 10)]
    assert "a cat · 2x2" in html


def test_a_picture_that_was_removed_is_said_to_be(report):
    pictures = [{"name": "cat", "prompt": "", "path": "gone_0_64x64.png", "resolution": "64x64"}]

    assert "(removed)" in report([Validation(step=1, pictures=pictures)])


def test_texts_from_outside_are_escaped(report, tmp_path):
    pictures = [{"name": EVIL, "prompt": EVIL, "path": f"{EVIL}.png", "resolution": "2x2"}]
    html = report(
        [RunStart(summary={EVIL: EVIL}), Warn(message=EVIL, about=EVIL), Phase(phase=EVIL), step(1),
         Validation(step=1, pictures=pictures), RunEnd(status=EVIL)],
        {"tracker_run_name": EVIL, "prompt": EVIL}, {"prompt": EVIL}, notes=[EVIL],
    )  # fmt: skip

    assert "<script" not in html
    assert "alert(&#x27;x&#x27;)" in html


def test_the_page_loads_nothing_from_elsewhere(report):
    html = report([step(1), step(2), RunEnd()])

    assert not re.search(r"(?:src|href)='(?!data:)|url\(|@import", html)


def test_a_warning_that_repeats_is_shown_once(report):
    html = report([Warn(step=1, message="low light"), Warn(step=2, message="low light")])

    assert html.count("low light") == 1


def test_long_runs_stay_small(report):
    html = report([step(n, 1 / n) for n in range(1, 5001)])

    assert len(html) < 100_000


def test_smoothing_is_a_mean_over_the_last_values():
    assert page.smooth([1.0, 3.0, 5.0, 7.0], 2) == pytest.approx([1.0, 2.0, 4.0, 6.0])
