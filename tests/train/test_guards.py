"""The disk guard: its threshold, and its three answers."""

from __future__ import annotations

import sys

import pytest

from darkroom.core.errors import ConfigError, DiskFullError
from darkroom.options.config import Config
from darkroom.train import guards
from darkroom.train.guards import ensure_disk_space

GIB = 2**30


@pytest.fixture
def free(monkeypatch):
    """Set what the disk has free, once for every look; the last value stays."""

    def set_free(*values: float) -> None:
        left = list(values)
        monkeypatch.setattr(guards, "free_bytes", lambda folder: left.pop(0) if len(left) > 1 else left[0])

    return set_free


def guard(tmp_path, threshold, action="stop", script=None, sleep=None, stopped=lambda: False) -> None:
    options = Config(model_family="flux", disk_low_threshold=threshold, disk_low_action=action, disk_low_script=script)
    ensure_disk_space(tmp_path, options, sleep or (lambda seconds: pytest.fail("slept")), stopped)


def test_no_threshold_never_looks(tmp_path, free):
    free(0)

    guard(tmp_path, None)


@pytest.mark.parametrize("threshold", ["1G", "1GB", "1024m", "0.5 g", "1048576K", "1073741824"])
def test_enough_room_passes(tmp_path, free, threshold):
    free(GIB)

    guard(tmp_path, threshold)


@pytest.mark.parametrize("threshold", ["1.001G", "2 GB", "1T", "1073741825"])
def test_too_little_room_stops_and_says_how_much_there_is(tmp_path, free, threshold):
    free(GIB)

    with pytest.raises(DiskFullError, match=r"1\.0 GiB") as caught:
        guard(tmp_path, threshold)

    assert threshold in str(caught.value)


def test_a_threshold_that_is_no_size_is_refused_with_an_example(tmp_path):
    options = Config.model_construct(disk_low_threshold="a lot", disk_low_action="stop", disk_low_script=None)

    with pytest.raises(ConfigError, match="100G"):
        ensure_disk_space(tmp_path, options)


def test_waiting_looks_again_every_second(tmp_path, free):
    slept = []
    free(0, 0, 0, 0, 2 * GIB)

    guard(tmp_path, "1G", "wait", sleep=slept.append)

    assert slept == [1.0, 1.0]


def test_who_waits_for_room_can_be_stopped(tmp_path, free):
    free(0)

    with pytest.raises(DiskFullError, match="Stopped while waiting"):
        guard(tmp_path, "1G", "wait", sleep=lambda seconds: None, stopped=lambda: True)


def test_a_script_that_makes_room_lets_the_run_go_on(tmp_path, free):
    free(0, 2 * GIB)
    mark = tmp_path / "ran"

    guard(tmp_path, "1G", "script", f"{sys.executable} -c \"open('{mark}', 'w')\"")

    assert mark.exists()


def test_a_script_that_makes_no_room_stops_the_run(tmp_path, free):
    free(0)

    with pytest.raises(DiskFullError, match="less than disk_low_threshold"):
        guard(tmp_path, "1G", "script", f"{sys.executable} -c pass")


def test_a_script_that_fails_stops_the_run_with_its_code(tmp_path, free):
    free(0, 2 * GIB)

    with pytest.raises(DiskFullError, match="ended with code 3"):
        guard(tmp_path, "1G", "script", f'{sys.executable} -c "raise SystemExit(3)"')


@pytest.mark.parametrize(("script", "said"), [(None, "no script is given"), ("/no/such/program", "cannot be run")])
def test_a_script_that_is_not_there_is_a_configuration_error(tmp_path, free, script, said):
    free(0)

    with pytest.raises(ConfigError, match=said):
        guard(tmp_path, "1G", "script", script)
