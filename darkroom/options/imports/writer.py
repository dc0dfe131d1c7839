"""Write what an importer read: a config, its companions and the report, into one folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from darkroom.core.errors import ConfigError
from darkroom.core.files import safe_name, write_text
from darkroom.options.imports.report import Imported

CONFIG, PROMPTS, REPORT = "config.toml", "prompts.json", "import_report.md"
DATASETS = {True: "datasets.toml", False: "datasets.json"}


def choose_folder(folder_name: str | None, name: str, cwd: Path) -> Path:
    """The folder to write into: the folder_name one, else a new environment in `config/`.

    Raises ConfigError when the folder_name one already holds a config; what was imported before is never overwritten.
    """
    if folder_name is not None:
        folder = cwd / Path(folder_name).expanduser()
        if (folder / CONFIG).exists():
            problem = f"There is a {CONFIG} in it already."
            raise ConfigError("-o", folder_name, "command line", problem, "Name another folder, or delete that file.")
        return folder
    plain = safe_name(name)
    taken = (cwd / "config" / (plain if number == 1 else f"{plain}-{number}") for number in range(1, 10_000))
    return next(folder for folder in taken if not (folder / CONFIG).exists())


def write(imported: Imported, folder: Path, cwd: Path) -> tuple[Imported, list[Path]]:
    """Write config, dataset file, prompts and report. Returns what was written, the config first, and its paths."""
    settings = dict(imported.settings)
    files: dict[Path, str] = {}
    if imported.datasets is not None:
        is_text = isinstance(imported.datasets, str)
        settings["data_backend_config"] = _relative(folder / DATASETS[is_text], cwd)
        entries = imported.datasets if isinstance(imported.datasets, str) else _as_json(imported.datasets)
        files[folder / DATASETS[is_text]] = entries
    if imported.prompts:
        settings["user_prompt_library"] = _relative(folder / PROMPTS, cwd)
        files[folder / PROMPTS] = _as_json(imported.prompts)
    command = imported.command.replace("{config}", _relative(folder / CONFIG, cwd))
    written = dataclasses.replace(imported, settings=settings, command=command)
    head = f"# Imported from {imported.program}: {imported.subject}. {REPORT} beside it says what became of each key.\n"
    files = {folder / CONFIG: head + as_toml(settings), **files, folder / REPORT: written.as_text()}
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        write_text(path, text)
    return written, list(files)


def _as_json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def as_toml(settings: Mapping[str, object]) -> str:
    """Options as lines of TOML; none of them is a table of tables."""
    return "".join(f"{name} = {_value(value)}\n" for name, value in settings.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False)


def _relative(path: Path, cwd: Path) -> str:
    return str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)
