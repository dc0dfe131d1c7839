"""Training the model's own weights: what is trained, and that diffusers reads what is written."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import nn

from darkroom import families
from darkroom.adapters.full import FullWeights
from darkroom.core.errors import ConfigError
from darkroom.families import tiny
from darkroom.families.shared.classes import find_class
from darkroom.options.config import Config
from tests.rows import each_row

NAMES = ["flux", "sdxl"]


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_trains(attach, name):
    bench = attach(name, model_type="full")

    assert bench.adapter.trainable_parameters.keys() == dict(bench.model.named_parameters()).keys()


def test_bitfit_trains_biases_alone(attach):
    bench = attach(model_type="full", layer_freeze_strategy="bitfit")

    assert bench.adapter.trainable_parameters.keys() == {n for n, _ in bench.model.named_parameters() if "bias" in n}


def test_bitfit_on_a_model_without_biases_is_refused():
    config = Config(model_family="flux", model_type="full", layer_freeze_strategy="bitfit")

    with pytest.raises(ConfigError, match="no biases"):
        FullWeights(nn.Linear(2, 2, bias=False), config, {}, "transformer", torch.float32, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", ["none", "bitfit"])
def test_diffusers_reads_the_trained_weights(attach, tmp_path, name, strategy):
    bench = attach(name, model_type="full", layer_freeze_strategy=strategy)
    bench.train()

    bench.adapter.export(tmp_path, {})
    cls = getattr(diffusers, bench.family.denoiser)
    theirs = cls.from_pretrained(tmp_path, subfolder=bench.family.denoiser_component)

    torch.testing.assert_close(bench.answer(theirs.eval()), bench.answer())


@pytest.mark.parametrize("strategy", ["none", "bitfit"])
def test_exported_weights_restore_to_the_byte(attach, tmp_path, strategy):
    bench = attach(model_type="full", layer_freeze_strategy=strategy)
    other = attach(model_type="full", layer_freeze_strategy=strategy)
    bench.train()
    bench.adapter.export(tmp_path, {})

    other.adapter.restore(tmp_path)

    assert torch.equal(bench.answer(), other.answer())


def test_equal_weights_give_equal_bytes(attach, tmp_path):
    for folder in ("a", "b"):
        attach(model_type="full").adapter.export(tmp_path / folder, {})

    for file in (tmp_path / "a" / "transformer").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "transformer" / file.name).read_bytes()


def test_a_fully_trained_model_has_no_untouched_one_beside_it(attach):
    with pytest.raises(TypeError, match="no untouched model"), attach(model_type="full").adapter.disable():
        pass


def test_weights_take_the_asked_precision(attach):
    bench = attach(model_type="full", dtype=torch.bfloat16)

    assert {p.dtype for p in bench.adapter.trainable_parameters.values()} == {torch.bfloat16}


@each_row("name", families.names())
def test_whole_weights_in_bfloat16_leave_wide_what_diffusers_loads_wide(name, tmp_path):
    family = families.get(name)
    getattr(tiny.build(family), family.denoiser_component).save_pretrained(tmp_path / "base")
    cls = find_class(family.denoiser)
    model = cls.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    loaded = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}

    config = Config(model_family=name, model_type="full", optimizer="adamw_bf16")
    adapter = FullWeights(model, config, {}, family.denoiser_component, torch.bfloat16, 0)
    adapter.export(tmp_path / "out", {})
    again = cls.from_pretrained(tmp_path / "out" / family.denoiser_component, dtype=torch.bfloat16)

    for reached in (model, again):
        now = dict((*reached.named_parameters(), *reached.named_buffers()))
        assert now.keys() == loaded.keys()
        for tensor, there in loaded.items():
            assert now[tensor].dtype == there.dtype, tensor
            assert torch.equal(now[tensor], there), tensor


def test_wan_keeps_its_rotations_and_its_time_wide_while_the_rest_trains_in_bfloat16():
    model = tiny.build(families.get("wan")).transformer
    config = Config(model_family="wan", model_type="full", optimizer="adamw_bf16")
    FullWeights(model, config, {}, "transformer", torch.bfloat16, 0)

    assert model.rope.freqs_cos.dtype != torch.bfloat16
    assert model.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert model.scale_shift_table.dtype == torch.float32
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
