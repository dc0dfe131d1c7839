"""Pixels to latents and back, with and without a frame axis."""

from __future__ import annotations

import pytest
import torch

from darkroom import families
from darkroom.families import tiny
from darkroom.families.shared import latents as latent_space
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.families.shared.pixels import PixelSpace
from darkroom.families.shared.spec import Latents
from tests.rows import each_row

VIDEO = Latents(channels=16, downscale=8, patch=2, normalizer="channels", temporal=4)
PICTURES = Latents(channels=4)


@pytest.fixture(scope="module")
def vae():
    return tiny.build(families.get("wan")).vae


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


@each_row("frames, legal", [(0, 0), (1, 1), (4, 1), (5, 5), (16, 13), (77, 77), (81, 81)])
def test_a_clip_has_one_frame_and_then_fours(frames, legal):
    assert VIDEO.round_frames(frames) == legal


def test_pictures_have_one_frame():
    assert [PICTURES.round_frames(n) for n in (0, 1, 9)] == [0, 1, 1]


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_shapes_are_those_of_the_vae(vae, frames):
    found = latent_space.encode(vae, noise(2, 3, frames, 32, 48), VIDEO)

    assert tuple(found.shape) == (2, *VIDEO.shape(32, 48, frames)) == (2, 16, (frames - 1) // 4 + 1, 4, 6)


def test_a_picture_is_a_clip_of_one_frame(vae):
    pixels = noise(2, 3, 32, 32)

    torch.testing.assert_close(
        latent_space.encode(vae, pixels, VIDEO), latent_space.encode(vae, pixels[:, :, None], VIDEO)
    )


def test_latents_are_standardised_channel_by_channel(vae):
    pixels = noise(1, 3, 5, 32, 32)
    with torch.no_grad():
        z = vae.encode(pixels).latent_dist.mode()

    found = latent_space.encode(vae, pixels, VIDEO)

    for c in (0, 7, 15):
        mean, std = vae.config.latents_mean[c], vae.config.latents_std[c]
        torch.testing.assert_close(found[:, c], (z[:, c] - mean) / std)


def test_decoding_undoes_the_normalisation(vae):
    pixels = noise(1, 3, 5, 32, 32)
    with torch.no_grad():
        plain = vae.decode(vae.encode(pixels).latent_dist.mode()).sample

    back = latent_space.decode(vae, latent_space.encode(vae, pixels, VIDEO), VIDEO)

    assert back.shape == pixels.shape
    torch.testing.assert_close(back, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shape", "facts"), [((1, 3, 6, 32, 32), VIDEO), ((1, 3, 5, 32, 32), PICTURES)])
def test_a_clip_that_would_lose_frames_is_refused(vae, shape, facts):
    with pytest.raises(ValueError, match="no clip of"):
        latent_space.encode(vae, noise(*shape), facts)


@each_row("name", families.names())
def test_decoding_undoes_encoding_in_every_latent_space(name):
    family = families.get(name)
    facts, vae = family.latents, getattr(tiny.build(family), "vae", None) or PixelSpace()
    z = noise(2, *facts.shape(64, 96))
    _, back = latent_space.NORMALIZERS[facts.normalizer]
    forth, _ = latent_space.NORMALIZERS[facts.normalizer]

    torch.testing.assert_close(forth(back(z, vae), vae), z, rtol=1e-4, atol=1e-4)
    shape = (2, 3, 1, 64, 96) if facts.temporal else (2, 3, 64, 96)
    assert not hasattr(vae, "decode") or tuple(latent_space.decode(vae, z, facts).shape) == shape
    assert latent_space.encode(vae, noise(*shape), facts).shape == z.shape


def test_what_a_pipeline_has_made_for_its_decoder_is_decoded_as_it_is():
    family = families.get("flux2")
    vae = tiny.build(family).vae
    latents = noise(1, *family.latents.shape(64, 64))
    finished = latent_space.NORMALIZERS["batch_norm"][1](latents, vae)

    found = latent_space.decode(vae, finished, family.latents)

    torch.testing.assert_close(found, latent_space.decode(vae, latents, family.latents))


def test_a_tiny_base_has_the_same_statistics_in_every_process():
    family = families.get("ltxvideo")
    vae = tiny.build(family, resolve_flavour(family, "tiny").components.oracle).vae
    # in which order a set of names is walked changes from process to process
    assert vae.latents_mean[:3].tolist() == pytest.approx([1.4997, 0.6239, 1.5366], abs=1e-4)
