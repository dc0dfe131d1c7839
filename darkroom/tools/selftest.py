"""Prove that a killed run resumes exactly: train in peace, train with kill -9 in every stage of a run, compare bytes.

Runs are child processes forked from a server that has imported everything, so that a trial costs its own work only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import itertools
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from darkroom.core.errors import UserError
from darkroom.core.files import sha256
from darkroom.report.eventlog import EventRow, read
from darkroom.train.checkpoint import MANIFEST, list_checkpoints, validate_checkpoint

PRELOAD = ["darkroom.tools.warm"]
IGNORED = frozenset({MANIFEST})
# how often a kill is tried again that came before or after what it was meant for
TRIES = 5
POLL_SECONDS = 0.001
CACHES = ("text cache", "latent cache")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a run in which it may be killed: `begins` looks whether a run has come to it; it takes `seconds`."""

    name: str
    begins: Callable[[Path], bool]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Trial:
    """One killed run: in which stage, and which files of the end differ from those of the uninterrupted run."""

    stage: str
    differing: list[str]
    unreadable: list[str]

    @property
    def holds(self) -> bool:
        """Same bytes, and every folder with a manifest was whole."""
        return not self.differing and not self.unreadable


@dataclasses.dataclass(frozen=True)
class Proof:
    """All trials, and how long the uninterrupted run took. Only kills inside a run count."""

    steps: int
    seconds: float
    trials: list[Trial]

    @property
    def holds(self) -> bool:
        """Did every trial end with the same bytes?"""
        return bool(self.trials) and all(trial.holds for trial in self.trials)

    @property
    def fell(self) -> Counter[str]:
        """How many kills fell into each stage."""
        return Counter(trial.stage.split(" at ")[0] for trial in self.trials)


def resume(
    argv: Sequence[str],
    folder: Path,
    steps: int = 60,
    kills: int = 3,
    seed: int = 0,
    report_progress: Callable[[str], None] = print,
) -> Proof:
    """Train `argv` for `steps` in peace, then `kills` times with a SIGKILL each, and compare the last checkpoints.

    The kills are spread over the stages of a run: start, caches, loading, steps, saves and validation. Raises UserError
    if the uninterrupted run fails, with the end of its output, or if a stage is over too soon to be met.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    first = context.Process(target=int)
    first.start()
    first.join()
    common = [*argv, f"--max_train_steps={steps}", "--num_train_epochs=0", "--resume_from_checkpoint=latest"]
    uninterrupted = folder / "uninterrupted"
    started = time.monotonic()
    begun = datetime.datetime.now(datetime.UTC)
    _finish(context, common, uninterrupted, steps)
    seconds = time.monotonic() - started
    report_progress(f"uninterrupted: {steps} steps in {seconds:.1f} s")
    expected = last_checkpoint(uninterrupted, steps)
    chance = random.Random(seed)
    checks = stages(read(uninterrupted / "events.jsonl"), begun, chance)
    trials = []
    for number in range(1, kills + 1):
        output = folder / f"killed-{number}"
        stage = _kill_inside(context, common, output, checks[(number - 1) % len(checks)], chance)
        trial = _finish_and_compare(context, common, output, steps, expected, stage)
        shutil.rmtree(output, ignore_errors=True)
        trials.append(trial)
        verdict = "same bytes" if trial.holds else f"DIFFERS: {', '.join(trial.differing + trial.unreadable)}"
        report_progress(f"kill {number} of {kills}, during {stage}: {verdict}")
    proof = Proof(steps, seconds, trials)
    report_progress(f"kills by stage: {', '.join(f'{name} {count}' for name, count in proof.fell.items())}")
    return proof


# -- where a run may be killed ----------------------------------------------------------------------------------------


def stages(rows: list[EventRow], begun: datetime.datetime, chance: random.Random) -> list[Callable[[], Stage]]:
    """One maker of stages for each kind that a run with these events has; each call draws another step.

    `begun` is when the run was started.
    """
    ends = {row["phase"]: row for row in rows if row["event"] == "phase"}
    scanned = (_time(ends["scan"]) - begun).total_seconds() - ends["scan"]["seconds"]
    caching = sum(ends[name]["seconds"] for name in CACHES)
    checks: list[Callable[[], Stage]] = [
        lambda: Stage("start", lambda output: True, scanned),
        lambda: Stage("caches", lambda output: "scan" in _phases(output), caching),
        lambda: Stage("loading", lambda output: CACHES[-1] in _phases(output), ends["load denoiser"]["seconds"]),
    ]
    for event, name in (("step", "step"), ("checkpoint", "save"), ("validation", "validation")):
        if moments := _after_step(rows, event):
            checks.append(functools.partial(_draw, name, moments, chance))
    return checks


def _after_step(rows: list[EventRow], family: str) -> list[tuple[int, float]]:
    """(step, seconds since the event before) of each event of a kind that follows a step."""
    inside = ("step", "checkpoint", "validation")
    pairs = [
        (last, row) for last, row in itertools.pairwise(rows) if row["event"] == family and last["event"] in inside
    ]
    return [(row["step"], (_time(row) - _time(last)).total_seconds()) for last, row in pairs if row["step"]]


def _draw(name: str, moments: Sequence[tuple[int, float]], chance: random.Random) -> Stage:
    return _at_step(name, *chance.choice(moments))


def _at_step(name: str, step: int, seconds: float) -> Stage:
    """The stage of this name that follows a step, or for steps is one."""
    if name == "step":
        return Stage(f"step at {step}", lambda output: _last_step(output) >= step - 1, seconds)
    if name == "save":
        return Stage(f"save at {step}", lambda output: any(output.glob(f"checkpoint-{step}-tmp")), seconds)
    return Stage(f"validation at {step}", lambda output: _last_step(output) >= step and not _saving(output), seconds)


def _saving(output: Path) -> bool:
    return any(output.glob("checkpoint-*-tmp"))


def _rows(output: Path) -> list[EventRow]:
    log = output / "events.jsonl"
    return read(log) if log.exists() else []


def _phases(output: Path) -> set[str]:
    return {row["phase"] for row in _rows(output) if row["event"] == "phase"}


def _last_step(output: Path) -> int:
    return max((row["step"] for row in _rows(output) if row["event"] == "step"), default=-1)


def _time(row: EventRow) -> datetime.datetime:
    return datetime.datetime.fromisoformat(row["time"])


# -- runs -------------------------------------------------------------------------------------------------------------


def _kill_inside(
    context: ForkServerContext, argv: list[str], output: Path, family: Callable[[], Stage], chance: random.Random
) -> str:
    """Start a run and kill it inside a stage. Returns the stage's name. Raises UserError if that is never met."""
    for _ in range(TRIES):
        shutil.rmtree(output, ignore_errors=True)
        stage = family()
        child = _start(context, argv, output)
        while child.is_alive() and not stage.begins(output):
            time.sleep(POLL_SECONDS)
        child.join(chance.uniform(0, stage.seconds))
        if child.is_alive():
            child.kill()
            child.join()
            if not any(row["event"] == "run_end" for row in _rows(output)):
                return stage.name
    raise UserError(f"The run was over before it could be killed during {stage.name}. Choose more --steps.")


