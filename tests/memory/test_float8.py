"""Products of eight-bit floats: which layers compute so, how far they are off, and which GPUs cannot."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from darkroom.core.errors import ConfigError
from darkroom.memory import float8
from darkroom.memory.policy import MemoryPolicy
from darkroom.options.config import every_option

pytest.importorskip("torchao.float8")
FP8 = SimpleNamespace(mixed_precision="fp8")


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Linear(32, 64)
        self.blocks = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.blocks.add_module("odd", nn.Linear(64, 60))

    def forward(self, x):
        return self.blocks(self.embed(x))


def test_layers_inside_blocks_compute_so_and_keep_their_weights():
    model = Denoiser()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    assert float8.convert(model, ("blocks",)) == 2
    assert float8.convert(model, ("blocks",)) == 0
    assert [type(layer).__name__ for layer in model.blocks] == ["Float8Linear", "GELU", "Float8Linear", "Linear"]
    assert type(model.embed) is nn.Linear
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("trained", [True, False])
def test_answers_and_gradients_are_off_by_a_rounding(trained):
    plain = Denoiser().requires_grad_(trained)
    model = copy.deepcopy(plain)
    float8.convert(model, ("blocks",))
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))  # tokens need be no multiple of anything

    def gradients(network):
        given = x.clone().requires_grad_()
        answer = network(given)
        answer.square().mean().backward()
        return [answer.detach(), given.grad, *(p.grad for p in network.parameters() if trained)]

    for exact, near in zip(gradients(plain), gradients(model), strict=True):
        off = (near - exact).norm() / exact.norm()
        assert off < 0.1  # e4m3 has a step of 1/8 between powers of two, e5m2 of 1/4
    assert not torch.equal(gradients(plain)[0], gradients(model)[0])


def test_a_gpu_without_such_products_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An older card")
    with pytest.raises(ConfigError, match="An older card has no products of eight-bit floats"):
        float8.validate_float8(FP8, torch.device("cuda"))

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    float8.validate_float8(FP8, torch.device("cuda"))
    float8.validate_float8(FP8, torch.device("cpu"))


@pytest.mark.parametrize(("width", "words"), [(64, "takes longer without a GPU"), (60, "no layer is large enough")])
def test_what_it_does_here_is_said(width, words):
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(width, width)])
    options = SimpleNamespace(**{info.name: info.default for info in every_option()} | {"mixed_precision": "fp8"})
    memory_policy = MemoryPolicy(options, torch.device("cpu"), ("blocks",))
    memory_policy.prepare_denoisers({"it": model})

    assert [remark for remark in memory_policy.remarks() if "fp8" in remark and words in remark]
    assert memory_policy.describe() == (["it: 1 layers compute in fp8"] if width == 64 else [])
