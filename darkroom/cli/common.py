"""What several commands share: reading a run's settings, and help texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.core.errors import missing_option

if TYPE_CHECKING:
    from darkroom.options.sources import Resolved

CONFIG_HELP = """CONFIG is a JSON, TOML or env file, or the name of an environment folder below config/.
Any option may follow as --option VALUE, --option=VALUE or, for switches, --option; it wins over the file.
`darkroom options` lists them all; `darkroom options --explain CONFIG` shows where each value comes from."""


def resolve_arguments(argv: list[str]) -> Resolved:
    """The settings of a run from the command's arguments. Raises ConfigErrors."""
    from darkroom import families
    from darkroom.options.sources import resolve

    return resolve(argv, os.environ, Path.cwd(), families.defaults)


def wants_help(argv: list[str], text: str) -> bool:
    """Print `text` and say True if the user asked for help."""
    if any(a in ("-h", "--help") for a in argv):
        print(text)
        return True
    return False


def take_flag(argv: list[str], name: str) -> bool:
    """Remove the switch `name` from `argv` and say whether it was there."""
    present = name in argv
    while name in argv:
        argv.remove(name)
    return present


def take_value(argv: list[str], name: str) -> str | None:
    """Remove the last `name VALUE` or `name=VALUE` from `argv` and return the value; None if there is none.

    Raises ConfigError for a name without a value.
    """
    value = None
    while places := [i for i, argument in enumerate(argv) if argument == name or argument.startswith(f"{name}=")]:
        argument = argv.pop(places[0])
        if "=" in argument:
            value = argument.partition("=")[2]
        elif places[0] < len(argv) and not argv[places[0]].startswith("--"):
            value = argv.pop(places[0])
        else:
            raise missing_option(name, "It stands there without a value.", f"Write {name} VALUE, or leave it out.")
    return value
