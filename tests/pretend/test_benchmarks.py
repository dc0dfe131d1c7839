"""The benchmarks for a GPU run on a pretended one: the first minutes on a real one are not lost to mistakes in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend import device

ROOT = Path(__file__).parents[2]
# what only real kernels can do, by row
REAL_ONLY = {"EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION", "nf4-bnb", "flash-attn", "cudnn", "compiled"}
PARTS = ("environment", "rates", "attention", "flux, quantized", "flux, swapped", "run", "families")


@pytest.mark.slow
def test_the_agenda_runs_on_a_gpu_and_keeps_what_each_part_has_found(tmp_path):
    if device.COMPILER is None:
        pytest.skip("no C++ compiler (g++, or CXX): the pretended GPU cannot be built")
    device.build()
    # every process that the agenda starts gets the pretended GPU before it imports torch
    (tmp_path / "sitecustomize.py").write_text("from tests.pretend import device\n\ndevice.install()\n")
    parts = [word for part in PARTS for word in ("--part", part)]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu/agenda.py", "--tiny", "--json", tmp_path / "found.json", *parts,
         "--families", "flux,wan", "--minutes", "20"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "DARKROOM_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]

    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == list(PARTS)
    assert {name: part["problem"] for name, part in found.items() if "problem" in part} == {}
    rows = [row for part in found.values() for row in part["rows"]]
    problems = {
        row.get("row") or row.get("kernel") or row.get("family"): row["problem"] for row in rows if "problem" in row
    }
    assert problems.keys() <= REAL_ONLY, problems
    # a whole run says the memory of its phases in its own report
    assert all(row["peak_gib"] > 0 for row in rows if "step_s" in row and "run" not in row)
