"""Averaged weights: decay numbers, the average itself, and putting it in place for a while."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from darkroom.options.config import Config
from darkroom.train.ema import EMA, compute_decay, is_on_accelerator
from tests.rows import each_row


def averaged(weight: float = 0.0, dtype: torch.dtype = torch.float32, **options) -> tuple[nn.Parameter, EMA]:
    parameter = nn.Parameter(torch.full((4,), weight, dtype=dtype))
    return parameter, EMA({"w": parameter}, Config(model_family="flux", use_ema=True, **options))


def put(parameter: nn.Parameter, value: float) -> None:
    with torch.no_grad():
        parameter.fill_(value)


@each_row(
    "step, decay", [(1, 0.0), (2, 0.181818), (3, 0.25), (11, 0.55), (101, 0.918182), (2000, 0.995), (10**6, 0.995)]
)
def test_decay_rises_to_its_limit(step, decay):
    assert compute_decay(step, 0.995) == pytest.approx(decay, abs=1e-6)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_the_average_follows_the_weights(one_by_one):
    parameter, ema = averaged(ema_foreach_disable=one_by_one)

    for step, weight in ((1, 1.0), (2, 2.0), (3, 4.0)):
        put(parameter, weight)
        ema.update(step)

    # 1, then 2/11 of 1 and 9/11 of 2, then a quarter of that and three quarters of 4
    assert ema.shadows["w"].tolist() == pytest.approx([0.25 * (2 / 11 + 18 / 11) + 3.0] * 4)


def test_updates_happen_at_the_interval_alone():
    parameter, ema = averaged(ema_update_interval=3)
    put(parameter, 1.0)

    ema.update(1)
    ema.update(2)
    before = ema.shadows["w"].tolist()
    ema.update(3)

    assert before == [0.0] * 4
    assert ema.shadows["w"].tolist() == pytest.approx([0.75] * 4)


def test_the_average_of_bfloat16_weights_is_float32():
    parameter, ema = averaged(1.0, torch.bfloat16, ema_decay=0.999)
    ema.update(1)
    put(parameter, 1.0078125)

    ema.update(10_000)

    # a thousandth of the smallest bfloat16 step
    assert ema.shadows["w"].tolist() == pytest.approx([1 + 0.0078125e-3] * 4, abs=2e-7)


def test_averaged_weights_are_in_place_only_inside():
    parameter, ema = averaged()
    put(parameter, 2.0)

    with ema.use_average():
        inside = parameter.tolist()

    assert inside == [0.0] * 4
    assert parameter.tolist() == [2.0] * 4


def test_trained_weights_come_back_after_an_error_inside():
    parameter, ema = averaged()
    put(parameter, 2.0)

    with pytest.raises(RuntimeError), ema.use_average():
        raise RuntimeError

    assert parameter.tolist() == [2.0] * 4


def test_a_loaded_average_goes_on_where_the_saved_one_was():
    parameter, ema = averaged()
    put(parameter, 2.0)
    ema.update(1)
    ema.update(2)
    other_parameter, other = averaged()

    other.load_state_dict({name: t.clone() for name, t in ema.state_dict().items()})
    put(other_parameter, 2.0)
    ema.update(3)
    other.update(3)

    assert torch.equal(ema.shadows["w"], other.shadows["w"])


def test_a_missing_average_is_an_error():
    with pytest.raises(KeyError, match="w"):
        averaged()[1].load_state_dict({})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"model_type": "full"}, False),
        ({"model_type": "full", "ema_device": "accelerator"}, True),
        ({"ema_device": "cpu"}, False),
        ({"ema_cpu_only": True}, False),
        ({"ema_device": "accelerator", "ema_cpu_only": True}, False),
    ],
)
def test_the_average_of_an_adapter_lives_on_the_accelerator_and_a_whole_models_on_the_host(options, expected):
    assert is_on_accelerator(Config(model_family="flux", use_ema=True, **options)) is expected
