"""What only DeepFloyd's stage II does: the small picture that it enlarges gets noise, of a level that it is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from darkroom import families
from darkroom.families import deepfloyd
from tests.families import conformance

FAMILY = families.get("deepfloyd", "tiny-ii")


@pytest.fixture(autouse=True)
def noisy(monkeypatch):
    monkeypatch.setattr(deepfloyd, "draw_noise", conformance.PLAIN_NOISE)


def model_inputs(level: int | None, count: int = 4, seed: int = 0) -> dict:
    settings = SimpleNamespace(**{**vars(conformance.options("deepfloyd", "tiny-ii")), "deepfloyd_noise_level": level})
    grey = SimpleNamespace(latents=torch.zeros(count, 3, 64, 64), extras={"small": torch.full((count, 3, 16, 16), 0.5)})
    return FAMILY.model_inputs(grey, settings, torch.Generator().manual_seed(seed))


def test_the_small_picture_gets_as_much_noise_as_its_level_says():
    kept = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod[600]

    found = model_inputs(600)

    assert found["level"].tolist() == [600] * 4
    assert found["seen"].mean().item() == pytest.approx(0.5 * kept.sqrt().item(), abs=0.03)
    assert found["seen"].std().item() == pytest.approx((1 - kept).sqrt().item(), abs=0.03)


def test_without_a_level_every_sample_of_training_has_its_own_and_pictures_the_usual_one():
    one, again, other = model_inputs(None), model_inputs(None), model_inputs(None, seed=1)

    assert len(set(one["level"].tolist())) == 4
    assert torch.equal(one["seen"], again["seen"])
    assert not torch.equal(one["level"], other["level"])
    settings = SimpleNamespace(**{**vars(conformance.options("deepfloyd", "tiny-ii")), "deepfloyd_noise_level": None})
    assert FAMILY.pipeline_kwargs(settings)["noise_level"] == 250


def test_what_is_enlarged_is_a_quarter_of_the_size():
    pixels = conformance.photograph("astronaut", 64, 32)
    settings = conformance.options("deepfloyd", "tiny-ii")

    small = FAMILY.sample_entries(None, pixels, pixels, settings)["small"]

    picture = FAMILY.image_kwargs(conformance.to_pil(pixels), 64, 32, settings)["image"]
    assert small.shape == (1, 3, 8, 16)
    assert torch.equal(small, conformance.from_pil(picture))
