"""`darkroom plan`: everything a run would do, without loading weights."""

from __future__ import annotations

import json

from darkroom.cli.common import CONFIG_HELP, resolved, take_flag, wants_help
from darkroom.core.log import redact

HELP = f"""usage: darkroom plan [CONFIG] [--json] [--OPTION VALUE ...]

Show what a run with these settings would do: options and where they come from, datasets, buckets, pictures left out,
batches, steps, cache entries to make and reuse, disk, time, and at last memory, which takes longest to work out. Loads
no weights. Exit code 2: it could not start.

{CONFIG_HELP}"""


def run(argv: list[str]) -> int:
    """Print the plan and return the exit code."""
    if wants_help(argv, HELP):
        return 0
    as_json = take_flag(argv, "--json")
    settings = resolved(argv)
    from darkroom.job import plan
    from darkroom.report.progress import status

    begun = plan.begin(settings)
    if not as_json:
        print(redact(plan.show(begun.made)), flush=True)
    with status("memory") as tell:
        memory = plan.memory(begun, tell)
    whole = {**begun.made, "memory": memory}
    print(redact(json.dumps(whole, indent=2, default=str) if as_json else plan.show_memory(memory)))
    return 0
