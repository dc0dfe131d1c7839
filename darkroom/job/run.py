"""What the stages of a run share, and its opening and closing."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from darkroom.core import log as logs
from darkroom.core.clock import Clock
from darkroom.core.errors import ConfigError, DarkroomError, Interrupted
from darkroom.core.events import Bus, Event, Progress, RunEnd, Step, Validation, Warn
from darkroom.core.memory import explain_memory_full, release_freed_memory
from darkroom.families.base import Family
from darkroom.options.config import every_option
from darkroom.options.sources import Resolved, add_source
from darkroom.report import page
from darkroom.report.eventlog import EventLog
from darkroom.report.progress import ProgressBars
from darkroom.report.trackers import Trackers
from darkroom.train.loop import StopRequest, interrupt_on_sigterm

if TYPE_CHECKING:
    from darkroom.options.config import Config

log = logs.logger(__name__)

DEFAULT_SEED = 42


@dataclasses.dataclass
class Run:
    """What the stages of a run share."""

    resolved: Resolved
    family: Family
    output: Path
    bus: Bus
    bars: ProgressBars
    step: int = 0
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def config(self) -> Config:
        """The resolved options."""
        return self.resolved.config

    @property
    def seed(self) -> int:
        """What every generator of the run starts from."""
        return DEFAULT_SEED if self.config.seed is None else self.config.seed


@contextlib.contextmanager
def open_run(resolved: Resolved, family: Family, listener: Callable[[Event], None] | None) -> Iterator[Run]:
    """Log, event log, progress and trackers, open for the run and closed whatever happens."""
    config = resolved.config
    for name, value in resolved.exports.items():  # what the process was started with wins
        os.environ.setdefault(name, value)
    release_freed_memory()
    output = Path(config.output_dir)
    handler = logs.to_file(output / "debug.log")
    bus, bars = Bus(), ProgressBars()
    run = Run(resolved, family, output, bus, bars)
    events = EventLog(output / "events.jsonl", Clock())
    trackers = Trackers(config, output, config_as_dict(config))
    bus.on(Step, lambda event: setattr(run, "step", event.step))
    bus.on(Event, events)
    bus.on(Progress, bars.on_progress)
    bus.on(Step, bars.on_step)
    bus.on(Warn, lambda event: bars.print_line(f"! {event.message}"))
    bus.on(Step, trackers.on_step)
    bus.on(Validation, trackers.on_validation)
    if listener:
        bus.on(Event, listener)
    status, message = "completed", ""
    try:
        with interrupt_on_sigterm(), explain_memory_full():
            yield run
    except ConfigError as wrong:
        explained = add_source(wrong, resolved.sources)
        status, message = "failed", str(explained)
        raise explained from wrong
    except (Interrupted, KeyboardInterrupt) as stop:
        status, message = "interrupted", str(stop)
        raise
    except BaseException as cause:
        status, message = "failed", str(cause)
        if not isinstance(cause, DarkroomError):
            log.debug("%s", traceback.format_exc())
        raise
    finally:
        bars.close()
        end = RunEnd(step=run.step, status=status, message=message)
        report = functools.partial(page.write, output, config_as_dict(config), resolved.sources)
        for last in (functools.partial(bus.emit, end), events.close, trackers.close, report):
            try:
                last()
            except (OSError, DarkroomError) as cause:
                if status == "completed":  # else the reason why the run ended matters more
                    log.warning("%s", cause)
        logs.end(handler)


def config_as_dict(config: Config) -> dict[str, object]:
    """Every option and its value, as JSON has it and as they may be shown: secrets are left out."""
    values = cast("dict[str, object]", logs.redact_values(config.model_dump(mode="json")))
    hidden = {info.name for info in every_option() if info.secret}
    return {name: "***" if name in hidden and value else value for name, value in values.items()}
