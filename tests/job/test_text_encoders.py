"""Text encoders that are trained too: with a LoRA and whole, drawn by the stock pipeline, gone on with exactly."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextModel

from darkroom import families
from darkroom.cli.main import main
from darkroom.families import tiny
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.families.shared.trainable_text import find_trainable_layers
from darkroom.pretrained.components import Components
from darkroom.report.eventlog import read
from darkroom.tools.verify import verify
from tests.families import conformance

WITH_TEXT = [
    (name, flavour)
    for name, flavour in conformance.cases()
    if families.get(name, flavour).spec.trainable_text and families.get(name, flavour).spec.pipeline
]
PROMPT = {"validation_prompt": "a cup of coffee", "validation_guidance": 1.0}


def strategy(name: str, **numbers: int) -> SimpleNamespace:
    usual = {"freeze_encoder_before": 12, "freeze_encoder_after": 17}
    return SimpleNamespace(freeze_encoder_strategy=name, **(usual | numbers))


def test_the_strategies_leave_these_layers_free():
    """Of 24 layers, as the options' own words have it."""
    assert find_trainable_layers(24, strategy("after")) == tuple(range(18))
    assert find_trainable_layers(24, strategy("before")) == tuple(range(12, 24))
    assert find_trainable_layers(24, strategy("between")) == tuple(range(12, 18))
    assert find_trainable_layers(12, strategy("after")) == tuple(range(12))


@pytest.mark.parametrize(("name", "flavour"), WITH_TEXT)
def test_encoders_that_can_be_trained_are_clip_and_known_to_the_stock_loader(name, flavour):
    family = families.get(name, flavour)
    encoders = family.spec.components.encoders
    for part in family.spec.trainable_text:
        assert encoders[part].cls.startswith("CLIPTextModel")
        assert part in find_class(family.spec.pipeline)._lora_loadable_modules


@pytest.mark.parametrize(("name", "flavour"), WITH_TEXT)
def test_gradients_reach_every_encoder(name, flavour):
    settings = SimpleNamespace(**{**vars(conformance.options(name, flavour)), "train_text_encoder": True})
    parts = Components(families.get(name, flavour), settings, torch.device("cpu"), torch.float32)
    model = parts.denoiser().requires_grad_(True)

    cond = model.read(["a house", ""], learns=True)
    sum(value.float().square().sum() for value in cond.values() if value.is_floating_point()).backward()

    for part in resolve_flavour(parts.family, flavour).trainable_text:
        sizes = [p.grad.abs().sum() for p in getattr(model, part).parameters() if p.grad is not None]
        assert sum(sizes) > 0
    assert not any(value.requires_grad for value in model.read(["a house"], learns=False).values())


@pytest.mark.parametrize("name", sorted({name for name, flavour in WITH_TEXT if flavour == "tiny"}))
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_was_learnt_is_drawn_by_the_stock_pipeline(name, kind, arguments, tmp_path):
    given = {"model_type": kind, "train_text_encoder": True, "learning_rate": 1e-2, **PROMPT}
    assert main(["train", *arguments(name, **given)]) == 0

    base = tiny.build(families.get(name))
    verdict = verify(tmp_path / "out")
    assert (verdict.unmatched, verdict.images) == ([], 1)
    assert verdict.difference <= 1
    if kind == "full":
        for part in families.get(name, "tiny").spec.trainable_text:
            mine = type(getattr(base, part)).from_pretrained(tmp_path / "out/pipeline", subfolder=part)
            before = getattr(base, part).state_dict()
            assert any(not torch.equal(tensor, before[key]) for key, tensor in mine.state_dict().items())
        return
    held = {key.split(".")[0] for key in load_file(tmp_path / "out/pytorch_lora_weights.safetensors")}
    assert held == {families.get(name).denoiser_component, *families.get(name, "tiny").spec.trainable_text}


