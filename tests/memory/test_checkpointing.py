"""Recomputing blocks changes memory and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from darkroom import families
from darkroom.memory import checkpointing
from darkroom.memory.checkpointing import Checkpoints
from tests.memory.test_policy import answer, denoiser


def test_every_nth_call_is_recomputed():
    calls = []
    every = Checkpoints(3)
    x = torch.ones(1, requires_grad=True)

    def block(number: int, x):
        calls.append(number)
        return x**2

    out = x
    for number in range(6):
        out = every(lambda x, number=number: block(number, x), out)
    out.backward()

    assert calls == [0, 1, 2, 3, 4, 5, 5, 2]
    assert x.grad.item() == 64


def test_what_several_blocks_are_given_is_offloaded_once_and_stays():
    each = Checkpoints(offloads=True)
    x, table = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    plain = x
    for _ in range(4):
        plain = torch.sin(plain) * table
    (expected,) = torch.autograd.grad(plain.sum(), x)

    y = x
    for _ in range(4):
        y = each(lambda y, table: torch.sin(y) * table, y, table)
    kept = list(each.around.inputs.values())

    assert len(kept) == 5  # each block's own input, and the table
    assert [k.tensor.data_ptr() for k in kept if k.shared] == [table.data_ptr()]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)
    del y, kept
    assert len(each.around.inputs) == 0


def test_an_input_that_was_written_to_is_another():
    each = Checkpoints(offloads=True)
    x, table = torch.ones(2, requires_grad=True), torch.ones(2)
    y = each(torch.mul, x, table)
    table.mul_(3)
    y = each(torch.mul, y, table)

    y.sum().backward()
    assert x.grad.tolist() == [3, 3]
    x.grad = None


@pytest.mark.parametrize("backend", ["torch", "unsloth"])
@pytest.mark.parametrize("interval", [None, 1, 2])
def test_gradients_are_the_same_as_without(interval, backend):
    import diffusers

    config = {**families.get("flux").tiny.denoiser.config, "num_layers": 2, "num_single_layers": 2}
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(**config).train()
    inputs = {
        "hidden_states": torch.randn(1, 4, 64), "encoder_hidden_states": torch.randn(1, 3, 32),
        "pooled_projections": torch.randn(1, 32), "timestep": torch.tensor([0.5]), "guidance": torch.ones(1),
        "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3),
    }  # fmt: skip

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(**inputs, return_dict=False)[0].square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    checkpointing.enable_checkpointing(model, interval, backend)

    for mine, theirs in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("name", [name for name in families.names() if name not in ("framepack", "ltxvideo2")])
def test_a_family_learns_the_same_bytes(name, interval, monkeypatch):
    calls = []

    def counted(*arguments, **settings):
        calls.append(arguments[0])
        return checkpoint(*arguments, **settings)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        answer(name, model).float().square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    _, model = denoiser(name)
    model.train()
    plain = gradients()
    model.enable_gradient_checkpointing(Checkpoints(interval))
    monkeypatch.setattr(checkpointing, "checkpoint", counted)
    again = gradients()

    assert calls
    assert again.keys() == plain.keys()
    assert all(torch.equal(again[name], plain[name]) for name in plain)
