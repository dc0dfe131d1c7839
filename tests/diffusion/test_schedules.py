"""Beta schedules against the published numbers of Stable Diffusion."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from darkroom.diffusion.schedules import NoiseSchedule, betas, rescale_to_zero_terminal_snr

SDXL = betas("scaled_linear", 0.00085, 0.012)
PLACES = [0, 500, 999]


def test_alpha_bar_of_the_scaled_linear_schedule():
    assert NoiseSchedule(SDXL).alpha_bar[PLACES].tolist() == pytest.approx([0.99914998, 0.27633247, 0.00466010], 1e-5)


def test_signal_to_noise_ratio_of_the_scaled_linear_schedule():
    assert NoiseSchedule(SDXL).snr[PLACES].tolist() == pytest.approx([1175.4406, 0.38185, 0.00468191], 1e-3)


def test_rescaling_ends_in_pure_noise_and_keeps_the_first_step():
    schedule = NoiseSchedule(rescale_to_zero_terminal_snr(SDXL))

    assert schedule.alpha_bar[PLACES].tolist() == pytest.approx([0.99914998, 0.24101855, 0.0], abs=1e-6)
    assert schedule.values[-1] == 1.0
    assert schedule.snr[-1] == 0.0


def test_rescaling_agrees_with_diffusers():
    torch.testing.assert_close(rescale_to_zero_terminal_snr(SDXL), rescale_zero_terminal_snr(SDXL.clone()))


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_schedules_agree_with_diffusers(kind):
    theirs = DDPMScheduler(beta_schedule=kind, beta_start=0.0001, beta_end=0.02)

    torch.testing.assert_close(betas(kind, 0.0001, 0.02), theirs.betas, atol=1e-6, rtol=1e-4)


def test_a_schedulers_config_is_read():
    config = dict(DDPMScheduler(beta_schedule="linear", beta_start=0.001, beta_end=0.02).config)

    torch.testing.assert_close(NoiseSchedule.from_scheduler(config).values, torch.linspace(0.001, 0.02, 1000))


@pytest.mark.parametrize(("config", "asked"), [({"rescale_betas_zero_snr": True}, False), ({}, True)])
def test_zero_terminal_snr_comes_from_the_config_or_the_option(config, asked):
    assert NoiseSchedule.from_scheduler(config, asked).alpha_bar[-1] == 0.0


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="'sqrt'"):
        betas("sqrt", 0.1, 0.2)


@pytest.mark.parametrize("scaler", [0.5, 1.0, 2.0])
def test_a_schedule_of_times_is_the_stock_schedulers(scaler):
    from diffusers import DDPMWuerstchenScheduler

    stock = DDPMWuerstchenScheduler(scaler=scaler)
    mine = NoiseSchedule.from_scheduler(dict(stock.config))

    wanted = stock._alpha_cumprod(torch.linspace(0, 1, 1000), torch.device("cpu"))
    torch.testing.assert_close(mine.alpha_bar, wanted, atol=1e-5, rtol=1e-3)


def test_tables_are_sent_to_a_device_once():
    schedule = NoiseSchedule(betas("linear", 0.1, 0.2, 4))

    first, again = (schedule.alpha_bar_on(torch.device("meta")) for _ in range(2))

    assert first is again
    assert (first.device.type, first.shape) == ("meta", (4,))
