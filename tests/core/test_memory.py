"""How much memory there is and how much is held."""

from __future__ import annotations

import subprocess
import sys

import pytest

from darkroom.core.memory import available, held, memory_full_message

MB = 2**20
PROGRAM = """
import sys, torch
from darkroom.core.memory import give_back_freed, held
if sys.argv[1] == "yes":
    give_back_freed()
start = held()
for _ in range(2):
    # the second time they come out of what was freed, unless that has gone back
    blocks = [torch.ones(2**20 + 1000 * i) for i in range(50)]
    last = torch.ones(2**19)
    del blocks
print(held() - start)
"""


def test_what_is_held_and_what_is_left_are_told():
    before = held()
    block = bytearray(64 * MB)
    assert 60 * MB < held() - before < 80 * MB
    assert len(block) < available()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_goes_back():
    kept = {
        word: int(subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, check=True).stdout)
        for word in ("yes", "no")
    }
    assert kept["yes"] < 30 * MB
    assert kept["no"] > kept["yes"]


def test_advice_stands_before_what_is_said_to_everybody():
    said = memory_full_message(MemoryError("no room"), "It fits with gradient_checkpointing to true.")
    assert said.splitlines()[:2] == ["Out of memory: no room", "  It fits with gradient_checkpointing to true."]
    assert memory_full_message(MemoryError("no room")).splitlines()[1].startswith("  What was saved is intact")
