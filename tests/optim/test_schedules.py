"""Learning-rate factors against the formulas, and the rates that reach the optimizer."""

from __future__ import annotations

import math
from types import SimpleNamespace

import diffusers.optimization
import pytest
import torch

from darkroom.optim.schedules import (
    SCHEDULES,
    WITHOUT_WARMUP,
    Scheduler,
    ScheduleShape,
    build_shape,
    compute_factor,
)
from darkroom.options.config import Config, construct
from tests.rows import each_row

PLAIN = ScheduleShape(warmup=0, total=100)
WARM = ScheduleShape(warmup=10, total=110)


@each_row("name", sorted(set(SCHEDULES) - WITHOUT_WARMUP))
@each_row("step, expected", [(0, 0.0), (1, 0.1), (5, 0.5), (10, 1.0)])
def test_warm_up_rises_in_a_straight_line(name, step, expected):
    assert compute_factor(name, step, WARM) == pytest.approx(expected)


def test_constant_has_no_warm_up():
    assert [compute_factor("constant", step, WARM) for step in (0, 5, 200)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "halfway", "end"),
    [
        ("constant_with_warmup", 1.0, 1.0),
        ("linear", 0.5, 0.0),
        ("cosine", 0.5, 0.0),
        ("cosine_with_restarts", 0.5, 0.0),
        ("polynomial", 0.5, 0.0),
    ],
)
def test_halfway_at_the_end_and_after_it(name, halfway, end):
    assert compute_factor(name, 60, WARM) == pytest.approx(halfway)
    assert compute_factor(name, 110, WARM) == pytest.approx(end)
    assert compute_factor(name, 500, WARM) == pytest.approx(end)


@pytest.mark.parametrize(("step", "rate"), [(0, 5.05e-5), (50, 1e-4), (100, 5.05e-5), (150, 1e-6), (200, 5.05e-5)])
def test_sine_swings_between_the_end_and_the_full_rate(step, rate):
    shape = ScheduleShape(warmup=100, total=1000, end=1e-6 / 1e-4)

    assert 1e-4 * compute_factor("sine", step, shape) == pytest.approx(rate)


def test_polynomial_of_power_08_halfway():
    shape = ScheduleShape(warmup=0, total=100, power=0.8, end=1e-6 / 1e-4)

    assert 1e-4 * compute_factor("polynomial", 50, shape) == pytest.approx(5.78606e-5, rel=1e-5)
    assert 1e-4 * compute_factor("polynomial", 100, shape) == pytest.approx(1e-6)


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (25, 0.5), (50, 1.0), (75, 0.5), (100, 0.0)])
def test_two_cycles_start_again_halfway(step, expected):
    assert compute_factor("cosine_with_restarts", step, ScheduleShape(0, 100, cycles=2)) == pytest.approx(expected)


def test_cosine_ends_at_the_end_value_whatever_the_number_of_cycles():
    shape = ScheduleShape(0, 100, cycles=3, end=0.1)

    assert [compute_factor("cosine", step, shape) for step in (0, 50, 100)] == pytest.approx([1.0, 0.55, 0.1])


@pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine", "cosine_with_restarts"])
def test_factors_agree_with_diffusers(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = diffusers.optimization.get_scheduler(name, optimizer, num_warmup_steps=10, num_training_steps=110)
    (function,) = theirs.lr_lambdas

    # up to the last step: beyond it their cosine rises again
    assert [compute_factor(name, k, WARM) for k in range(111)] == pytest.approx([function(k) for k in range(111)])


def test_a_run_shorter_than_its_warm_up_does_not_divide_by_zero():
    assert compute_factor("linear", 12, ScheduleShape(warmup=10, total=5)) == 0.0


def test_every_group_keeps_its_own_base_rate():
    groups = [{"lr": 1.0}, {"lr": 0.5}]
    scheduler = Scheduler(SimpleNamespace(param_groups=groups), "linear", PLAIN)

    rate = scheduler.set(25)

    assert rate == 0.75
    assert [group["lr"] for group in groups] == [0.75, 0.375]


def factors(config_values, total=10, rate=1.0):
    shape = build_shape(construct({**Config(model_family="flux").model_dump(), **config_values}), total, rate)
    return [compute_factor(config_values["lr_scheduler"], step, shape) for step in range(total + 1)]


def test_rex_is_musubi_tuners():
    """lr = m + (1 - m) z / (0.1 + 0.9 z), z = (R - k) / R; the warm-up of 3 starts at m at step 1."""
    made = factors({"lr_scheduler": "rex", "lr_warmup_steps": 3, "lr_scheduler_min_lr_ratio": 0.1})
    decay = [0.1 + 0.9 * z / (0.1 + 0.9 * z) for z in ((7 - k) / 7 for k in range(7))]
    first = (7 - (-3 % 7)) / 7
    assert made == pytest.approx([0.1 + 0.9 * first / (0.1 + 0.9 * first), 0.1, 0.55, *decay, 0.1])


def test_inverse_sqrt_begins_after_its_timescale():
    made = factors({"lr_scheduler": "inverse_sqrt", "lr_warmup_steps": 2})
    assert made == pytest.approx([0, 0.5, *(1 / math.sqrt(step / 2) for step in range(2, 11))])


def test_cosine_with_min_lr_ends_at_the_floor():
    made = factors({"lr_scheduler": "cosine_with_min_lr", "lr_warmup_ratio": 0.2, "lr_scheduler_min_lr_ratio": 0.25})
    expected = [0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(9)]
    assert made == pytest.approx([0, 0.5, *expected])


def test_warmup_stable_decay_holds_and_falls():
    made = factors({"lr_scheduler": "warmup_stable_decay", "lr_warmup_steps": 2, "lr_decay_steps": 4,
                    "lr_scheduler_min_lr_ratio": 0.2})  # fmt: skip
    fall = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert made == pytest.approx([0.2, 0.6, 1, 1, 1, 1, *fall, 0.2])
    assert made == factors({"lr_scheduler": "warmup_stable_decay", "lr_warmup_ratio": 0.2, "lr_decay_ratio": 0.4,
                            "lr_scheduler_min_lr_ratio": 0.2})  # fmt: skip


def test_piecewise_constant_follows_its_rules():
    made = factors({"lr_scheduler": "piecewise_constant", "lr_scheduler_args": {"step_rules": "1:3,0.5:5,0.1"}})
    assert made == [1, 1, 1, 0.5, 0.5, *[0.1] * 6]
