"""`darkroom train`: a run."""

from __future__ import annotations

from darkroom.cli.common import CONFIG_HELP, resolve_arguments, wants_help
from darkroom.core.memory import import_libraries

HELP = f"""usage: darkroom train [CONFIG] [--env NAME] [--OPTION VALUE ...]

Train a LoRA (or, with --model_type full, a whole model) from a folder of pictures.

{CONFIG_HELP}

Run the same command again to go on after a stop: the newest checkpoint is taken up by itself."""


def run(argv: list[str]) -> int:
    """Train and return the exit code."""
    if wants_help(argv, HELP):
        return 0
    settings = resolve_arguments(argv)
    with import_libraries():
        from darkroom.job.train import train

    train(settings)
    return 0
