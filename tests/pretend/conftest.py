"""Runs on a pretended GPU, in a process of its own that all tests of a test process share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.job.conftest import (  # noqa: F401  (fixtures)
    arguments,
    dataset_file,
    layered,
    moving,
    photographs,
    settings,
    wide,
)
from tests.pretend import device

Report = dict[str, Any]


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Report]]:
    """Runs a command on the pretended GPU; gives what the device saw. Skips where there is no compiler."""
    if device.COMPILER is None:
        pytest.skip("no C++ compiler (g++, or CXX): the pretended GPU cannot be built")
    device.build()
    home = tmp_path_factory.mktemp("home")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pretend.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "DARKROOM_HOME": str(home)}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def run(command: list[str], **more: Any) -> Report:
        stdin.write(json.dumps({"arguments": command, **more}) + "\n")
        stdin.flush()
        answer = stdout.readline()
        assert answer, f"the process with the pretended GPU ended with code {process.wait()}"
        return json.loads(answer)

    yield run
    stdin.close()
    process.wait(timeout=60)
