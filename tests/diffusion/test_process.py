"""Mixing, targets and reading them back, for pictures (B, C, H, W) and videos (B, C, F, H, W)."""

from __future__ import annotations

import pytest
import torch

from darkroom.diffusion.process import Flow, VPrediction, build_process
from darkroom.diffusion.schedules import NoiseSchedule, betas
from tests.rows import each_row

SCHEDULE = NoiseSchedule(betas("scaled_linear", 0.00085, 0.012))
SHAPES = {"picture": (3, 4, 6, 5), "video": (3, 4, 2, 6, 5)}
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_matching")


@each_row("shape", SHAPES.values(), ids=SHAPES.keys())
@each_row("prediction", PREDICTIONS)
def test_latents_and_noise_are_recovered_from_the_target(prediction, shape):
    process = build_process(prediction, SCHEDULE)
    t = torch.tensor([0.1, 0.5, 0.9]) if prediction == "flow_matching" else torch.tensor([100, 500, 900])
    x0, noise = torch.randn(shape), torch.randn(shape)

    x_t, target = process.mix(x0, noise, t), process.target(x0, noise, t)

    torch.testing.assert_close(process.x0(x_t, target, t), x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(process.noise(x_t, target, t), noise, atol=1e-4, rtol=1e-4)


def test_v_prediction_gives_the_hand_worked_numbers_at_500():
    process = VPrediction(SCHEDULE)
    x0, noise, t = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -1.0), torch.tensor([500])

    x_t, v = process.mix(x0, noise, t), process.target(x0, noise, t)

    assert x_t.item() == pytest.approx(0.200660, abs=1e-5)
    assert v.item() == pytest.approx(-2.227046, abs=1e-5)
    assert process.x0(x_t, v, t).item() == pytest.approx(2.0, abs=1e-5)
    assert process.noise(x_t, v, t).item() == pytest.approx(-1.0, abs=1e-5)


def test_flow_mixes_along_a_straight_line_whose_velocity_points_at_the_noise():
    x0, noise = torch.full((3, 1, 1, 1), 2.0), torch.full((3, 1, 1, 1), -1.0)

    x_t = Flow().mix(x0, noise, torch.tensor([0.0, 0.25, 1.0]))

    assert x_t.flatten().tolist() == [2.0, 1.25, -1.0]
    assert Flow().target(x0, noise, torch.zeros(3)).flatten().tolist() == [-3.0] * 3


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_each_sample_has_its_own_noise_level(shape):
    x0, noise = torch.zeros(shape), torch.ones(shape)

    x_t = Flow().mix(x0, noise, torch.tensor([0.1, 0.2, 0.3]))

    assert x_t.flatten(1).mean(1).tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert x_t.flatten(1).std(1).max() < 1e-6


def test_levels_are_fractions_for_reports():
    assert Flow().level(torch.tensor([0.25])).item() == 0.25
    assert VPrediction(SCHEDULE).level(torch.tensor([500])).item() == 0.5


def test_discrete_processes_need_a_schedule():
    with pytest.raises(ValueError, match="needs a noise schedule"):
        build_process("epsilon", None)
