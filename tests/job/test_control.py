"""Control pictures: a new ControlNet, a LoRA on one, and further input channels; the stock pipeline draws them all."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from darkroom import families
from darkroom.adapters.stock import WEIGHTS
from darkroom.cli.main import main
from darkroom.families import tiny
from darkroom.families.shared.control import wrap_denoiser
from darkroom.families.shared.controlled import ControlledDenoiser
from darkroom.families.shared.text_encoding import encode_captions
from darkroom.tools.verify import verify
from tests.families import conformance

WITH_CONTROLNET = [name for name in families.names() if families.get(name).controlnet]


@pytest.fixture
def controlled(arguments, dataset_file, photographs, tmp_path):
    """Arguments of a run on photographs and the edges that are drawn of them."""

    def build(name: str, **options: object) -> list[str]:
        folder = tmp_path / "edges"
        keys = {"conditioning": {"type": "canny", "conditioning_type": "controlnet", "instance_data_dir": str(folder)}}
        library = tmp_path / "prompts.json"
        library.write_text(json.dumps({"cup": {"prompt": "a cup", "image": str(photographs / "coffee.png")}}))
        given = {"data_backend_config": dataset_file(keys), "user_prompt_library": library, **options}
        return arguments(name, **given)

    return build


@pytest.mark.parametrize("name", WITH_CONTROLNET)
def test_a_new_controlnet_is_a_folder_that_the_stock_pipeline_draws_with(name, controlled, tmp_path):
    argv = controlled(name, controlnet=True, model_type="full", max_train_steps=3)
    assert main(["train", *argv]) == 0

    folder = tmp_path / "out" / "controlnet"
    assert (folder / "config.json").is_file()
    verdict = verify(tmp_path / "out")
    assert (verdict.unmatched, verdict.images) == ([], 1)
    assert verdict.difference <= 1


def test_a_lora_on_a_controlnet(controlled, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    argv = controlled("sdxl", controlnet=True, model_type="full", max_train_steps=2, output_dir=first)
    assert main(["train", *argv, "--validation_disable=true"]) == 0
    net = first / "controlnet"
    assert (
        main(["train", *controlled("sdxl", controlnet=True, controlnet_model_name_or_path=net, output_dir=second)]) == 0
    )

    verdict = verify(second)
    assert verdict.matched > 0
    assert verdict.unmatched == []
    assert verdict.difference <= 1


def test_a_controlnet_that_only_a_lora_changes_may_wait_in_host_memory(controlled, tmp_path):
    usual = {"controlnet": True, "validation_disable": True}
    assert main(["train", *controlled("sdxl", **usual, model_type="full", output_dir=tmp_path / "net")]) == 0
    usual["controlnet_model_name_or_path"] = tmp_path / "net" / "controlnet"
    waits = {"ramtorch": True, "ramtorch_controlnet": True}
    for folder, options in (("plain", {}), ("streamed", waits)):
        assert main(["train", *controlled("sdxl", **usual, **options, output_dir=tmp_path / folder)]) == 0

    plain, streamed = (load_file(tmp_path / name / WEIGHTS) for name in ("plain", "streamed"))
    assert streamed.keys() == plain.keys()
    assert all(torch.equal(streamed[name], plain[name]) for name in plain)


def test_a_controlnet_that_is_trained_stays_on_the_device(controlled, capsys):
    argv = controlled("sdxl", controlnet=True, model_type="full", ramtorch=True, ramtorch_controlnet=True)
    assert main(["train", *argv]) == 2
    assert "trains the ControlNet's own" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_control_picture_as_further_channels(kind, controlled, tmp_path):
    argv = controlled("flux", control=True, model_type=kind, flux_lora_target="controlnet")
    assert main(["train", *argv]) == 0

    verdict = verify(tmp_path / "out")
    assert verdict.matched > 0
    assert (verdict.unmatched, verdict.images) == ([], 1)
    assert verdict.difference <= 1


def test_a_lora_on_further_channels_is_a_start_for_another(controlled, tmp_path):
    argv = controlled("flux", control=True, flux_lora_target="controlnet", max_train_steps=1, validation_disable=True)
    assert main(["train", *argv]) == 0
    start = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    again = [*argv, f"--init_lora={start}", f"--output_dir={tmp_path / 'again'}", "--learning_rate=1e-30"]

    assert main(["train", *again]) == 0

    before, after = (load_file(folder / start.name) for folder in (tmp_path / "out", tmp_path / "again"))
    assert max((before[name] - after[name]).abs().max().item() for name in before) < 1e-6


@pytest.mark.parametrize("way", ["controlnet", "control"])
def test_at_first_neither_changes_anything(way, photographs):
    family = families.get("flux")
    pipe = tiny.build(family)
    settings = SimpleNamespace(
        **{**vars(conformance.options("flux", "tiny")), way: True, "controlnet_model_name_or_path": None}
    )
    case = conformance.Case(family, "tiny")
    (entry,) = encode_captions(family, pipe, ["a cat"], settings)
    cond = family.stack_text([entry]) | {"guidance": torch.ones(1)}
    x_t, t = torch.randn(1, *case.shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0.5])
    with torch.no_grad():
        plain = family.predict(pipe.transformer, x_t, t, cond)
        denoiser = ControlledDenoiser(
            wrap_denoiser(family, pipe.transformer, settings),
            family.spec.control(settings).network_input(x_t.flip(-1), family.to_pipeline),
        )
        controlled = family.predict(denoiser, x_t, t, cond)
    assert torch.allclose(plain, controlled, atol=1e-6)


def test_photographs_without_control_pictures_are_refused(arguments, capsys):
    assert main(["train", *arguments("flux", controlnet=True, model_type="full", validation_disable=True)]) == 2
    assert "has no control pictures" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(set(families.names()) - set(WITH_CONTROLNET)))
def test_a_family_without_a_controlnet_says_so_and_which_have_one(name, capsys):
    """Before anything is read or made: neither a dataset nor a model is named."""
    argv = [f"--model_family={name}", "--model_flavour=tiny", "--controlnet=true", "--model_type=full"]
    assert main(["train", *argv, "--output_dir=unused", "--data_backend_config=missing.json"]) == 2

    said = " ".join(capsys.readouterr().err.split())
    assert f"diffusers has no ControlNet for this flavour of {families.get(name).title}" in said
    assert f"choose one of these for model_family: {', '.join(WITH_CONTROLNET)}." in said


def test_the_controlnet_learns(controlled, tmp_path):
    argv = controlled("sd3", controlnet=True, model_type="full", max_train_steps=2, learning_rate=0.1)
    assert main(["train", *argv, "--validation_disable=true"]) == 0

    (saved,) = (tmp_path / "out" / "controlnet").glob("*.safetensors")
    assert any(t.abs().max() > 0 for key, t in load_file(saved).items() if key.startswith("controlnet_blocks"))