def test_a_run_goes_on_exactly_where_it_was(arguments, tmp_path):
    given = {"train_text_encoder": True, "text_encoder_lr": 1e-3, "text_encoder_limit": 50, "validation_disable": True}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main(["train", *arguments("sdxl", output_dir=whole, max_train_steps=4, **given)]) == 0
    for steps in (3, 4):
        argv = arguments("sdxl", output_dir=halves, max_train_steps=steps, checkpoint_step_interval=1, **given)
        assert main(["train", *argv, "--lr_scheduler=constant", "--text_encoder_limit=50"]) == 0

    file = "pytorch_lora_weights.safetensors"
    one, other = load_file(whole / file), load_file(halves / file)
    text = [key for key in one if key.startswith("text_encoder")]
    unet = [key for key in one if key.startswith("unet")]
    assert text
    assert unet
    assert all(torch.equal(one[key], other[key]) for key in unet + text)


def test_an_encoder_stops_where_its_limit_is(arguments, tmp_path):
    given = {"train_text_encoder": True, "text_encoder_limit": 50, "validation_disable": True, "max_train_steps": 4}
    assert main(["train", *arguments("sd1x", checkpoint_step_interval=1, **given)]) == 0

    def learnt(step: int) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / f"out/checkpoint-{step}/pytorch_lora_weights.safetensors")

    for one, other, moves in ((1, 2, True), (2, 3, False), (3, 4, False)):
        before, after = learnt(one), learnt(other)
        text = [key for key in before if key.startswith("text_encoder")]
        assert any(not torch.equal(before[key], after[key]) for key in text) is moves
        assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("unet"))


def test_layers_that_stay_as_they_are_get_no_adapter(arguments, tmp_path):
    """The tiny encoder has three layers."""
    given = {
        "train_text_encoder": True,
        "freeze_encoder_strategy": "between",
        "freeze_encoder_before": 1,
        "freeze_encoder_after": 1,
    }
    assert main(["train", *arguments("sd1x", validation_disable=True, save_text_encoder=True, **given)]) == 0

    file = tmp_path / "out/pytorch_lora_weights.safetensors"
    layers = {key.split("layers.")[1][0] for key in load_file(file) if key.startswith("text_encoder")}
    assert layers == {"1"}
    with safe_open(file, "pt") as opened:
        settings = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert settings["text_encoder.layers_to_transform"] == [1]
    base, whole = (
        tiny.build(families.get("sd1x")).text_encoder,
        CLIPTextModel.from_pretrained(tmp_path / "out/text_encoder"),
    )
    changed = {key for key, tensor in whole.state_dict().items() if not torch.equal(tensor, base.state_dict()[key])}
    assert changed
    assert all("layers.1.self_attn" in key for key in changed)


@pytest.mark.parametrize(
    ("family", "options", "problem"),
    [
        ("wan", {}, "has no CLIP text encoder"),
        ("sdxl", {"controlnet": True, "model_type": "full"}, "not with what shows it a control image"),
    ],
)
def test_what_cannot_be_trained_is_refused(family, options, problem, arguments, capfd):
    assert main(["train", *arguments(family, train_text_encoder=True, **options)]) == 2
    assert problem in " ".join(capfd.readouterr().err.split())


def test_a_rate_of_its_own(arguments, tmp_path):
    """Nothing moves at a rate that is as good as none."""
    given = {"train_text_encoder": True, "text_encoder_lr": 1e-30, "validation_disable": True, "model_type": "full"}
    assert main(["train", *arguments("sd1x", **given)]) == 0

    base = tiny.build(families.get("sd1x")).text_encoder.state_dict()
    mine = CLIPTextModel.from_pretrained(tmp_path / "out/pipeline", subfolder="text_encoder").state_dict()
    assert all(torch.allclose(tensor, base[key], atol=1e-7) for key, tensor in mine.items())
    assert [row for row in read(tmp_path / "out/events.jsonl") if row["event"] == "step"]
