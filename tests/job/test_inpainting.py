"""Every flavour whose stock pipelines draw parts of a picture anew, by existing, is held to them."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom import families
from darkroom.cli.main import main
from darkroom.core.errors import ConfigError
from darkroom.families import tiny
from darkroom.tools import generate
from darkroom.tools.verify import verify
from darkroom.validate.prompts import Prompt, read_library
from darkroom.validate.recipe import Recipe
from tests.families import conformance
from tests.validate.test_render import renderer

HALF = 32
MASKABLE = [
    case for case in conformance.cases() if families.get(*case).spec.active_inpainting(conformance.options(*case))
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))


@pytest.fixture
def masked(tmp_path) -> Prompt:
    """A photograph whose right half is drawn anew."""
    conformance.to_pil(conformance.photograph("coffee", 64, 64)).save(tmp_path / "start.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[:, HALF:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return Prompt("half", "a small red house", 1.0, (str(tmp_path / "start.png"),), str(tmp_path / "mask.png"))


def test_families_of_most_kinds_can():
    assert {name for name, _ in MASKABLE} == {
        "deepfloyd", "flux", "flux2", "qwen_image", "sd1x", "sd2x", "sdxl", "z_image",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "flavour"), MASKABLE)
def test_what_is_drawn_anew_is_what_the_stock_pipeline_draws(name, flavour, masked):
    made, model = renderer(name, flavour)
    made.validate_prompts([masked])
    (picture,) = made.render(model, [masked], 1, "adapter")

    pipe = tiny.build(made.family, flavour=flavour)
    pipe.set_progress_bar_config(disable=True)
    stock = generate.render(pipe, made.family, picture.recipe, made.options)

    assert picture.recipe.mask == masked.mask
    assert picture.output.frames.shape == (1, 64, 64, 3)
    assert np.abs(picture.output.frames.astype(int) - stock.frames.astype(int)).max() <= 1


@pytest.mark.parametrize(("name", "flavour"), MASKABLE)
def test_what_is_not_masked_is_kept(name, flavour, masked, monkeypatch):
    sampled: list[torch.Tensor] = []
    monkeypatch.setattr(
        "darkroom.validate.render.latent_space.decode",
        lambda vae, latents, facts: sampled.append(latents) or latents.new_zeros(1, 3, 64, 64),
    )
    made, model = renderer(name, flavour)
    other = dataclasses.replace(masked, name="other", text="a green tree")

    pictures = list(made.render(model, [masked, other], 1, "adapter"))

    one, two = sampled or [torch.from_numpy(p.output.frames).movedim(-1, -3).float() for p in pictures]
    edge = one.shape[-1] * HALF // 64
    assert torch.equal(one[..., :edge], two[..., :edge])
    assert not torch.equal(one[..., edge:], two[..., edge:])


def test_a_run_draws_a_library_with_masks_and_verify_draws_the_same(masked, arguments, tmp_path, capsys):
    library = tmp_path / "prompts.json"
    entry = {"prompt": masked.text, "image": "start.png", "mask": "mask.png"}
    library.write_text(json.dumps({"half": entry, "whole": "a small red house"}))
    assert main(["train", *arguments("sd1x", user_prompt_library=library, max_train_steps=2)]) == 0

    verdict = verify(tmp_path / "out")
    assert (verdict.unmatched, verdict.images) == ([], 2)
    assert verdict.difference <= 1

    again = [
        "generate", "--adapter", str(tmp_path / "out/pytorch_lora_weights.safetensors"), "--prompt", masked.text,
        "--image", masked.images[0], "--mask", masked.mask, "--seed", "5", "--output", str(tmp_path / "again"),
    ]  # fmt: skip
    assert main(again) == 0
    (path,) = (tmp_path / "again").glob("*.png")
    drawn = Recipe.read(path)
    (original,) = (tmp_path / "out/validation_images/originals").glob("step_2_half_*.png")
    assert drawn.mask == Recipe.read(original).mask
    gap = np.asarray(Image.open(path), int) - np.asarray(Image.open(original), int)
    assert np.abs(gap).max() <= 1


@pytest.mark.parametrize(
    ("name", "flavour", "change", "problem"),
    [
        ("auraflow", "tiny", {}, "no stock pipeline that draws parts"),
        ("sdxl", "tiny-refiner", {}, "no stock pipeline that draws parts"),
        ("sd1x", "tiny", {"images": ()}, "A mask goes with one picture, and there are 0"),
        ("sd1x", "tiny", {"mask": "small.png"}, "The mask is 8x9 and its picture 64x64"),
        ("sd1x", "tiny", {"mask": "torn.png"}, "cannot be read"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused_before_anything_is_drawn(
    name, flavour, change, problem, masked, tmp_path
):
    Image.new("L", (8, 9)).save(tmp_path / "small.png")
    (tmp_path / "torn.png").write_bytes(b"torn")
    if "mask" in change:
        change = {"mask": str(tmp_path / change["mask"])}
    made, _ = renderer(name, flavour)

    with pytest.raises(ConfigError, match=problem):
        made.validate_prompts([dataclasses.replace(masked, **change)])

    words = ["generate", "--model_family", name, "--model_flavour", flavour, "--prompt", "x"]
    pictures = change.get("images", masked.images)
    words += [word for path in pictures for word in ("--image", path)]
    assert main([*words, "--mask", change.get("mask", masked.mask)]) == 2


def test_a_control_run_takes_no_mask(masked):
    made, _ = renderer("sd1x", "tiny")
    made.options = SimpleNamespace(**{**vars(made.options), "controlnet": True})

    with pytest.raises(ConfigError, match="anew with a control picture"):
        made.validate_prompts([masked])


def test_the_mask_of_a_library_is_found_beside_it(masked, tmp_path):
    library = tmp_path / "prompts.json"
    library.write_text(json.dumps({"half": {"prompt": "p", "image": "start.png", "mask": "gone.png"}}))

    with pytest.raises(ConfigError, match=r"gone\.png"):
        read_library(library, "user_prompt_library")
