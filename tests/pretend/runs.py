"""The runs of the pretended GPU's tests, and what is read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import darkroom
from darkroom.report.eventlog import read

Options = dict[str, Any]
PACKAGE = Path(darkroom.__file__).parent

STEPS = 3
USUAL: Options = {
    "max_train_steps": STEPS, "checkpoint_step_interval": 2, "lr_scheduler": "constant", "train_batch_size": 1,
    "disable_benchmark": True,
}  # fmt: skip


def losses(folder: Path) -> list[float]:
    """The loss of each step."""
    return [sum(row["terms"].values()) for row in read(folder / "events.jsonl") if row["event"] == "step"]


def own_waits(waits: dict[str, int]) -> dict[str, int]:
    """Those that Darkroom's own lines cause, and not a library's inside a call of it or in a recomputation."""
    lines = {row: row.rpartition(" at ")[2].partition(":")[0] for row in waits}
    return {row: count for row, count in waits.items() if (PACKAGE / lines[row]).is_file() and " > " not in row}
