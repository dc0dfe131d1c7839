"""`darkroom plan`: everything a run would do, without loading weights."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from darkroom.cli.common import CONFIG_HELP, resolve_arguments, take_flag, take_value, wants_help
from darkroom.core.cards import OPTION, find_card
from darkroom.core.log import redact
from darkroom.core.memory import import_libraries

if TYPE_CHECKING:
    from darkroom.options.sources import Resolved

HELP = f"""usage: darkroom plan [CONFIG] [--for CARD] [--json] [--OPTION VALUE ...]

Show what a run with these settings would do: options and where they come from, datasets, buckets, pictures left out,
batches, steps, cache entries to make and reuse, disk, time, and at last memory, which takes longest to work out. Loads
no weights. Exit code 2: it could not start.

--for 24GiB, --for "RTX 4090", --for h100: as if this machine had such a card, of which nothing else is in use. The
forecast does not touch a GPU, so any machine can make it.

{CONFIG_HELP}"""


def run(argv: list[str]) -> int:
    """Print the plan and return the exit code."""
    if wants_help(argv, HELP):
        return 0
    as_json = take_flag(argv, "--json")
    card = find_card(text) if (text := take_value(argv, OPTION)) else None
    settings = resolve_arguments(argv)
    with import_libraries():
        from darkroom.core.device import assume_card

    with assume_card(card) if card else contextlib.nullcontext():
        print_plan(settings, as_json)
    return 0


def print_plan(settings: Resolved, as_json: bool) -> None:
    """The plan of a run, memory last."""
    with import_libraries():
        from darkroom.job import plan
    from darkroom.report.progress import status

    begun = plan.begin(settings)
    if not as_json:
        print(redact(plan.show(begun.values)), flush=True)
    with status("memory") as tell:
        memory = plan.memory(begun, tell)
    complete = {**begun.values, "memory": memory}
    print(redact(json.dumps(complete, indent=2, default=str) if as_json else plan.show_memory(memory)))
