"""An optimizer's state comes back as it was, dtype included, and hyperparameters of now count."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from darkroom.core.errors import CheckpointError
from darkroom.train import optimizer_state
from darkroom.train.pack import flatten
from tests.optim.ways import INSTALLED, Two, backward, made, same
from tests.rows import each_row

from .conftest import rows

STEPS = 5
MORE = 3


@pytest.fixture(autouse=True)
def uncompiled():
    """Updates that torch would compile run as they are written."""
    with torch.compiler.set_stance("force_eager"):
        yield


def step(net: Two, optimizer: Any, seed: int) -> None:
    backward(net, seed)
    optimizer.step()
    optimizer.zero_grad()


def packed(optimizer: Any) -> tuple[str, dict[str, torch.Tensor]]:
    plain, tensors = flatten(optimizer.state_dict())
    return json.dumps(plain, sort_keys=True), tensors


@each_row("name", INSTALLED)
def test_every_optimizer_resumed_at_any_step_has_the_same_state_and_ends_with_the_same_bytes(name):
    net, optimizer = made(name)
    built = optimizer_state.collect_hyperparameters(optimizer)
    saved = []
    for seed in range(STEPS + MORE):
        if 0 < seed <= STEPS:
            plain, tensors = packed(optimizer)
            weights = {k: v.clone() for k, v in net.state_dict().items()}
            saved.append((seed, plain, save(tensors) if tensors else b"", weights, torch.get_rng_state()))
        step(net, optimizer, seed)

    for at, plain, tensors, weights, generator in saved:
        other, resumed = made(name)
        other.load_state_dict(weights)
        torch.set_rng_state(generator)
        read = load(tensors) if tensors else {}
        optimizer_state.load(resumed, json.loads(plain), read, built, optimizer_state.collect_hyperparameters(resumed))

        back, state = packed(resumed)
        assert back == plain, at
        assert {k: v.dtype for k, v in state.items()} == {k: v.dtype for k, v in read.items()}, at
        assert save(state) == save(read), at
        for seed in range(at, STEPS + MORE):
            step(other, resumed, seed)
        assert same(net, other), at


def test_a_hyperparameter_that_was_changed_in_the_settings_counts_after_a_resume(tiny_run):
    run, other = tiny_run(adam_weight_decay=0.1), tiny_run(adam_weight_decay=0.2)
    run.step(rows(1))

    other.snapshot.read(run.save())

    assert other.stepper.optimizer.param_groups[0]["weight_decay"] == 0.2


def test_a_hyperparameter_that_keeps_another_state_is_refused_in_words(tiny_run):
    run, other = tiny_run(), tiny_run(optimizer_config="amsgrad=true")
    run.step(rows(1))

    with pytest.raises(CheckpointError, match="amsgrad was False then and is True now"):
        other.snapshot.read(run.save())
