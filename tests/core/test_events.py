"""The bus and the names of events."""

from __future__ import annotations

from darkroom.core.clock import FixedClock
from darkroom.core.events import Bus, Event, RunStart, Step, Warn


def test_listeners_hear_their_kind_and_its_subclasses_in_order():
    bus, heard = Bus(), []
    bus.on(Event, lambda event: heard.append(("all", event.step)))
    bus.on(Step, lambda event: heard.append(("steps", event.step)))

    bus.emit(Step(step=1))
    bus.emit(Warn(step=2))

    assert heard == [("all", 1), ("steps", 1), ("all", 2)]


def test_events_are_named_in_snake_case():
    assert [event().name for event in (RunStart, Step, Warn)] == ["run_start", "step", "warning"]


def test_a_fixed_clock_moves_when_told():
    clock = FixedClock()

    clock.tick(1.5)

    assert (clock.seconds(), clock.utc_timestamp()) == (1.5, "1970-01-01T00:00:01.500+00:00")
