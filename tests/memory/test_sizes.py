"""What weights take in more bits or in fewer, before there are any."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from darkroom.memory import quantize
from darkroom.memory.fake import bits_of
from darkroom.memory.sizes import weight_bytes


def network() -> nn.Module:
    blocks = nn.ModuleList([nn.Linear(256, 256) for _ in range(4)])
    return nn.ModuleDict({"embed": nn.Linear(16, 256), "blocks": blocks})


def test_only_what_is_quantised_gets_smaller():
    outside = sum(
        tensor.numel() for name, tensor in network().state_dict().items() if tensor.ndim == 1 or "e" in name[:1]
    )

    assert weight_bytes(network(), ("blocks",)) == 2 * (outside + 4 * 256 * 256)
    assert weight_bytes(network(), ("blocks",), 4) == 2 * outside + 4 * 256 * 256 // 2


@pytest.mark.parametrize("preset", ["fp8-block", "fp8-tensor"])
def test_what_is_told_is_what_a_quantised_network_takes(preset):
    model = network().to(torch.bfloat16)
    told = weight_bytes(model, ("blocks",), bits_of(preset))
    options = SimpleNamespace(fp8_format="e4m3")
    quantize.quantize_model(model.requires_grad_(False), preset, options, torch.device("cpu"), ("blocks",))

    assert sum(t.numel() * t.element_size() for t in model.state_dict().values()) == pytest.approx(told, rel=0.05)
