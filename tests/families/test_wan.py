"""What only Wan does: the first frame of image to video, control clips, and the times of tokens."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from darkroom.core.errors import DataError
from darkroom.families.shared import latents as latent_space
from darkroom.families.shared.conditioning import control_kwargs
from tests.families import conformance
from tests.families.conformance import Recorder, batch, case


@pytest.fixture(scope="module")
def i2v():
    return case("wan", "tiny-i2v")


@pytest.fixture(scope="module")
def pipe(i2v):
    return i2v.pipe()


def entries(i2v, pipe, pixels):
    parts = SimpleNamespace(vae=lambda: pipe.vae, extra=lambda name: getattr(pipe, name), latents=i2v.facts)
    x0 = latent_space.encode(pipe.vae, pixels, i2v.facts)
    return i2v.family.sample_entries(parts, pixels, x0, i2v.settings)


def test_text_to_video_keeps_nothing_beside_its_latents(pipe):
    plain = case("wan", "tiny")

    assert entries(plain, plain.pipe(), conformance.clip("astronaut")) == {}
    assert plain.family.sample_identity(plain.settings) == {}


def test_only_the_first_frame_is_given(i2v, pipe):
    pixels = conformance.clip("astronaut")
    changed = pixels.clone()
    changed[:, :, 1:] = 0.5

    one, other = entries(i2v, pipe, pixels), entries(i2v, pipe, changed)

    assert one.keys() == {"first_frame", "image"}
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_picture_is_given_whole(i2v, pipe):
    picture = conformance.photograph("astronaut")

    found = entries(i2v, pipe, picture)

    torch.testing.assert_close(found["first_frame"], latent_space.encode(pipe.vae, picture, i2v.facts))


def test_a_batch_keeps_what_its_samples_keep(i2v, pipe):
    clips = [conformance.clip(name) for name in ("astronaut", "chelsea")]

    both = entries(i2v, pipe, torch.cat(clips))

    for i, pixels in enumerate(clips):
        for name, value in entries(i2v, pipe, pixels).items():
            torch.testing.assert_close(both[name][i : i + 1], value, atol=1e-5, rtol=1e-5)


def test_the_mask_says_which_frames_are_given(i2v, pipe):
    sample = i2v.sample(pipe)

    given = i2v.family.model_inputs(batch([sample], sample.latents), i2v.settings, torch.Generator())["given"]

    assert given.shape == (1, 20, 2, 8, 8)
    assert given[0, :4].amax(dim=(0, 2, 3)).tolist() == given[0, :4].amin(dim=(0, 2, 3)).tolist() == [1, 0]


@pytest.fixture(scope="module")
def followed():
    """A sample of VACE's and the batch that it makes."""
    vace = case("wan", "tiny-vace")
    sample = vace.sample(vace.pipe())
    return vace, sample, batch([sample], sample.latents)


def test_a_control_clip_stays_without_its_caption_and_is_grey_where_it_is_left_out(followed):
    vace, sample, many = followed
    wordless = dataclasses.replace(many, dropped=torch.tensor([True]))
    left_out = dataclasses.replace(many, unconditioned=torch.tensor([True]), controls=(torch.zeros_like(many.latents),))

    told, still, untold = (
        vace.family.model_inputs(b, vace.settings, torch.Generator())["control"] for b in (many, wordless, left_out)
    )

    assert torch.equal(told[:, 16:32], sample.controls[0])
    assert torch.equal(still, told)
    assert torch.equal(untold[:, 16:32], sample.extras["grey"])


def test_a_control_clip_for_the_pipeline_has_as_many_frames_as_are_drawn(tmp_path):
    first, *others = (Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in (10, 10, 20))
    first.save(tmp_path / "clip.tiff", save_all=True, append_images=others)
    settings = case("wan", "tiny-vace").settings
    with Image.open(tmp_path / "clip.tiff") as clip:
        given = control_kwargs(case("wan", "tiny-vace").family, clip, 32, 32, settings)["video"]

    assert [frame.getpixel((0, 0))[0] for frame in given] == [10, 10, 20, 20, 20]


def test_a_control_clip_of_another_length_is_refused(followed):
    vace, sample, many = followed
    short = dataclasses.replace(many, controls=(sample.controls[0][:, :, :1],))

    with pytest.raises(DataError, match="has 1 latent frames, and its sample has 2"):
        vace.family.model_inputs(short, vace.settings, torch.Generator())


@pytest.mark.parametrize("t", [0.9961, 0.9987])
def test_close_noise_levels_stay_apart_in_half_precision(t):
    plain = case("wan", "tiny")
    model = plain.pipe().transformer.to(torch.bfloat16)
    x_t = torch.zeros(1, *plain.shape, dtype=torch.bfloat16)

    with Recorder(model) as seen, torch.no_grad():
        text = torch.zeros(1, 8, 32, dtype=torch.bfloat16)
        plain.family.predict(model, x_t, torch.tensor([t]), {"text": text})

    assert seen.calls[0]["timestep"].item() == pytest.approx(1000 * t)
