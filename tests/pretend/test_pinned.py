"""Host memory that a GPU copies from on its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend import device

PROGRAM = """
import json
from tests.pretend import device
card = device.install(memory=1 << 30)
import torch
from torch import nn
from darkroom.memory.stream import WeightStreamer
torch.zeros(1, device="cuda")
blocks = [nn.Linear(700, 700).requires_grad_(False) for _ in range(5)]
x = torch.randn(2, 700)
wanted = nn.Sequential(*blocks)(x)
card.reset_peak()
stream = WeightStreamer([[block] for block in blocks], torch.device("cuda:0"))
with card.watched() as seen:
    found = nn.Sequential(*blocks)(x.cuda())
same = torch.allclose(found.cpu(), wanted, atol=1e-4)
packed = sum(unit.size for unit in stream.units)
print(json.dumps({"same": same, "pinned": card.pinned_peak, "packed": packed, "copies": list(seen.copies)}))
"""


@pytest.mark.slow
def test_blocks_in_host_memory_are_pinned_in_no_more_than_their_pages():
    if device.COMPILER is None:
        pytest.skip("no C++ compiler (g++, or CXX): the pretended GPU cannot be built")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout.splitlines()[-1])

    assert seen["same"]
    assert seen["packed"] <= seen["pinned"] <= seen["packed"] + 5 * 4096
    assert any("to the device, pinned" in row for row in seen["copies"])
