"""`darkroom selftest resume` kills real processes and compares real bytes."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_runs_killed_in_every_stage_end_with_the_bytes_of_an_uninterrupted_run(tmp_path):
    command = [sys.executable, "-m", "darkroom", "selftest", "resume", "--steps", "12", "--kills", "6", "--seed", "4"]
    done = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same bytes") == 7
    assert "start 1, caches 1, loading 1, step 1, save 1, validation 1" in done.stdout
