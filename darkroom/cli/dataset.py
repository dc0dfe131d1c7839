"""`darkroom dataset report`: a page about the images, clips and captions that a run would learn from."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from darkroom.cli.common import CONFIG_HELP, wants_help
from darkroom.core.errors import ConfigError
from darkroom.core.events import Bus, Progress

PAGE = "dataset_report.html"

HELP = f"""usage: darkroom dataset report [CONFIG] [--output FILE] [--limit N] [--json] [--OPTION VALUE ...]

Write one HTML page about the datasets of a run: duplicates, blur, enlarged and cropped pictures, shapes, captions that
are too long or missing, broken files, masks, and the exact frames that clips give. Loads no weights; changes nothing.

  --output FILE   the page (default: {PAGE} in output_dir)
  --limit N       look closely at N pictures of each dataset, evenly chosen (default: 2000)
  --json          print the findings as data; write the page only where --output says

Without a CONFIG, name the dataset file and a family: --data_backend_config FILE --model_family NAME

{CONFIG_HELP}"""


def run(argv: list[str]) -> int:
    """Make the page and return the exit code: 0 whatever was found, 2 for settings that cannot be read."""
    if wants_help(argv, HELP):
        return 0
    if not argv or argv[0] != "report":
        problem = f"There is no 'darkroom dataset {argv[0]}'." if argv else "Say what to do with the datasets."
        print(f"{problem} Try: darkroom dataset report CONFIG", file=sys.stderr)
        return 2
    as_json, output, limit, arguments = _split_arguments(argv[1:])
    from darkroom import families
    from darkroom.job.dataset_report import report as dataset_report
    from darkroom.options.sources import resolve
    from darkroom.report import dataset_page
    from darkroom.report.dataset_facts import as_dict
    from darkroom.report.progress import ProgressBars

    settings = resolve(arguments, os.environ, Path.cwd(), families.defaults, partial=True)
    bars, bus = ProgressBars(), Bus()
    bus.on(Progress, bars.on_progress)
    try:
        report = dataset_report.gather(settings, bus, limit or dataset_report.LIMIT)
    finally:
        bars.close()
    path = Path(output or Path(settings.config.output_dir) / PAGE).expanduser()
    if output or not as_json:
        dataset_page.write(path, report)
        print(f"The page is {path.resolve()}", file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(as_dict(report), indent=2, ensure_ascii=False))
    return 0


def _split_arguments(argv: list[str]) -> tuple[bool, str | None, int | None, list[str]]:
    """(--json, --output, --limit, everything else). Raises ConfigError."""
    values: dict[str, str] = {}
    arguments: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--output", "--limit"):
            values[name] = value if equals else next(words, "")
            if not values[name]:
                raise ConfigError(name, "", "command line", "It needs a value.", f"Write {name} VALUE.")
        elif word != "--json":
            arguments.append(word)
    limit = values.get("--limit")
    if limit is not None and not (limit.isdecimal() and int(limit) > 0):
        problem = "This is not a whole number above 0."
        raise ConfigError("--limit", limit, "command line", problem, "Write for example --limit 500.")
    return "--json" in argv, values.get("--output"), int(limit) if limit else None, arguments
