"""The table of docs/conformance.md, written by the test run itself: every family against every promise.

    make proofs                       with every other proof
    CONFORMANCE_TABLE=docs/conformance.md pytest -m "slow or not slow" tests/families tests/job/test_every_family.py

A test says what it showed with `record_property("cell", (case, column, words))`; a cell is written only if it passed.
A row in which nothing failed or is missing says which code it was written with: `tests/proofs.py` compares.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.proofs import code_of

COLUMNS = {
    "call": "call parity",
    "latents": "latent parity",
    "padding": "padding",
    "oracle": "oracle",
    "lora": "LoRA run",
    "loads": "adapter loads",
    "picture": "picture",
    "resume": "resume",
    "full": "full run",
    "code": "code",
}
# without these a row is the work of half a run
WHOLE = {"call", "latents", "padding", "lora", "resume", "full"}
HEAD = """# What is proven of each family

Written by a test run, not by hand: `tests/families/table.py` says how. Every flavour here is a tiny model with random
weights, built from the very classes of the published one. What was not run is left empty; what failed says so.

| Column | What held |
|---|---|
| call parity | at every noise level of a short sampling, each argument that training gives the denoiser equals the stock pipeline's; a batch answers as its samples do alone |
| latent parity | what is cached for a picture or clip reaches the stock pipeline's decoder as the VAE made it |
| padding | rows of the text that its mask hides were changed, with and without gradient checkpointing, and the prediction stayed the same to the last bit; visible ones changed it |
| oracle | correlation of the sample that was trained with what the stock pipeline's own sampler then finds; above 0.95 |
| LoRA run | steps of a LoRA run on photographs or clips, from the command line |
| adapter loads | tensors of the saved file that found their place in the stock pipeline, by its own loader or, where diffusers gave it none, by peft |
| picture | the run's last validation picture against the stock pipeline's, largest difference in steps of 1/255 |
| resume | half a run, stopped and resumed, ends with the same bytes as a whole one |
| full run | steps of a full fine-tune, whose saved pipeline draws the run's last validation picture |
| code | a hash of the family's code that this was shown with, and of all that it imports; with another one, its proofs are run again by `.ci/run` |
"""  # noqa: E501


class Table:
    """Collects cells from the reports of a test run."""

    def __init__(self, path: Path):
        self.path = path
        self.cells: dict[tuple[str, str], dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A cell for each property of a test that passed, and `failed` for one that did not."""
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == "cell":
                case, column, words = value
                self.cells.setdefault(tuple(case), {})[column] = words if report.passed else "failed"

    def pytest_sessionfinish(self) -> None:
        """Write the page."""
        rows = [f"| family, flavour | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
        for (family, flavour), found in sorted(self.cells.items()):
            # from a picture there is only one kind of run, with the flavour's own
            whole = found.keys() >= WHOLE or flavour.endswith(" from a picture")
            if whole and "failed" not in found.values():
                found["code"] = code_of(family)
            rows.append(f"| {family} {flavour} | {' | '.join(found.get(column, '') for column in COLUMNS)} |")
        self.path.write_text(HEAD + "\n" + "\n".join(rows) + "\n", encoding="utf-8")


def pytest_configure(config: Any) -> None:
    """Listen in the process that gathers all reports."""
    path = os.environ.get("CONFORMANCE_TABLE")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(Path(path).absolute()), "conformance-table")
