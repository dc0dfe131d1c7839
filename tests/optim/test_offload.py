"""An optimizer in host memory updates as one on the device does."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch

from darkroom.core.errors import ConfigError
from darkroom.optim.clip import clip
from darkroom.optim.offload import OffloadedOptimizer
from darkroom.optim.release import PerParameterOptimizer
from darkroom.optim.table import validate_optimizer
from darkroom.options.config import Config
from tests.rows import each_row

from .test_table import through_a_file
from .ways import CPU, PLAIN, backward, made, same


def released(groups, build) -> PerParameterOptimizer:
    return PerParameterOptimizer(groups, build, functools.partial(clip, method="value", limit=0.0))


@pytest.fixture(autouse=True)
def uncompiled():
    with torch.compiler.set_stance("force_eager"):
        yield


def steps(net, optimizer, seeds, batches: int = 1) -> None:
    for seed in seeds:
        for number in range(batches):
            backward(net, 10 * seed + number)
        if isinstance(optimizer, OffloadedOptimizer):
            optimizer.collect()
            assert all(p.grad is None for p in net.parameters())
        optimizer.step()
        optimizer.zero_grad()


@each_row("gradients", [False, True], ids=["kept", "sent"])
@each_row("name", PLAIN)
def test_weights_are_those_of_a_plain_optimizer(name, gradients):
    (net, away), (twin, plain) = made(name, functools.partial(OffloadedOptimizer, gradients=gradients)), made(name)

    for optimizer, model in ((away, net), (plain, twin)):
        torch.manual_seed(5)
        steps(model, optimizer, range(3), batches=2)

    assert same(net, twin)


def test_gradients_that_are_sent_are_gone_when_the_next_is_computed():
    net, _ = made("torch-adamw", functools.partial(OffloadedOptimizer, gradients=True))
    held = []
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda _: held.append(sum(q.grad is not None for q in net.parameters())))

    backward(net, 0)

    assert held == [0] * 4


def test_a_state_survives_a_checkpoint_to_the_byte():
    pytest.importorskip("bitsandbytes")
    (net, away), (again, resumed) = (made("bnb-adamw8bit", OffloadedOptimizer) for _ in range(2))
    steps(net, away, range(3))
    with torch.no_grad():
        for mine, theirs in zip(again.parameters(), net.parameters(), strict=True):
            mine.copy_(theirs)

    resumed.load_state_dict(through_a_file(away.state_dict()))
    steps(net, away, range(3, 5))
    steps(again, resumed, range(3, 5))

    assert same(net, again)


def test_weights_that_somebody_else_has_changed_are_the_ones_that_are_updated():
    net, away = made("torch-sgd", OffloadedOptimizer)
    with torch.no_grad():
        net.one.weight.fill_(2.0)

    away.collect()
    away.step()

    assert torch.equal(net.one.weight, torch.full((128, 128), 2.0))
    assert torch.equal(away.master_parameters[net.one.weight], net.one.weight)


def test_gradients_are_kept_in_their_own_format():
    net, _ = made("adamw_bf16")
    net.one.weight.grad_dtype = torch.float32
    away = OffloadedOptimizer([{"params": [net.one.weight]}], lambda groups: torch.optim.SGD(groups, lr=0.1))
    backward(net, 0)

    away.collect()

    assert away.master_parameters[net.one.weight].grad.dtype == torch.float32


@pytest.mark.parametrize(
    "way", [functools.partial(OffloadedOptimizer, gradients=True), released], ids=["offloaded", "released"]
)
def test_a_trained_model_is_forgotten_when_nobody_uses_it(way):
    net, optimizer = made("torch-adamw", way)
    backward(net, 0)
    known = weakref.ref(net.one.weight)

    del net, optimizer
    gc.collect()

    assert known() is None


def test_an_optimizer_that_changes_weights_for_their_use_is_refused():
    options = Config(model_family="flux", optimizer="adamw_schedulefree", optimizer_cpu_offload_method="cpu")

    with pytest.raises(ConfigError, match="which it has to have together"):
        validate_optimizer(options, CPU)
