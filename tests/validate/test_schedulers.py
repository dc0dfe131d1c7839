"""Samplers of validation: what the options change, and what is refused."""

from __future__ import annotations

import diffusers
import pytest

from darkroom.core.errors import ConfigError
from darkroom.options.config import Config
from darkroom.validate import schedulers


def changed(is_flow: bool, **options) -> dict:
    return schedulers.changes(Config(model_family="flux" if is_flow else "sdxl", **options), is_flow)


def test_a_flow_model_keeps_its_own_scheduler():
    assert changed(True) == {}


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler-a"])
def test_noise_samplers_are_refused_for_flow_models(name):
    with pytest.raises(ConfigError, match="along its flow") as caught:
        changed(True, validation_noise_scheduler=name)

    assert "euler, unipc, dpm++" in caught.value.change


@pytest.mark.parametrize("name", schedulers.DISCRETE)
def test_every_noise_sampler_keeps_the_bases_settings(name):
    base = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.013)

    made = schedulers.apply(base, changed(False, validation_noise_scheduler=name))
    made.set_timesteps(4)

    assert type(made).__name__ == schedulers.DISCRETE[name]
    assert (made.config.beta_schedule, made.config.beta_start) == ("scaled_linear", 0.001)
    assert len(made.timesteps) == 4


@pytest.mark.parametrize("name", schedulers.FLOW)
def test_every_flow_sampler_goes_from_noise_to_picture(name):
    base = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

    made = schedulers.apply(base, changed(True, validation_noise_scheduler=name))
    made.set_timesteps(4)

    assert type(made).__name__ == schedulers.FLOW[name]
    assert made.sigmas[0] > 0.95
    assert made.sigmas[-1] < 0.01


def test_spacing_prediction_and_zero_snr_reach_the_scheduler():
    options = {
        "inference_scheduler_timestep_spacing": "linspace", "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    }  # fmt: skip

    made = schedulers.apply(diffusers.DDIMScheduler(), changed(False, **options))

    assert made.config.timestep_spacing == "linspace"
    assert made.config.prediction_type == "v_prediction"
    assert made.alphas_cumprod[-1] == 0


@pytest.mark.parametrize(
    ("spacing", "steps"),
    [
        ("leading", [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        ("linspace", [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("trailing", [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
    ],
)
def test_ten_steps_of_each_spacing(spacing, steps):
    made = schedulers.apply(diffusers.DDPMScheduler(), changed(False, inference_scheduler_timestep_spacing=spacing))

    made.set_timesteps(10)

    assert made.timesteps.tolist() == steps


def test_the_bases_scheduler_is_not_touched():
    base = diffusers.DDIMScheduler()

    schedulers.apply(base, {"timestep_spacing": "trailing"})

    assert base.config.timestep_spacing == "leading"


@pytest.mark.parametrize(
    ("base", "name", "option"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "unipc", "flow_shift"),
        (diffusers.UniPCMultistepScheduler(flow_shift=5.0, use_flow_sigmas=True), "euler", "shift"),
    ],
)
def test_the_shift_of_a_flow_goes_along(base, name, option):
    made = schedulers.apply(base, changed(True, validation_noise_scheduler=name))

    assert made.config[option] == base.config.get("shift", base.config.get("flow_shift"))
