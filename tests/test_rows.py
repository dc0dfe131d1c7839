"""A table in one test hides no row that fails, and no row sees what another one did."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rows import each_row

TABLE = """
import pytest
from tests.rows import each_row

@each_row("edge, area", [(1, 1), (2, 4), (3, 8), (4, 17)])
def test_squares(edge, area, tmp_path, monkeypatch):
    (tmp_path / "file").touch(exist_ok=False)
    monkeypatch.setenv("EDGE", str(edge))
    assert edge**2 == area

@each_row("left", "ab")
@each_row("right", [pytest.param(1, id="one"), 2], ids=lambda n: f"number {n}")
def test_products(left, right):
    assert (left, right) != ("b", 1)
"""


def test_every_row_that_fails_is_reported_with_its_reason(tmp_path):
    (tmp_path / "test_table.py").write_text(TABLE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "test_table.py"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert "SUBFAILED[3-8] test_table.py::test_squares - assert (3 ** 2) == 8" in done.stdout
    assert "SUBFAILED[4-17] test_table.py::test_squares - assert (4 ** 2) == 17" in done.stdout
    assert "SUBFAILED[b-one]" in done.stdout
    assert "5 failed, 5 subtests passed" in done.stdout


@each_row("first", [1, 2])
@pytest.mark.parametrize("second", [3, 4])
@each_row("third", [5, 6])
def test_rows_and_cases_of_pytest_go_together(first, second, third):
    assert (first < 3, second in (3, 4), third > 4) == (True, True, True)


def test_a_table_without_rows_is_a_mistake():
    with pytest.raises(AssertionError, match="no rows of edge"):
        each_row("edge", [])
