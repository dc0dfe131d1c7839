"""`darkroom verify`: load what a run saved into the stock pipeline, and compare."""

from __future__ import annotations

import json
from pathlib import Path

from darkroom.cli.common import take_flag, wants_help

HELP = """usage: darkroom verify CHECKPOINT_OR_FILE [--json]

Load a checkpoint, an adapter file or a run's output folder into the stock diffusers pipeline by its own loader, count
matched and unmatched keys, make the run's own validation pictures again and compare.
Exit code 0: everything is the same to 1/255."""


def run(argv: list[str]) -> int:
    """Verify and return 0 if it holds, else 2."""
    if wants_help(argv, HELP):
        return 0
    as_json = take_flag(argv, "--json")
    if len(argv) != 1:
        print(HELP)
        return 2
    from darkroom.core.errors import ModelError
    from darkroom.tools.verify import verify

    path = Path(argv[0]).expanduser()
    if not path.exists():
        raise ModelError(f"There is nothing at {path}.\n  Check the path.")
    verdict = verify(path)
    if as_json:
        rows = {"matched": verdict.matched, "unmatched": verdict.unmatched, "pictures": verdict.images}
        print(
            json.dumps({**rows, "difference": verdict.difference, "problem": verdict.problem, "holds": verdict.holds})
        )
    else:
        print(f"keys: {verdict.matched} matched, {len(verdict.unmatched)} not")
        for key in verdict.unmatched[:20]:
            print(f"  {key}")
        if verdict.difference is None:
            print("pictures: the run has none of this step to compare with")
        else:
            print(f"pictures: {verdict.images} made again, largest difference {verdict.difference:g}/255")
        print(verdict.problem or ("It holds." if verdict.holds else "It does not hold."))
    return 0 if verdict.holds else 2
