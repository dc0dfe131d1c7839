"""`darkroom demo`: the main job on the built-in model."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = (
    "Teach the built-in model a creature it has never seen, in a few minutes, without a GPU, a download or an account."
)


def run(argv: list[str]) -> int:
    """Run the demo; options of a run may follow."""
    parser = argparse.ArgumentParser("darkroom demo", description=HELP)
    parser.add_argument("--output_dir", default="demo-output", help="where everything is written")
    arguments, overrides = parser.parse_known_args(argv)
    from darkroom.job.demo import demo, story

    output = Path(arguments.output_dir)
    result = demo(output, overrides)
    print(story(result, output))
    return 0
