"""`darkroom cache`: fill the caches and stop."""

from __future__ import annotations

from darkroom.cli.common import CONFIG_HELP, resolve_arguments, wants_help
from darkroom.core.memory import import_libraries

HELP = f"""usage: darkroom cache [CONFIG] [--OPTION VALUE ...]

Encode every caption and picture of a run, and stop. A run with the same settings then starts training at once.

{CONFIG_HELP}"""


def run(argv: list[str]) -> int:
    """Fill the caches and return the exit code."""
    if wants_help(argv, HELP):
        return 0
    settings = resolve_arguments(argv)
    with import_libraries():
        from darkroom.job.train import train

    train(settings, only_caches=True)
    return 0
