"""Epochs, groups of micro-batches, events, and stopping on a signal."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from darkroom.core.errors import Interrupted
from darkroom.core.events import Bus, Step
from darkroom.train.loop import Loop, StopRequest, group_batches
from darkroom.train.state import TrainState

from .conftest import rows

pytestmark = pytest.mark.smoke


class Epochs:
    """Micro-batches of epochs whose lengths are given; counts what was asked for."""

    def __init__(self, *lengths: int):
        self.lengths, self.asked = lengths, []

    def length(self, epoch: int) -> int:
        return self.lengths[(epoch - 1) % len(self.lengths)]

    def epoch(self, number: int, start: int = 0, stopped=lambda: False):
        self.asked.append((number, start))
        for position in range(start, self.length(number)):
            batch = rows(100 * number + position)
            batch.position = position
            yield batch


def looped(run, loader: Epochs, total: int) -> tuple[Loop, list[Step]]:
    bus, heard = Bus(), []
    bus.on(Step, heard.append)
    return Loop(run.stepper, loader, loader.length, TrainState(), total, bus), heard


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(6, 2, [2, 2, 2]), (5, 2, [2, 2, 1]), (1, 4, [1]), (0, 2, []), (3, 1, [1, 1, 1])]
)
def test_the_last_group_of_an_epoch_may_be_smaller(count, size, sizes):
    assert [len(group) for group in group_batches(range(count), size)] == sizes


def test_groups_are_made_as_they_are_taken():
    source = iter(range(10))

    next(group_batches(source, 2))

    assert next(source) == 2


def test_a_run_goes_through_epochs_until_its_steps_are_done(tiny_run):
    loader = Epochs(3)
    loop, heard = looped(tiny_run(gradient_accumulation_steps=2), loader, total=5)

    loop.run(StopRequest())

    assert [event.step for event in heard] == [1, 2, 3, 4, 5]
    assert [event.epoch for event in heard] == [1, 1, 2, 2, 3]
    assert [event.epoch_ended for event in heard] == [False, True, False, True, False]
    assert loader.asked == [(1, 0), (2, 0), (3, 0)]
    assert (loop.state.step, loop.state.epoch, loop.state.position) == (5, 3, 2)


def test_epochs_may_differ_in_length(tiny_run):
    loop, heard = looped(tiny_run(), Epochs(1, 3), total=6)

    loop.run(StopRequest())

    assert [event.epoch for event in heard] == [1, 2, 2, 2, 3, 4]


def test_samples_are_counted(tiny_run):
    loop, _ = looped(tiny_run(), Epochs(2), total=3)

    loop.run(StopRequest())

    assert loop.state.samples == 12


def test_a_run_goes_on_inside_an_epoch(tiny_run):
    loader = Epochs(4)
    loop, heard = looped(tiny_run(), loader, total=4)
    loop.state.step, loop.state.epoch, loop.state.position = 2, 1, 2

    loop.run(StopRequest())

    assert loader.asked == [(1, 2)]
    assert [event.step for event in heard] == [3, 4]


def test_a_finished_run_does_nothing(tiny_run):
    loader = Epochs(4)
    loop, heard = looped(tiny_run(), loader, total=2)
    loop.state.step = 2

    loop.run(StopRequest())

    assert (heard, loader.asked) == ([], [])


def test_an_epoch_that_has_become_shorter_than_the_position_is_left(tiny_run):
    loader = Epochs(2)
    loop, heard = looped(tiny_run(), loader, total=4)
    loop.state.step, loop.state.position = 2, 9

    loop.run(StopRequest())

    assert loader.asked == [(2, 0)]
    assert [event.step for event in heard] == [3, 4]


def test_a_signal_before_a_whole_group_trains_on_no_part_of_it(tiny_run):
    run = tiny_run(gradient_accumulation_steps=4)
    loop, heard = looped(run, Epochs(8), total=2)
    before = run.weight
    stop = StopRequest()
    whole = loop.loader.epoch

    def signalled(*args, **kwargs):
        for number, batch in enumerate(whole(*args, **kwargs)):
            stop.name = "SIGTERM" if number == 2 else ""
            yield batch

    loop.loader.epoch = signalled
    with pytest.raises(Interrupted):
        loop.run(stop)

    assert heard == []
    assert torch.equal(run.weight, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_current_step(tiny_run, number):
    loop, heard = looped(tiny_run(), Epochs(100), total=100)
    loop.bus.on(Step, lambda event: os.kill(os.getpid(), number) if event.step == 3 else None)

    with StopRequest() as stop, pytest.raises(Interrupted, match=number.name):
        loop.run(stop)

    assert [event.step for event in heard] == [1, 2, 3]


def test_a_second_signal_ends_at_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"

        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)

    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before

    assert signal.getsignal(signal.SIGTERM) == before


def test_a_step_that_reaches_the_end_of_its_epoch_begins_the_next():
    state = TrainState(step=4, epoch=2, position=6, samples=40)

    assert state.advance(position=8, epoch_length=8, samples=8)

    assert state == TrainState(step=5, epoch=3, position=0, samples=48)
