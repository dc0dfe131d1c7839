"""Options that change where something is or how it is computed, on a pretended GPU: what is learned stays the same."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from darkroom.cli.main import main
from tests.pretend.options import (
    ELSEWHERE,
    FEW_OPTIMIZERS,
    FEW_QUANTIZED,
    NEARLY,
    OPTIMIZER,
    QUANTIZED,
    SAME,
)
from tests.pretend.runs import USUAL, Options, losses

FAMILIES = ("flux", *ELSEWHERE)


def rows(table: dict[str, Options], few: Iterable[str] | None = None) -> list[object]:
    """Every family with every row: flux in the slow tests, or some of its rows, and of other families what differs."""
    found = []
    for family in FAMILIES:
        for name in table:
            first = name.split(",")[0]
            slow = name in ELSEWHERE[family] if family in ELSEWHERE else few is None or first in few
            found.append(pytest.param(family, name, marks=pytest.mark.slow if slow else pytest.mark.proof))
    return found


@pytest.fixture(scope="session")
def known() -> dict[str, list[float]]:
    return {}


@pytest.fixture
def on_gpu(arguments, wide, worker, tmp_path, record_property):
    """The losses of the run on the pretended GPU."""

    def go(family: str, **options) -> list[float]:
        log, folder = tmp_path / "log", tmp_path / options.pop("output_dir", "run")
        given = {**USUAL, "pretrained_model_name_or_path": wide(family), "output_dir": folder, **options}
        report = worker(["train", *arguments(family, **given)], log=str(log))
        assert report["code"] == 0, log.read_text()[-4000:]
        assert report["refused"] == {}
        record_property("device", {"case": f"{family} {options}", **report})
        return losses(folder)

    return go


@pytest.fixture
def plain(on_gpu, known):
    """The losses of a family's run without other options, on the pretended GPU; made once."""

    def of(family: str) -> list[float]:
        if family not in known:
            known[family] = on_gpu(family, validation_disable=True, output_dir=f"{family}-plain")
        return known[family]

    return of


@pytest.mark.parametrize(("family", "name"), rows(SAME))
def test_where_things_are_changes_nothing_of_what_is_learned(family, name, plain, on_gpu):
    assert on_gpu(family, **SAME[name]) == plain(family)


@pytest.mark.parametrize(("family", "name"), rows(NEARLY))
def test_another_kernel_learns_nearly_the_same(family, name, plain, on_gpu):
    assert on_gpu(family, **NEARLY[name]) == pytest.approx(plain(family), rel=1e-2)


@pytest.mark.parametrize(("family", "name"), rows(QUANTIZED, FEW_QUANTIZED))
def test_a_base_in_fewer_bits_learns_nearly_the_same(family, name, plain, on_gpu):
    assert on_gpu(family, **QUANTIZED[name]) == pytest.approx(plain(family), rel=0.05)


@pytest.mark.parametrize(("family", "name"), rows(OPTIMIZER, FEW_OPTIMIZERS))
def test_an_optimizer_learns_as_on_a_cpu(family, name, arguments, wide, on_gpu, tmp_path):
    options = {**OPTIMIZER[name], "validation_disable": True}
    there = on_gpu(family, **options)
    given = {**USUAL, **options, "pretrained_model_name_or_path": wide(family), "output_dir": tmp_path / "cpu"}
    assert main(["train", *arguments(family, **given)]) == 0
    assert there == pytest.approx(losses(tmp_path / "cpu"), rel=0.02)
