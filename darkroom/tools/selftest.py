"""Prove that a killed run resumes exactly: train in peace, train with kill -9 at random instants, compare bytes.

Runs are child processes forked from a server that has imported everything, so that a trial costs its own work only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from darkroom.core.errors import UserError
from darkroom.core.files import sha256
from darkroom.train.checkpoint import MANIFEST, Keeper, check

PRELOAD = ["darkroom.tools.warm"]
IGNORED = frozenset({MANIFEST})
AFTER_PHASE = {
    "scan": "the text cache",
    "text cache": "the latent cache",
    "latent cache": "loading of the denoiser",
    "load denoiser": "the base model's pictures",
    "base pictures": "the start of training",
    "training": "the final save",
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One killed run: how far into it, what it was doing, and which files of the end differ from the peaceful run's."""

    seconds: float
    during: str
    differing: list[str]
    unreadable: list[str]

    @property
    def holds(self) -> bool:
        """Same bytes, and every folder with a manifest was whole."""
        return not self.differing and not self.unreadable


@dataclasses.dataclass(frozen=True)
class Proof:
    """All trials, and how long the peaceful run took."""

    steps: int
    seconds: float
    trials: list[Trial]

    @property
    def holds(self) -> bool:
        """Did every trial end with the same bytes?"""
        return all(trial.holds for trial in self.trials)


def resume(
    argv: Sequence[str],
    folder: Path,
    steps: int = 60,
    kills: int = 3,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Proof:
    """Train `argv` for `steps` in peace, then `kills` times with a SIGKILL each, and compare the last checkpoints.

    Raises UserError if the peaceful run fails, with the end of its output.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    first = context.Process(target=int)
    first.start()
    first.join()
    common = [*argv, f"--max_train_steps={steps}", "--num_train_epochs=0", "--resume_from_checkpoint=latest"]
    peace = folder / "peace"
    started = time.monotonic()
    _finish(context, common, peace, steps)
    seconds = time.monotonic() - started
    say(f"uninterrupted: {steps} steps in {seconds:.1f} s")
    wanted = last_checkpoint(peace, steps)
    chance = random.Random(seed)
    trials = []
    for number in range(1, kills + 1):
        trial = _trial(context, common, folder / f"killed-{number}", steps, wanted, chance.uniform(0.2, seconds))
        shutil.rmtree(folder / f"killed-{number}", ignore_errors=True)
        trials.append(trial)
        verdict = "same bytes" if trial.holds else f"DIFFERS: {', '.join(trial.differing + trial.unreadable)}"
        say(f"kill {number} of {kills} after {trial.seconds:.1f} s, during {trial.during}: {verdict}")
    return Proof(steps, seconds, trials)


def _trial(context, argv: list[str], output: Path, steps: int, wanted: dict[str, str], after: float) -> Trial:
    child = _start(context, argv, output)
    child.join(after)
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    during = doing(output)
    unreadable = [path.name for path in Keeper(output, None).folders() if (path / MANIFEST).exists() and check(path)]
    _finish(context, argv, output, steps)
    mine = last_checkpoint(output, steps)
    differing = sorted(name for name in wanted.keys() | mine.keys() if wanted.get(name) != mine.get(name))
    return Trial(after, during, differing, unreadable)


def last_checkpoint(output: Path, steps: int) -> dict[str, str]:
    """Hashes of the files of the last checkpoint, by relative path."""
    folder = output / f"checkpoint-{steps}"
    if problem := check(folder):
        raise UserError(f"{folder} is not there or not whole: {problem}")
    files = {p.relative_to(folder).as_posix(): sha256(p) for p in folder.rglob("*") if p.is_file()}
    return {name: value for name, value in files.items() if name not in IGNORED}


def doing(output: Path) -> str:
    """What a killed run was last heard of doing."""
    log = output / "events.jsonl"
    if not log.exists():
        return "start-up"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.endswith("}")]
    last: dict[str, Any] = json.loads(lines[-1]) if lines else {"event": "start"}
    if any(output.glob("checkpoint-*-tmp")):
        return f"a save after step {last.get('step', 0)}"
    step = last.get("step", 0)
    if last["event"] == "phase":
        return AFTER_PHASE.get(last["phase"], f"what follows {last['phase']}")
    if last["event"] == "checkpoint":
        return f"validation or step {step + 1}, after a save"
    return f"step {step + 1}" if last["event"] == "step" else f"what follows {last['event']} at step {step}"


def _start(context, argv: list[str], output: Path):
    output.mkdir(parents=True, exist_ok=True)
    child = context.Process(target=_train, args=([*argv, f"--output_dir={output}"], str(output / "console.log")))
    child.start()
    return child


def _finish(context, argv: list[str], output: Path, steps: int) -> None:
    child = _start(context, argv, output)
    child.join()
    if child.exitcode != 0:
        text = (output / "console.log").read_text(encoding="utf-8", errors="replace")
        raise UserError(f"The run in {output} failed with code {child.exitcode}:\n{text[-2000:]}")


def _train(argv: list[str], console: str) -> None:
    """The child: one run, its output into a file."""
    from darkroom.cli.common import resolved
    from darkroom.job.train import train

    with (
        open(console, "a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            train(resolved(argv))
        except UserError as error:
            print(error, flush=True)
            sys.exit(2)
