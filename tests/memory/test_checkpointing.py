"""Recomputing blocks changes memory and nothing else."""

from __future__ import annotations

import pytest
import torch

from darkroom import families
from darkroom.memory import checkpointing
from darkroom.memory.checkpointing import EveryNth


def test_every_nth_call_is_recomputed():
    calls = []
    every = EveryNth(3)
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


@pytest.mark.parametrize("interval", [None, 1, 2])
def test_gradients_are_the_same_as_without(interval):
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
    checkpointing.enable(model, interval)

    for mine, theirs in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(mine, theirs)
