"""SimpleTuner: an environment, which `darkroom train` reads as it is, written out with what became of its keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from darkroom.core.errors import missing_option
from darkroom.core.files import expand_home
from darkroom.options.imports.report import Imported, ImportedKey, Verdict
from darkroom.options.sources import is_default, resolve

TITLE = "SimpleTuner"
USAGE = "darkroom import simpletuner FOLDER, such as config/my-run, or a config file"


def read(words: Sequence[str], cwd: Path) -> Imported:
    """Every option that an environment sets, with the notes of the reader. Raises ConfigErrors as a run would."""
    if not words:
        raise missing_option("FOLDER", "No environment is named.", f"Write: {USAGE}.")
    folder = cwd / expand_home(words[0])
    file = folder
    if folder.is_dir():
        files = [folder / name for name in ("config.json", "config.toml", "config.env") if (folder / name).is_file()]
        file = files[0] if files else folder / "config.json"
    resolved = resolve([str(file), *words[1:]], dict(os.environ), cwd, None, partial=True)
    rows = []
    for name, source in resolved.sources.items():
        value = getattr(resolved.config, name)
        if not is_default(source):
            rows.append(ImportedKey(name, value, Verdict.EXACT, {name: value}))
    for note in resolved.notes:
        rows.append(ImportedKey(note.option, note.value, Verdict.APPROXIMATED, {}, note.reason))
    settings = {"defaults": resolved.config.defaults, **{row.key: row.value for row in rows if row.settings}}
    return Imported(TITLE, words[0], f"simpletuner-{Path(words[0]).stem}", settings, rows)
