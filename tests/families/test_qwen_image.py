"""Qwen-Image that takes pictures apart: what its stock pipeline does by itself, and what is done about it."""

from __future__ import annotations

import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered
from PIL import Image

from darkroom import families
from darkroom.families import tiny
from darkroom.tools import generate
from darkroom.validate.recipe import Recipe
from darkroom.validate.render import recipe_kwargs
from tests.families import conformance

FLAVOUR = "tiny-layered"
FAMILY = families.get("qwen_image", FLAVOUR)


def test_a_size_is_one_that_the_pipeline_makes_again_of_its_own_shape(monkeypatch):
    patched = pipeline_qwenimage_layered.calculate_dimensions
    plain = getattr(patched, "args", [patched])[0]  # without what the conformance tests change
    monkeypatch.setattr(pipeline_qwenimage_layered, "calculate_dimensions", plain)
    options = conformance.options("qwen_image", FLAVOUR)

    for width in range(320, 1600, 96):
        for height in range(320, 1600, 96):
            size = FAMILY.round_size(width, height, options)
            edge = FAMILY.size_kwargs(*size, options)["resolution"]
            assert plain(edge**2, size[0] / size[1]) == size
            assert abs((size[0] * size[1]) ** 0.5 - edge) < 0.05 * edge


def test_other_flavours_draw_the_size_that_is_asked_for():
    assert families.get("qwen_image", "tiny").round_size(512, 320, conformance.options("qwen_image", "tiny")) == (
        512,
        320,
    )


def test_an_empty_prompt_is_not_replaced_by_a_description(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "start.png")
    options = conformance.options("qwen_image", FLAVOUR)
    pipe = tiny.build(FAMILY, flavour=FLAVOUR)
    monkeypatch.setattr(pipe.text_encoder, "generate", None)
    call = recipe_kwargs(FAMILY, 64, 64, options)
    pictures = (str(tmp_path / "start.png"),)

    made = generate.render(pipe, FAMILY, Recipe("", "", 64, 64, 2, 0, "cpu", call, {}, pictures=pictures), options)

    assert made.frames.shape == (2, 64, 64, 4)


def test_what_is_told_beside_the_layers_is_one_number_per_sample():
    case = conformance.case("qwen_image", FLAVOUR)
    pipe = case.pipe()
    with torch.no_grad():
        sample = case.sample(pipe)
        text = FAMILY.stack_text(case.texts(pipe, ["a house"], sample))
    given = FAMILY.model_inputs(conformance.batch([sample], sample.latents), case.settings, torch.Generator())
    assert torch.equal(given["references"][0], sample.latents[:, :, 0])

    with conformance.Recorder(pipe.transformer) as seen, torch.no_grad():
        FAMILY.predict(pipe.transformer, sample.latents, torch.tensor([0.5]), text | given)

    (call,) = seen.calls
    assert call["additional_t_cond"].tolist() == [0]
    assert call["img_shapes"] == [[(1, 4, 4)] * 4]  # a picture, two layers, and the clean picture
    assert call["hidden_states"].shape == (1, 4 * 16, 64)
