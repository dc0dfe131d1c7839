"""`darkroom plan`: everything a run would do, without loading weights."""

from __future__ import annotations

import json

from darkroom.cli.common import CONFIG_HELP, resolved, take_flag, wants_help
from darkroom.core.log import redact

HELP = f"""usage: darkroom plan [CONFIG] [--json] [--OPTION VALUE ...]

Show what a run with these settings would do: options and where they come from, datasets, buckets, pictures left out,
batches, steps, cache entries to make and reuse, disk, memory, time. Loads no weights. Exit code 2: it could not start.

{CONFIG_HELP}"""


def run(argv: list[str]) -> int:
    """Print the plan and return the exit code."""
    if wants_help(argv, HELP):
        return 0
    as_json = take_flag(argv, "--json")
    settings = resolved(argv)
    from darkroom.job import plan

    made = plan.plan(settings)
    print(redact(json.dumps(made, indent=2, default=str) if as_json else plan.show(made)))
    return 0
