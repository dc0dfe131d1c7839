"""The loss that keeps HiDream's experts equally busy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from darkroom import families
from darkroom.families.shared.text_encoding import encode_captions
from darkroom.objectives import regularizers
from darkroom.objectives.taps import record
from tests.families import conformance

FAMILY = families.get("hidream", "tiny")


def balance(checkpointing: bool = False, **changes) -> tuple[Tensor, nn.Module]:
    case = conformance.case("hidream", "tiny")
    settings = case.settings.model_copy(update={"hidream_use_load_balancing_loss": True, **changes})
    pipe = case.pipe()
    model = pipe.transformer.train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    cond = FAMILY.stack_text(encode_captions(FAMILY, pipe, ["a cat"], settings))
    x_t = torch.randn(1, *case.shape, generator=torch.Generator().manual_seed(1))
    (regularizer,) = regularizers.build(FAMILY, settings, [model])
    with record(regularizer.taps) as recorded:
        FAMILY.predict(model, x_t, torch.tensor([0.5]), cond)
    return regularizer(recorded, []), model


def gate_gradients(checkpointing: bool) -> list[torch.Tensor]:
    term, model = balance(checkpointing)
    term.backward()
    return [weight.grad for name, weight in model.named_parameters() if name.endswith("gate.weight")]


def test_it_is_left_out_unless_asked_for():
    assert regularizers.find_enabled(conformance.options("hidream", "tiny")) == []


def test_evenly_shared_tokens_cost_the_weight_of_every_gate():
    term, model = balance()
    gates = [module for module in model.modules() if type(module).__name__ == "MoEGate"]

    # shares of 1 for each expert and probabilities that sum to 1: no sharing costs less than an even one
    assert term.item() == pytest.approx(0.01 * len(gates), rel=0.2)


def test_it_counts_as_much_as_its_weight_says():
    usual, _ = balance()
    own, _ = balance(hidream_load_balancing_loss_weight=0.05)

    assert own.item() == pytest.approx(5 * usual.item())


def test_gates_learn_from_it_with_and_without_checkpointing():
    plain, checkpointed = gate_gradients(False), gate_gradients(True)

    assert all(gradient.abs().sum() > 0 for gradient in plain)
    torch.testing.assert_close(plain, checkpointed)


def test_nobody_listens_afterwards():
    _, model = balance()

    assert not any(module._forward_hooks for module in model.modules())
