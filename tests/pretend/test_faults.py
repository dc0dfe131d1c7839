"""The tests on the pretended GPU fail where they should: mistakes on purpose are found."""

from __future__ import annotations

import pytest

from tests.pretend.runs import USUAL, losses

pytestmark = pytest.mark.slow


@pytest.fixture
def run(arguments, worker, tmp_path):
    """A run of flux whose blocks wait on the host; gives the report and the losses."""

    def go(fault: str = ""):
        folder = tmp_path / (fault or "whole")
        options = {**USUAL, "musubi_blocks_to_swap": 1, "validation_disable": True, "output_dir": folder}
        report = worker(["train", *arguments("flux", **options)], fault=fault, log=str(tmp_path / "log"))
        return report, losses(folder)

    return go


def test_a_missing_wait_gives_other_numbers(run):
    report, whole = run()
    assert report["code"] == 0
    assert run()[1] == whole
    assert run("no wait")[1] != whole


def test_a_tensor_on_the_host_is_refused(run, tmp_path):
    assert run("tensor on the host")[0]["code"] != 0
    assert "same device" in (tmp_path / "log").read_text()


def test_a_generator_of_the_host_is_refused(run, tmp_path):
    assert run("generator of the host")[0]["code"] != 0
    assert "device type for generator" in (tmp_path / "log").read_text()


def test_more_memory_than_the_device_has_is_reported_with_what_would_fit(arguments, worker, tmp_path):
    options = {**USUAL, "validation_disable": True}
    report = worker(["train", *arguments("flux", **options)], memory=200_000, log=str(tmp_path / "log"))
    assert report["code"] != 0
    assert "memory" in (tmp_path / "log").read_text()
