"""Taps on the blocks of every family: the image's hidden states, with their gradients, for one pass and no longer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from darkroom import families
from darkroom.families.base import LATENTS, predict_streams
from darkroom.objectives.taps import list_image_blocks, record, tap_block
from tests.families import conformance
from tests.families.conformance import Case
from tests.rows import each_row


def woken_case(name: str) -> tuple[Case, nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """A family's tiny case, its denoiser, and two samples' x_t and condition."""
    case = conformance.case(name, "tiny")
    family, pipe = case.family, case.pipe()
    sample, text = conformance._texts(case, pipe)
    draws = torch.Generator().manual_seed(0)
    latents = torch.cat([sample.latents] * 2)
    batch = family.slice_batch(conformance.batch([sample] * 2, latents, case.started), case.settings, draws)
    cond = text | family.model_inputs(batch, case.settings, draws)
    x_t = {LATENTS: torch.randn(batch.latents.shape, generator=draws)}
    x_t |= {name: torch.cat([sample.extras[name]] * 2) for name in family.extra_streams}
    return case, conformance._woken(case.model(pipe)), x_t, cond


def predict(case: Case, model: nn.Module, x_t: dict[str, Tensor], cond: dict[str, Tensor]) -> Tensor:
    level = 0.5 if case.family.prediction == "flow_matching" else 500
    return predict_streams(case.family, model, x_t, torch.full((2,), level), cond)[LATENTS]


@each_row("name", families.names())
def test_every_family_shows_the_hidden_states_of_its_image(name):
    case, model, x_t, cond = woken_case(name)
    facts = case.family.hidden_states
    assert len(list_image_blocks(case.family, model)) > 1
    with record({"first": tap_block(case.family, [model], 0), "last": tap_block(case.family, [model], -1)}) as found:
        prediction = predict(case, model, x_t, cond)

    assert sum(len(hidden) for hidden in found["first"]) == sum(len(hidden) for hidden in found["last"]) == 2
    for first, last in zip(found["first"], found["last"], strict=True):
        assert first.ndim == last.ndim == (4 if facts.are_maps else 3)
        # of what the last block returns, the answer is made of the image alone
        source = last._base if facts.sequence_first else last
        (gradient,) = torch.autograd.grad(prediction.square().sum(), source, retain_graph=True)
        assert gradient.abs().sum() > 0
        if not facts.are_maps and last.shape[1] > first.shape[1]:
            counts = gradient.abs().sum((0, 2)) > 0
            image = slice(0, first.shape[1]) if facts.image == "first" else slice(-first.shape[1], None)
            others = torch.ones_like(counts)
            others[image] = False
            assert counts[image].any()
            assert not counts[others].any()


def test_blocks_that_are_computed_again_are_recorded_once_and_have_the_same_gradients():
    case, model, x_t, cond = woken_case("pixart_sigma")
    found = {}
    for checkpointing in (False, True):
        if checkpointing:
            model.train().enable_gradient_checkpointing()
        with record({"first": tap_block(case.family, [model], 0)}) as recorded:
            predict(case, model, x_t, cond)
        (hidden,) = recorded["first"]
        hidden.square().mean().backward()
        assert len(recorded["first"]) == 1
        weights = model.transformer_blocks[0].named_parameters()
        found[checkpointing] = {name: weight.grad for name, weight in weights if weight.grad is not None}
        model.zero_grad()

    assert found[True]
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)


def test_nothing_listens_after_a_pass_also_after_one_that_fails():
    case, model, _, _ = woken_case("pixart_sigma")
    with pytest.raises(ZeroDivisionError), record({"first": tap_block(case.family, [model], 0)}):
        raise ZeroDivisionError

    assert not any(module._forward_hooks for module in model.modules())
