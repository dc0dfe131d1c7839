"""Offset noise, input perturbation and generators."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from darkroom.diffusion.noise import add_offset_noise, derive_seed, gaussian_like, perturbation
from tests.rows import each_row

SHAPES = [(2, 3, 4, 5), (2, 3, 2, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_offset_noise_is_one_value_per_sample_and_channel(shape):
    shifted = add_offset_noise(torch.zeros(shape), 1.0, Generator().manual_seed(0)).flatten(2)

    assert shifted.std(-1).max() == 0.0
    assert shifted[..., 0].unique().numel() == 6


def test_offset_noise_scales_with_its_amount():
    whole = add_offset_noise(torch.zeros(2, 3, 4, 5), 1.0, Generator().manual_seed(0))

    tenth = add_offset_noise(torch.zeros(2, 3, 4, 5), 0.1, Generator().manual_seed(0))

    torch.testing.assert_close(tenth, whole * 0.1)


@each_row("step, strength", [(0, 0.1), (500, 0.05), (1000, 0.0), (2000, 0.0)])
def test_perturbation_falls_to_nothing(step, strength):
    assert perturbation(0.1, 1000, step) == pytest.approx(strength)


def test_perturbation_without_steps_stays():
    assert perturbation(0.1, 0, 10**6) == 0.1


def test_noise_is_standard_normal_float32_whatever_the_latents_are():
    noise = gaussian_like(torch.zeros(4, 16, 32, 32, dtype=torch.bfloat16), Generator().manual_seed(0))

    assert noise.dtype == torch.float32
    assert noise.mean().item() == pytest.approx(0.0, abs=0.02)
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)


def seeded(seed, *path):
    return Generator().manual_seed(derive_seed(seed, *path))


def test_the_same_seed_and_path_give_the_same_generator():
    a, b = torch.randn(8, generator=seeded(7, 1, 2)), torch.randn(8, generator=seeded(7, 1, 2))

    assert torch.equal(a, b)


def test_neighbouring_seeds_and_paths_give_unrelated_streams():
    paths = [(7,), (8,), (7, 0), (7, 1), (7, 0, 1), (7, 1, 0), (-1,)]

    streams = torch.stack([torch.randn(2000, generator=seeded(*path)) for path in paths])
    correlation = torch.corrcoef(streams) - torch.eye(len(paths))

    # for independent streams of 2000 numbers the standard deviation is 0.022
    assert correlation.abs().max() < 0.1
