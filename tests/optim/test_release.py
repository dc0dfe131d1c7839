"""Updates on the way back are those after it."""

from __future__ import annotations

import functools

import pytest
import torch

from darkroom.core.errors import ConfigError
from darkroom.optim.clip import clip
from darkroom.optim.release import PerParameterOptimizer
from darkroom.optim.schedules import Scheduler, ScheduleShape
from darkroom.optim.table import validate_optimizer
from darkroom.options.config import Config
from tests.rows import each_row

from .test_table import through_a_file
from .ways import CPU, PLAIN, ROUNDING, backward, made, same


@pytest.fixture(autouse=True)
def uncompiled():
    with torch.compiler.set_stance("force_eager"):
        yield


def releasing(limit: float = 0.0, method: str = "value"):
    limited = functools.partial(clip, method=method, limit=limit)
    return lambda groups, build: PerParameterOptimizer(groups, build, limited, together=method == "norm")


def steps(net, optimizer, seeds, limit: float = 0.0, method: str = "value") -> list[torch.Tensor]:
    sizes = []
    for seed in seeds:
        backward(net, seed)
        sizes.append(
            optimizer.size()
            if isinstance(optimizer, PerParameterOptimizer)
            else clip([*net.parameters()], method, limit)
        )
        optimizer.step()
        optimizer.zero_grad()
    return sizes


@each_row("name", PLAIN)
def test_weights_are_those_of_a_plain_optimizer(name):
    (net, each), (twin, plain) = made(name, releasing(1e-3)), made(name)
    start = net.one.weight.detach().clone()

    steps(net, each, range(3))
    steps(twin, plain, range(3), limit=1e-3)

    if name in ROUNDING:
        gap, way = ((w - net.one.weight).abs().mean() for w in (twin.one.weight, start))
        assert gap < 0.1 * way
    else:
        assert same(net, twin)


@pytest.mark.parametrize("method", ["value", "norm"])
def test_the_size_of_the_gradients_is_that_of_a_plain_step(method):
    (net, each), (twin, plain) = made("torch-adamw", releasing(method=method)), made("torch-adamw")

    mine, theirs = steps(net, each, range(3)), steps(twin, plain, range(3), method=method)

    torch.testing.assert_close(torch.stack(mine), torch.stack(theirs))
    assert each.size() == 0


def test_no_two_gradients_are_held_at_once():
    net, _ = made("torch-adamw", releasing())
    held = []
    # runs before the update frees the gradient at hand
    for p in net.parameters():
        p.register_hook(lambda _: held.append(sum(q.grad is not None for q in net.parameters())))

    backward(net, 0)

    assert held == [0] * 4
    assert all(p.grad is None for p in net.parameters())


def test_a_state_survives_a_checkpoint_to_the_byte():
    pytest.importorskip("torchao")
    (net, each), (again, resumed) = (made("ao-adamw8bit", releasing()) for _ in range(2))
    steps(net, each, range(3))
    with torch.no_grad():
        for mine, theirs in zip(again.parameters(), net.parameters(), strict=True):
            mine.copy_(theirs)

    resumed.load_state_dict(through_a_file(each.state_dict()))
    steps(net, each, range(3, 5))
    steps(again, resumed, range(3, 5))

    assert same(net, again)


def test_the_schedule_reaches_every_weight():
    _, each = made("torch-adamw", releasing())
    Scheduler(each, "linear", ScheduleShape(0, 4)).set(2)

    assert [group["lr"] for group in each.param_groups] == [0.025, 0.025, 0.01, 0.01]


def test_an_optimizer_that_looks_at_all_weights_together_is_refused():
    with pytest.raises(ConfigError, match="which it has to have together"):
        validate_optimizer(Config(model_family="flux", optimizer="prodigy", optimizer_release_gradients=True), CPU)
