"""`darkroom import`: the config of another trainer as one of Darkroom's, with a report about every key."""

from __future__ import annotations

import json
from pathlib import Path

from darkroom.cli.common import take_flag, take_value
from darkroom.core.errors import missing_option
from darkroom.core.log import redact

HELP = """usage: darkroom import [-o FOLDER] [--json] PROGRAM WHAT...

Read a command or config of another trainer and write what it says as a config and dataset file of Darkroom's, with a
report that says of every key whether it is exact, approximated (how) or not offered (why). Nothing is trained.

PROGRAM is one of:
{programs}

-o FOLDER  write there; left out, into a new environment in config/. A config that is there is never overwritten.
--json     print the report as JSON."""


def run(argv: list[str]) -> int:
    """Read, write and report; returns the exit code."""
    from darkroom.options.imports import PROGRAMS, find_program
    from darkroom.options.imports.writer import choose_folder, write

    if not argv or argv[0] in ("-h", "--help"):
        print(HELP.format(programs="\n".join(f"  {name:<10} {find_program(name).USAGE}" for name in PROGRAMS)))
        return 0
    as_json, output = take_flag(argv, "--json"), take_value(argv, "-o")
    if not argv:
        raise missing_option("PROGRAM", "No program is named.", f"Choose one of: {', '.join(PROGRAMS)}.")
    cwd = Path.cwd()
    imported = find_program(argv[0]).read(argv[1:], cwd)
    folder = choose_folder(output, imported.name, cwd)
    written, paths = write(imported, folder, cwd)
    if as_json:
        print(redact(json.dumps({**written.as_json(), "files": [str(path) for path in paths]}, indent=1, default=str)))
    else:
        print(redact(written.as_text()))
        print("\n".join(f"Written: {path}" for path in paths))
    return 0
