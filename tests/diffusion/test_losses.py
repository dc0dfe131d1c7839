"""Loss shapes and weights against hand-worked numbers."""

from __future__ import annotations

import pytest
import torch

from darkroom.diffusion.losses import LOSSES, huber, huber_constant, l2, mean_per_sample, smooth_l1
from darkroom.diffusion.schedules import NoiseSchedule, betas
from darkroom.diffusion.weights import min_snr, soft_min_snr
from tests.rows import each_row

HALF, ZERO = torch.tensor([0.5]), torch.tensor([0.0])


def test_l2_is_the_squared_difference():
    assert l2(torch.tensor([3.0]), torch.tensor([1.0])).item() == 4.0


def test_huber_of_a_half():
    assert huber(HALF, ZERO, 0.1).item() == pytest.approx(0.08198039, rel=1e-5)


def test_smooth_l1_of_a_half():
    assert smooth_l1(HALF, ZERO, 0.1).item() == pytest.approx(0.81980390, rel=1e-5)


@pytest.mark.parametrize(("name", "near_zero"), [("huber", 1e-4), ("smooth_l1", 1e-3)])
def test_small_differences_count_squared(name, near_zero):
    d = torch.tensor([0.01], dtype=torch.float64)

    assert LOSSES[name](d, torch.zeros_like(d), 0.1).item() == pytest.approx(near_zero, rel=0.01)


def test_a_constant_per_sample_broadcasts():
    pred = torch.full((2, 1, 2, 2), 0.5)

    loss = huber(pred, torch.zeros_like(pred), torch.tensor([0.1, 1.0]).view(2, 1, 1, 1))

    assert loss[0].mean().item() == pytest.approx(0.08198039, rel=1e-5)
    assert loss[1].mean().item() == pytest.approx(2 * (1.25**0.5 - 1), rel=1e-5)


def test_constant_huber_schedule():
    assert huber_constant(0.1, "constant", HALF, HALF).item() == pytest.approx(0.1)


@pytest.mark.parametrize(("level", "c"), [(0.0, 1.0), (0.5, 0.31622777), (1.0, 0.1)])
def test_exponential_huber_schedule(level, c):
    assert huber_constant(0.1, "exponential", torch.tensor([level]), HALF).item() == pytest.approx(c, rel=1e-5)


def test_snr_huber_schedule_of_a_discrete_process():
    spread = NoiseSchedule(betas("scaled_linear", 0.00085, 0.012)).snr[[500]].rsqrt()

    assert huber_constant(0.1, "snr", HALF, spread).item() == pytest.approx(0.23128358, rel=1e-4)


def test_snr_huber_schedule_of_a_flow():
    spread = torch.sqrt((1 - HALF) / (HALF + 1e-4))

    assert huber_constant(0.1, "snr", HALF, spread).item() == pytest.approx(0.32502250, rel=1e-5)


def test_an_unknown_huber_schedule_is_named():
    with pytest.raises(ValueError, match="'steps'"):
        huber_constant(0.1, "steps", HALF, HALF)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 2, 4, 4)])
def test_the_mean_of_each_sample_is_over_all_other_axes(shape):
    error = torch.ones(shape)
    error[1] = 3.0

    assert mean_per_sample(error).tolist() == [1.0, 3.0]


def test_a_mask_multiplies_and_leaves_the_divisor():
    mask = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)

    assert mean_per_sample(torch.ones(1, 3, 4, 2), mask).tolist() == [0.5]


@each_row(
    "snr, prediction, weight",
    [
        (20.0, "epsilon", 0.25),
        (20.0, "v_prediction", 0.2380952),
        (20.0, "sample", 5.0),
        (1.0, "epsilon", 1.0),
        (1.0, "v_prediction", 0.5),
        (0.0, "epsilon", 1.0),
        (0.0, "v_prediction", 0.0),
        (0.0, "sample", 0.0),
    ],
)
def test_min_snr(snr, prediction, weight):
    assert min_snr(torch.tensor([snr]), 5.0, prediction).item() == pytest.approx(weight, rel=1e-6)


@each_row(
    "snr, prediction, weight",
    [
        (20.0, "epsilon", 0.2),
        (20.0, "v_prediction", 0.1904762),
        (20.0, "sample", 4.0),
        (0.0, "epsilon", 1.0),
        (0.0, "v_prediction", 0.0),
    ],
)
def test_soft_min_snr(snr, prediction, weight):
    assert soft_min_snr(torch.tensor([snr]), 5.0, prediction).item() == pytest.approx(weight, rel=1e-6)


@pytest.mark.parametrize(("sigma", "weight"), [(1.0, 0.8), (0.5, 2.0)])
def test_soft_min_snr_equals_the_edm_form_on_clean_latents(sigma, weight):
    # 1 / (sigma^2 + sigma_data^2) with sigma_data 0.5, that is gamma 4
    snr = torch.tensor([sigma**-2])

    assert soft_min_snr(snr, 4.0, "sample").item() == pytest.approx(weight, rel=1e-6)
