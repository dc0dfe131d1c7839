"""Learning rates of SimpleTuner's seven schedules over 200 updates, against numbers worked out from its description.

The expected rates are computed here, step by step and without the code under test: `W` updates of warm-up, `T` in all,
from `LR` to `END`. SimpleTuner rounds its own waves down to whole 1e-9; Darkroom does not, hence the tolerance.
"""

from __future__ import annotations

import math

import pytest
import torch

from darkroom.optim.schedules import Scheduler, ScheduleShape
from darkroom.options.config import Config

LR, END, POWER, STEPS = 1e-4, 1e-6, 0.8, 200
ROUNDED = 1e-9


def rate_at(name: str, k: int, warmup: int) -> float:
    """The rate of update `k` as SimpleTuner has it."""
    rising = k / warmup if k < warmup else None
    left = 1 - (k - warmup) / (STEPS - warmup)  # of the way from the warm-up to the end
    wave = {"sine": math.sin, "cosine": math.cos}.get(name)
    if wave is not None:  # swings between END and LR, half a period in `warmup`, and never warms up
        return END + (LR - END) * (1 + wave(math.pi * k / (warmup or 1000))) / 2
    if name in ("constant", "cosine_with_restarts"):  # the restarts count updates modulo -1, which is always 0
        return LR
    if rising is not None:
        return LR * rising
    if name == "constant_with_warmup":
        return LR
    return LR * left if name == "linear" else (LR - END) * left**POWER + END


def rates(config: Config) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.effective_learning_rate)
    shape = ScheduleShape(
        config.lr_warmup_steps, STEPS, config.lr_num_cycles, config.lr_power, config.lr_end / config.learning_rate
    )
    scheduler = Scheduler(optimizer, config.effective_lr_schedule, shape)
    return [scheduler.set(step) for step in range(STEPS)]


@pytest.mark.parametrize("warmup", [0, 30, 150])
@pytest.mark.parametrize(
    "name",
    ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "sine"],
)
def test_rates_are_those_of_simpletuner_over_200_updates(name, warmup):
    config = Config(
        model_family="flux", lr_scheduler=name, lr_warmup_steps=warmup, learning_rate=LR, lr_end=END, lr_power=POWER,
        compat_lr_schedules=True,
    )  # fmt: skip
    assert rates(config) == pytest.approx([rate_at(name, k, warmup) for k in range(STEPS)], abs=ROUNDED)


@pytest.mark.parametrize(
    ("name", "update", "rate"),
    [
        ("cosine", 0, 1e-4),  # no warm-up
        ("cosine", 15, 5.05e-5),  # halfway down
        ("cosine", 30, 1e-6),  # the end of the half period
        ("cosine", 60, 1e-4),  # and up again
        ("sine", 15, 1e-4),
        ("sine", 45, 1e-6),
        ("polynomial", 15, 5e-5),  # half of the warm-up
        ("polynomial", 115, 5.78606e-5),  # halfway from the warm-up to the end
        ("linear", 115, 5e-5),
        ("cosine_with_restarts", 199, 1e-4),
    ],
)
def test_single_rates_worked_by_hand(name, update, rate):
    assert rate_at(name, update, 30) == pytest.approx(rate, rel=1e-5)


def test_our_own_cosine_warms_up_and_falls_once():
    config = Config(model_family="flux", lr_scheduler="cosine", lr_warmup_steps=50, learning_rate=LR)
    found = rates(config)
    assert (found[0], found[50]) == (0, pytest.approx(LR))
    assert found[50:] == sorted(found[50:], reverse=True)
