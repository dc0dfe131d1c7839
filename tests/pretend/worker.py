"""A process with a pretended GPU that runs commands: a line of JSON in, a line of JSON out, until the input ends.

    {"arguments": ["train", "--model_family=flux", ...], "memory": 0, "fault": "", "log": "run.log"}

It answers with the exit code, the losses, the waits and copies of a step that neither saves nor validates, what the
device held at most in each phase, and what was refused. Faults are mistakes on purpose: see `faults.py`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

from tests.pretend import device

CARD = device.install()

import torch  # noqa: E402

from darkroom.cli.main import main  # noqa: E402
from darkroom.core.events import Bus, Event, Step  # noqa: E402
from tests.families import conformance  # noqa: E402, F401  (it lets the editing pipelines make small images)
from tests.pretend import faults  # noqa: E402

# its counts begin after the first step and end before anything is saved
QUIET_STEP = 2


class Steps:
    """What is counted between two steps."""

    def __init__(self, seen: device.Seen) -> None:
        self.seen, self.before, self.steps = seen, (seen.waits.copy(), seen.copies.copy()), {}  # type: ignore[var-annotated]

    def __call__(self, event: Event) -> None:
        """Take down what has been counted since the last step."""
        now = self.seen.waits.copy(), self.seen.copies.copy()
        self.steps[event.step] = [dict(new - old) for new, old in zip(now, self.before, strict=True)]
        self.before = now


def run(arguments: list[str], memory: int = 24 << 30, fault: str = "", log: str = os.devnull) -> dict[str, Any]:
    """One command, and what the device saw of it."""
    gc.collect()
    CARD.limit(memory)
    CARD.reset_peak()
    begun, held, failed, code = time.monotonic(), CARD.held, "", -1
    plain = Bus.__init__
    with contextlib.ExitStack() as stack:
        seen = stack.enter_context(CARD.watched())
        counted = Steps(seen)

        def listening(self: Bus, *given: Any, **named: Any) -> None:
            plain(self, *given, **named)
            self.on(Step, counted)

        Bus.__init__ = listening  # type: ignore[method-assign]
        stack.callback(setattr, Bus, "__init__", plain)
        if fault:
            stack.enter_context(faults.FAULTS[fault](CARD))
        file = stack.enter_context(Path(log).open("a", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(file))
        stack.enter_context(contextlib.redirect_stderr(file))
        try:
            code = main(arguments)
        except BaseException as cause:
            traceback.print_exc()
            failed = f"{type(cause).__name__}: {cause}"
        file.flush()
    waits, copies = counted.steps.get(QUIET_STEP, ({}, {}))
    gc.collect()
    return {
        "code": code, "failed": failed, "seconds": round(time.monotonic() - begun, 2), "refused": dict(seen.refused),
        "waits": waits, "copies": copies, "peak": CARD.peak, "pinned_peak": CARD.pinned_peak, "kept": CARD.held - held,
    }  # fmt: skip


def serve(lines: IO[str], answers: IO[str]) -> None:
    """Until there are no more lines."""
    for line in lines:
        answers.write(json.dumps(run(**json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    # what a run prints must not come between the answers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    serve(sys.stdin, answers)
