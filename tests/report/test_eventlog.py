"""The event log: one line per event, readable after any kill."""

from __future__ import annotations

import errno
import json
from unittest.mock import Mock

import pytest

from darkroom.core.clock import FixedClock
from darkroom.core.errors import DiskFullError
from darkroom.core.events import Progress, RunEnd, RunStart, Step, Warn
from darkroom.report.eventlog import EventLog, read


def logged(path, *events) -> None:
    log = EventLog(path, FixedClock())
    for event in events:
        log(event)
    log.close()


def step(number: int, loss: float = 0.0) -> Step:
    return Step(step=number, terms={"denoise": loss})


def test_an_event_is_one_line_with_its_name_and_time(tmp_path):
    logged(tmp_path / "events.jsonl", Warn(step=3, message="mind the gap", about="trains"))

    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.000+00:00", "event": "warning", "step": 3, "message": "mind the gap",
        "about": "trains",
    }  # fmt: skip


def test_bare_progress_is_not_logged(tmp_path):
    logged(tmp_path / "events.jsonl", Progress(phase="scan", done=1, total=2))

    assert read(tmp_path / "events.jsonl") == []


def test_a_later_run_appends(tmp_path):
    logged(tmp_path / "events.jsonl", RunEnd(status="interrupted"))
    logged(tmp_path / "events.jsonl", RunEnd(status="completed"))

    assert [row["status"] for row in read(tmp_path / "events.jsonl")] == ["interrupted", "completed"]


def test_steps_that_a_later_start_went_back_behind_are_not_read(tmp_path):
    path = tmp_path / "events.jsonl"
    logged(path, RunStart(), *map(step, range(1, 9)))
    logged(path, RunStart(step=2, summary={"resumed": True}), step(3, 0.5), step(4, 0.5))

    found = [(row["step"], row["terms"]["denoise"]) for row in read(path) if row["event"] == "step"]
    assert found == [(1, 0), (2, 0), (3, 0.5), (4, 0.5)]

    logged(path, RunStart(), step(1, 0.7))
    assert [row["step"] for row in read(path) if row["event"] == "step"] == [1]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path):
    path = tmp_path / "events.jsonl"
    logged(path, step(1))
    with open(path, "a") as file:
        file.write('{"event": "step", "st')

    assert [row["step"] for row in read(path)] == [1]
    logged(path, step(2))
    assert [row["step"] for row in read(path)] == [1, 2]


def test_a_log_of_half_a_line_is_empty(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "st')

    logged(path)

    assert path.read_text() == ""


def test_steps_that_a_resume_repeated_count_once_as_they_were_last(tmp_path):
    path = tmp_path / "events.jsonl"
    logged(path, step(1, 0.1), step(2, 0.2), step(3, 0.3))
    logged(path, step(2, 0.5), step(3, 0.6), step(4, 0.7))

    assert [(row["step"], row["terms"]["denoise"]) for row in read(path)] == [(1, 0.1), (2, 0.5), (3, 0.6), (4, 0.7)]


def test_secrets_are_redacted_and_lines_stay_json(tmp_path):
    path = tmp_path / "events.jsonl"
    said = 'it said "token abcdef99" and "token=abcdef99"'

    logged(path, RunStart(summary={"hub_token": 123456789, "note": said}))

    assert "abcdef99" not in path.read_text()
    assert read(path)[0]["summary"] == {"hub_token": "***", "note": 'it said "token ***" and "token=***"'}


def test_a_full_disk_is_said_in_words(tmp_path, monkeypatch):
    log = EventLog(tmp_path / "events.jsonl", FixedClock())
    log.close()
    monkeypatch.setattr(log, "_file", Mock(flush=Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))))

    with pytest.raises(DiskFullError, match="an event could not be written"):
        log(step(1))