def _finish_and_compare(
    context: ForkServerContext, argv: list[str], output: Path, steps: int, expected: dict[str, str], stage: str
) -> Trial:
    """Let a killed run go on to its end and compare it."""
    unreadable = [
        path.name for path in list_checkpoints(output) if (path / MANIFEST).exists() and validate_checkpoint(path)
    ]
    _finish(context, argv, output, steps)
    actual = last_checkpoint(output, steps)
    differing = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    return Trial(stage, differing, unreadable)


def last_checkpoint(output: Path, steps: int) -> dict[str, str]:
    """Hashes of the files of the last checkpoint, by relative path."""
    folder = output / f"checkpoint-{steps}"
    if problem := validate_checkpoint(folder):
        raise UserError(f"{folder} is not there or not whole: {problem}")
    files = {p.relative_to(folder).as_posix(): sha256(p) for p in folder.rglob("*") if p.is_file()}
    return {name: value for name, value in files.items() if name not in IGNORED}


def _start(context: ForkServerContext, argv: list[str], output: Path) -> ForkServerProcess:
    output.mkdir(parents=True, exist_ok=True)
    child = context.Process(target=_train, args=([*argv, f"--output_dir={output}"], str(output / "console.log")))
    child.start()
    return child


def _finish(context: ForkServerContext, argv: list[str], output: Path, steps: int) -> None:
    child = _start(context, argv, output)
    child.join()
    if child.exitcode != 0:
        text = (output / "console.log").read_text(encoding="utf-8", errors="replace")
        raise UserError(f"The run in {output} failed with code {child.exitcode}:\n{text[-2000:]}")


def _train(argv: list[str], console: str) -> None:
    """The child: one run, its output into a file."""
    from darkroom.cli.common import resolve_arguments
    from darkroom.job.train import train

    with (
        open(console, "a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            train(resolve_arguments(argv))
        except UserError as error:
            print(error, flush=True)
            sys.exit(2)
