"""An adapter that only helps while a distilled model is trained."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from darkroom import families
from darkroom.adapters import assistant
from darkroom.adapters.lora_file import LoraPair
from darkroom.adapters.stock import SETTINGS, WEIGHTS
from tests.adapters.conftest import answer, pipeline


@pytest.fixture
def helper(attach, tmp_path):
    """An adapter with something learnt, as a file of alpha 2 at rank 4."""
    bench = attach(lora_rank=4, lora_alpha=2.0)
    bench.train()
    bench.adapter.export(tmp_path, {})
    return bench, tmp_path / WEIGHTS


def assisted(path, always=False):
    model = copy.deepcopy(pipeline("flux").transformer).requires_grad_(False)
    own = {"transformer": model}
    assistant.attach_assistants(own, assistant.read_assistants(str(path), own, None), always)
    return model


def test_it_acts_as_the_file_does_while_the_model_trains_and_not_otherwise(helper, base_answer):
    bench, path = helper
    model = assisted(path)

    assert torch.allclose(answer(bench.family, model.train()), bench.answer(bench.model.train()), atol=1e-6)
    assert torch.equal(answer(bench.family, model.eval()), base_answer())


def test_it_acts_in_validation_where_that_is_asked(helper):
    bench, path = helper

    assert torch.allclose(answer(bench.family, assisted(path, always=True).eval()), bench.answer(), atol=1e-6)


def test_it_is_no_part_of_the_model(helper):
    model = assisted(helper[1])

    assert model.state_dict().keys() == pipeline("flux").transformer.state_dict().keys()


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (LoraPair(torch.ones(2, 5), torch.ones(32, 2), 1.0), "no linear layer that its matrices"),
        (LoraPair(torch.ones(2, 32), torch.ones(32, 2), 1.0, torch.ones(32)), "DoRA"),
    ],
)
def test_what_does_not_fit_is_refused(pair, said):
    with pytest.raises(ValueError, match=said):
        assistant.validate_pairs(
            dict(pipeline("flux").transformer.named_modules()), {"transformer_blocks.0.attn.to_q": pair}
        )


def test_a_file_at_another_strength_helps_as_strongly_as_it_says(helper, tmp_path):
    bench, path = helper
    tensors = load_file(path)
    half = {SETTINGS: json.dumps({"transformer.r": 4, "transformer.lora_alpha": 1.0})}
    save_file(tensors, tmp_path / "half.safetensors", half)

    with bench.adapter.rescale(0.5):
        expected = bench.answer(bench.model.train())
    assert torch.allclose(answer(families.get("flux"), assisted(tmp_path / "half.safetensors").train()), expected)
