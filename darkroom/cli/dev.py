"""`darkroom dev`: what people need who work on Darkroom itself."""

from __future__ import annotations

import argparse
from pathlib import Path


def run(argv: list[str]) -> int:
    """Write the skeleton of a new family."""
    parser = argparse.ArgumentParser("darkroom dev", description="Help for those who work on Darkroom itself.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    new = commands.add_parser(
        "new-family",
        help="write the skeleton of a family from a pipeline of diffusers",
        description="Write darkroom/families/NAME.py and its faults from the signatures of a pipeline of diffusers. "
        "What no signature tells is marked FILL IN. CONTRIBUTING.md lists what comes next.",
    )
    new.add_argument("pipeline", metavar="PIPELINE_CLASS", help="for example MochiPipeline")
    new.add_argument("--name", default="", help="the family's name; by default the pipeline's, in small letters")
    new.add_argument("--root", type=Path, default=Path(), help="the checkout; by default the current folder")
    arguments = parser.parse_args(argv)

    from darkroom.tools import new_family

    for file in new_family.write(arguments.pipeline, arguments.root, arguments.name):
        print(f"wrote {file}")
    print(f"Fill in what is marked {new_family.FILL}, then: make fix; pytest tests/families -k NAME")
    return 0
