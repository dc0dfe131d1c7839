"""Every benchmark runs: at sizes that say nothing about speed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend import device

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
# by file: the smallest arguments, and what the answer has in it
TINY: dict[str, tuple[list[str], str]] = {
    "cache.py": (["--count", "6", "--edge", "64", "--clock", "cpu"], "fill"),
    "fp8.py": (["--layers", "1,1", "--width", "256"], "second"),
    "gpu/agenda.py": (
        ["--tiny", "--part", "attention", "--part", "families", "--families", "flux,wan", "--minutes", "20"],
        "step_s",
    ),
    "gpu/step.py": (["flux", "--size", "tiny", "--rows", "bf16", "--steps", "1"], "bf16"),
    "kills.py": (["--kills", "1", "--steps", "4", "--run", "soap"], "1 of 1 ended with the same bytes"),
    "listing.py": (["--count", "20", "--folders", "2", "--rounds", "1"], "list"),
    "magcache.py": (["--steps", "3", "--thresholds", "0.1"], "0.1"),
    "memory_options.py": (["--width", "128", "--rounds", "2"], "swap"),
    "memory_plan.py": (["flux plain"], "farthest from 1"),
    "optimizers.py": (["--width", "64", "--rounds", "2", "--row", "soap", "--row", "bnb-adamw8bit"], "adamw"),
    "same_bytes.py": (["record", "bytes.json", "--run", "flux, resumed"], "1 runs recorded"),
    "scan.py": (["--count", "20", "--rows", "50"], "first batch"),
    "startup.py": (["--runs", "1"], "torch"),
    "step_overhead.py": (["--rounds", "2", "--size", "tiny", "--json"], "bare_to_bare"),
    "video.py": (["--size", "64x64", "--frames", "3", "--repeats", "1"], "frames"),
}
# it kills an S3 server that keeps what it has on disk, and there is none in Python
NEEDS_A_SERVER = {"object_store.py"}


def test_every_benchmark_has_a_tiny_size():
    files = {str(path.relative_to(BENCHMARKS)) for path in BENCHMARKS.rglob("*.py")}
    assert files == TINY.keys() | NEEDS_A_SERVER


# what a benchmark does besides, with a pretended GPU
ON_GPU: dict[str, tuple[list[str], str]] = {"memory_plan.py": (["--gpu", "flux swap"], "farthest from 1")}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [*((name, TINY) for name in TINY), *((name, ON_GPU) for name in ON_GPU)])
def test_benchmark_runs_at_tiny_size(name, rows, tmp_path):
    if rows is ON_GPU and device.COMPILER is None:
        pytest.skip("no C++ compiler (g++, or CXX): the pretended GPU cannot be built")
    arguments, word = rows[name]
    own = {"BENCH_HOME": str(tmp_path), "BENCH_LARGER": "0", "DARKROOM_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, BENCHMARKS / name, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **own},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(word, done.stdout, re.IGNORECASE), done.stdout[-2000:]


def test_the_first_parts_of_the_gpu_agenda_fit_into_nine_minutes_whatever_they_take():
    command = [sys.executable, BENCHMARKS / "gpu/agenda.py", "--list"]
    rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    limits = {name: int(limit.removesuffix(" s")) for name, limit in (row.split(": ") for row in rows)}

    assert sum(list(limits.values())[: list(limits).index("families") + 1]) <= 9 * 60


def test_the_gpu_agenda_keeps_what_there_is_when_a_part_or_its_time_ends(tmp_path):
    found = tmp_path / "found.json"
    command = [sys.executable, BENCHMARKS / "gpu/agenda.py", "--tiny", "--json", found, "--part", "rates"]
    command += ["--part", "attention"]

    # torch alone takes longer to import
    subprocess.run([*command, "--minutes", "0.01"], check=True, capture_output=True)

    parts = json.loads(found.read_text())
    assert parts["rates"]["rows"] == []
    assert re.fullmatch("ended after . s", parts["rates"]["problem"])
    assert parts["attention"] == {"problem": "no time was left"}
