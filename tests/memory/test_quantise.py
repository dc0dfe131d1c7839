"""Every quantiser, by existing: close to the full weights, smaller than they are, and gradients pass through."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from darkroom.core.errors import ConfigError, MissingPackage
from darkroom.memory import quantize
from darkroom.memory.quantize import fp8
from darkroom.memory.stream import iterate_plain_tensors
from tests.rows import each_row

CPU = torch.device("cpu")
WIDTH = 128
# by bits: how far answers may be from those of the full weights, as a share of their size
MOST = {16: 0.001, 8: 0.03, 7: 0.03, 6: 0.04, 5: 0.05, 4: 0.15, 3: 0.25, 2: 0.9}
HERE = [name for name, by in quantize.find_quantizers().items() if name not in getattr(by, "NEEDS_GPU", ())]


def bits(preset: str) -> int:
    return int("".join(c for c in preset.split("-")[0].removesuffix("uz") if c.isdigit()))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm_linear": nn.Linear(WIDTH, WIDTH), "proj": nn.Linear(WIDTH, WIDTH)}) for _ in range(3)
        )

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block["proj"](torch.tanh(block["norm_linear"](x)))
        return x


def narrowed(preset: str, seed: int = 0) -> tuple[Net, Net]:
    package = getattr(quantize.find_quantizers()[preset], "PACKAGE", "")
    if package and not quantize.is_installed(package):
        pytest.skip(f"{package} is not installed")
    full = Net().requires_grad_(False)
    small = copy.deepcopy(full)
    options = SimpleNamespace(fp8_format="e4m3", quantize_activations=False)
    torch.manual_seed(seed)
    assert quantize.quantize_model(small, preset, options, CPU, ("blocks",)) == (3, 7)
    return full, small


@each_row("preset", HERE)
def test_answers_are_close_and_gradients_reach_the_first_layer(preset):
    full, small = narrowed(preset)
    x = torch.randn(4, 5, WIDTH)
    with torch.no_grad():
        expected, found = full(x), small(x)
    assert (found - expected).norm() / (expected - full.embed(x)).norm() < MOST[bits(preset)]

    grads = []
    for net in (full, small):
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass")
            inject_adapter_in_model(LoraConfig(r=2, target_modules=["proj"], init_lora_weights=False), net)
        net(x).square().mean().backward()
        first = net.blocks[0]["proj"]
        grads.append(torch.cat([p.grad.flatten() for p in first.parameters() if p.requires_grad]))
    assert grads[1].abs().max() > 0
    assert torch.cosine_similarity(*grads, dim=0) > 1 - MOST[bits(preset)]


@each_row("preset", HERE)
def test_weights_are_smaller_and_the_same_each_time(preset):
    full, small = narrowed(preset)
    _, again = narrowed(preset, seed=1)

    def numbers(net: Net) -> list[torch.Tensor]:
        layer = net.blocks[0]["proj"]
        return [t for holder in (*layer.parameters(), *layer.buffers()) for t in iterate_plain_tensors(holder)]

    assert sum(t.nbytes for t in numbers(small)) < sum(t.nbytes for t in numbers(full))
    assert all(torch.equal(one, two) for one, two in zip(numbers(small), numbers(again), strict=True))
    assert not any(t.requires_grad for t in small.parameters())
    assert type(small.blocks[0]["norm_linear"]) is nn.Linear


def test_a_preset_of_a_missing_package_or_for_gpus_is_refused(monkeypatch):
    monkeypatch.setattr(quantize, "is_installed", lambda name: True)
    with pytest.raises(ConfigError, match="packs its numbers for GPUs"):
        quantize.validate_precision("base_model_precision", "int4-torchao", has_gpu=False)
    monkeypatch.setattr(quantize, "is_installed", lambda name: False)
    with pytest.raises(MissingPackage, match=r"darkroom-trainer\[quant\]"):
        quantize.validate_precision("base_model_precision", "int8-quanto", has_gpu=True)
    quantize.validate_precision("base_model_precision", "fp8-block", has_gpu=False)
    quantize.validate_precision("base_model_precision", "no_change", has_gpu=False)


# -- eight-bit floats of our own ---------------------------------------------------------------------------------------


def test_a_row_of_simple_numbers_survives():
    row = torch.zeros(1, 64)
    row[0, :3] = torch.tensor([448.0, -224.0, 1.0])
    small, scale = fp8.quantize_weight(row, "block", torch.float8_e4m3fn)
    assert scale.flatten().tolist() == [1.0]
    assert torch.equal(fp8.dequantize_weight(small, scale, torch.float32), row)


def test_two_blocks_have_two_scales():
    row = torch.linspace(-1, 1, 128)[None]
    small, scale = fp8.quantize_weight(row, "block", torch.float8_e4m3fn)
    assert scale.flatten().tolist() == pytest.approx([1 / 448, 1 / 448])
    assert (fp8.dequantize_weight(small, scale, torch.float32) - row).abs().max().item() == pytest.approx(
        0.0348706, abs=1e-6
    )


@pytest.mark.parametrize(
    ("shape", "mode", "expected"),
    [
        ((96, 128), "block", (96, 2, 1)),
        ((96, 100), "block", (96, 1)),
        ((96, 128), "channel", (96, 1)),
        ((96, 128), "tensor", (1,)),
        ((8, 4, 3, 3), "block", (1,)),
    ],
)
def test_scales_fall_back_to_wider_shares(shape, mode, expected):
    small, scale = fp8.quantize_weight(torch.randn(shape), mode, torch.float8_e5m2)
    assert tuple(scale.shape) == expected
    assert small.shape == shape


@pytest.mark.parametrize("mode", ["block", "channel", "tensor"])
@pytest.mark.parametrize(("format", "error"), [(torch.float8_e4m3fn, 2**-4), (torch.float8_e5m2, 2**-3)])
def test_normal_numbers_are_off_by_half_a_step_at_most(mode, format, error):
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    small, scale = fp8.quantize_weight(weight, mode, format)
    back = fp8.dequantize_weight(small, scale, torch.float32)
    largest = weight.abs().max()
    ordinary = weight.abs() > largest * 2**-6  # smaller ones lose bits of their own
    assert ((back - weight).abs() / weight.abs())[ordinary].max() <= error
