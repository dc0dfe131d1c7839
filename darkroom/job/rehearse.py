"""Before the first step: steps of the largest batch, one image and one save, so that a run whose memory or disk is
too small ends now and not in the night.

It ends as an interrupted run goes on: everything is put back out of a checkpoint that is written first. A run with a
rehearsal and one without give the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.core.files import explain_disk_full
from darkroom.data.batches.batch import Batch
from darkroom.job.phases import phase
from darkroom.train.checkpoint import Snapshot
from darkroom.train.step import Stepper

if TYPE_CHECKING:
    from darkroom.data.batches.loader import BatchLoader
    from darkroom.job.run import Run
    from darkroom.options.config import Config

# in the output folder; a later run clears away what a killed one leaves
FOLDERS = ("checkpoint-rehearsal-before-tmp", "checkpoint-rehearsal-save-tmp")
REHEARSAL = "rehearsal: "
STEP, IMAGE, SAVE = f"{REHEARSAL}step", f"{REHEARSAL}picture", f"{REHEARSAL}save"


def dry_run(run: Run, snapshot: Snapshot, batch: Batch, draw: Callable[[], None] | None) -> dict[str, int]:
    """Do each of a run's works once, `draw` being that of validation, and undo it. Returns the most bytes held in each.

    Raises DiskFullError, and whatever the works raise; then the model is no longer what it was.
    """
    before, saved = (run.output / name for name in FOLDERS)
    stepper, step = snapshot.stepper, snapshot.state.step
    decay = stepper.ema.decay if stepper.ema else 0.0
    works: dict[str, Callable[[], object]] = {
        STEP: lambda: _take_steps(stepper, batch, step),
        **({IMAGE: draw} if draw else {}),
        SAVE: lambda: _write(snapshot, saved),
    }
    peaks = {}
    try:
        _write(snapshot, before)
        for name, work in works.items():
            with phase(run.bus, name, step) as gauge:
                work()
            peaks[name] = gauge.device or gauge.host
        snapshot.read(before)
    finally:
        for folder in (before, saved):
            shutil.rmtree(folder, ignore_errors=True)
    if stepper.ema:
        stepper.ema.decay = decay
    return peaks


def _take_steps(stepper: Stepper, batch: Batch, step: int) -> None:
    """Two steps: only the second finds the optimizer's state beside what it computes."""
    for _ in range(2):
        stepper.update([batch.to(stepper.accelerator.device)] * micro_batches(stepper.options), step)


def micro_batches(options: Config) -> int:
    """How many show what a step takes: gradients that are added to others take no more the third time."""
    return min(2, options.gradient_accumulation_steps)


def _write(snapshot: Snapshot, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with explain_disk_full(folder.parent, "a checkpoint"):
        folder.mkdir(parents=True)
        snapshot.write(folder)


def largest(loader: BatchLoader, epoch: int) -> Batch:
    """The batch of an epoch with the most numbers in it."""
    plan, sources = loader.order.epoch(epoch), loader.sources(epoch)

    def numbers(position: int) -> int:
        source = sources[int(plan.datasets[position])]
        bucket = source.buckets.buckets[int(plan.buckets[position])]
        return bucket.target[0] * bucket.target[1] * bucket.frames * len(plan.batch(position).members)

    return loader.batch(epoch, max(range(len(plan)), key=numbers))
