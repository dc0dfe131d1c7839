"""Fun-Control's pipeline is our own: what its network sees is written out once more, and held to the stock one's.

What needs the weights is not shown: how clips look, and that the published files have the layout of Wan's.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from darkroom import families
from darkroom.core.errors import ConfigError, DataError
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.latents import encode
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.pretrained import single_file
from darkroom.tools.generate import stock_pipeline
from tests.families.conformance import NEGATIVE, PROMPT, Recorder, batch, case
from tests.families.originals import ORIGINALS
from tests.families.test_flavours import parts_of

# tiny flavour, and whether clips start from a picture
WAYS = [("tiny-fun", False), ("tiny-fun-i2v", True)]


def calls_of(flavour: str, **changes):
    """The sample, its pipeline, and the calls of the network in a short sampling that follows it."""
    followed = case("wan", flavour)
    pipe = followed.pipe()
    sample = followed.sample(pipe)
    call = {**followed.call(sample), **changes}
    with Recorder(pipe.transformer) as stock, torch.no_grad():
        pipe(prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=2, output_type="latent", **call)
    return sample, pipe, stock.calls


@pytest.mark.parametrize(("flavour", "starts"), WAYS)
def test_the_network_sees_noise_then_the_control_clip_then_where_it_starts(flavour, starts):
    sample, pipe, calls = calls_of(flavour)

    picture = case("wan", flavour)
    alone = encode(pipe.vae, sample.pixels[:, :, :1], picture.facts)
    for call in calls:
        seen = call["hidden_states"]
        assert seen.shape == (1, 48, 2, 8, 8)
        assert torch.allclose(seen[:, 16:32], sample.controls[0], atol=1e-5)
        assert torch.allclose(seen[:, 32:, :1], alone if starts else torch.zeros_like(alone), atol=1e-5)
        assert not seen[:, 32:, 1:].any()


@pytest.mark.parametrize(("flavour", "starts"), WAYS)
def test_clip_answers_zeros_where_it_was_shown_nothing(flavour, starts):
    _, pipe, calls = calls_of(flavour)

    shown = calls[0]["encoder_hidden_states_image"]
    assert shown.any().item() is starts
    assert shown.shape[1:] == ((5, 32) if starts else (257, 32))
    assert (pipe.components["image_encoder"] is not None) is starts


def test_a_flavour_with_clip_may_start_from_nothing():
    started, _, _ = calls_of("tiny-fun-i2v")
    _, _, calls = calls_of("tiny-fun-i2v", image=None)

    assert not calls[0]["hidden_states"][:, 32:].any()
    assert not calls[0]["encoder_hidden_states_image"].any()
    assert started.controls[0].any()


def test_steps_and_guidance_are_those_of_the_stock_pipeline():
    """With a network that answers what it sees of the noise, both pipelines draw the same."""
    own, stock = case("wan", "tiny-fun-i2v"), case("wan", "tiny-i2v")
    results = []
    for one in (own, stock):
        pipe = one.pipe()
        pipe.transformer.forward = lambda hidden_states, **_: (0.3 * hidden_states[:, :16].cos(),)
        call = {**one.call(one.sample(pipe)), "generator": torch.Generator().manual_seed(3)}
        results.append(pipe(prompt=PROMPT, num_inference_steps=3, output_type="latent", return_dict=False, **call)[0])

    assert torch.equal(*results)


def test_a_control_clip_of_another_number_of_frames_is_refused_by_the_pipeline():
    with pytest.raises(ValueError, match="control_video has 3 frames, and num_frames is 5"):
        calls_of("tiny-fun", control_video=[Image.new("RGB", (64, 64))] * 3)


def test_a_control_clip_of_another_length_is_refused_in_training():
    followed = case("wan", "tiny-fun")
    sample = followed.sample(followed.pipe())
    short = dataclasses.replace(batch([sample], sample.latents), controls=(sample.controls[0][:, :, :1],))

    with pytest.raises(DataError, match="has 1 latent frames, and its sample has 2"):
        followed.family.model_inputs(short, followed.settings, torch.Generator())


# -- the denoiser is a file of its own ---------------------------------------------------------------------------------

PUBLISHED = ("fun-control-1.3b-2.1", "fun-control-14b-2.1", "fun-control-i2v-14b-2.1")


@pytest.mark.parametrize("flavour", PUBLISHED)
def test_without_its_denoiser_a_flavour_says_where_that_is(flavour):
    parts = parts_of("wan", flavour)

    for asked in (parts.examine, lambda: stock_pipeline(parts.family, parts.base, torch.float32, parts.options)):
        with pytest.raises(ConfigError, match="as a file alone") as caught:
            asked()
        assert caught.value.option == "pretrained_transformer_model_name_or_path"
        assert "alibaba-pai/Wan2.1-Fun-" in caught.value.change


@pytest.mark.slow
def test_the_settings_make_a_network_of_the_published_size():
    """A published file of the 1.3B model's sibling, which has 36 channels and else the same, is this long."""
    apart = resolve_flavour(families.get("wan"), "fun-control-1.3b-2.1").flavour.separate_denoiser
    sizes = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
    model = single_file.build_empty("WanTransformer3DModel", {**sizes, **apart.settings, "in_channels": 36})

    header = 3_128_957_992 - 2 * sum(weight.numel() for weight in model.parameters())

    assert 50 < header / len(model.state_dict()) < 150


def test_a_denoiser_in_its_original_layout_is_read_with_the_flavours_settings(tmp_path, monkeypatch):
    """The repository has Wan's from text, whose settings are another's in three lines."""
    kinds = case("wan", "tiny-fun").family.spec.components.denoiser
    model = find_class(kinds.cls)(**kinds.config)
    file = tmp_path / "fun.safetensors"
    save_file({k: t.contiguous() for k, t in ORIGINALS[kinds.cls, 0](model.state_dict()).items()}, file)
    parts = parts_of("wan", "fun-control-1.3b-2.1", pretrained_transformer_model_name_or_path=str(file))
    own = {"in_channels": 48, "image_dim": 32, "added_kv_proj_dim": 24}
    monkeypatch.setattr(
        parts,
        "flavour",
        dataclasses.replace(parts.flavour, separate_denoiser=parts.flavour.separate_denoiser._replace(settings=own)),
    )
    monkeypatch.setattr(parts, "base", parts_of("wan", "tiny").base)

    parts.examine()
    read = parts.denoiser()

    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in model.state_dict().items())
