"""Where the config file is that a command line or the environment asks for."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from darkroom.core.errors import ConfigError
from darkroom.core.files import expand_home, is_file
from darkroom.options.command_line import COMMAND_LINE, Arguments
from darkroom.options.config_files import FORMATS


def find_config(line: Arguments, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """The config file that the command line or the environment asks for, or the usual one, or None.

    Raises ConfigError naming every path that was tried when one was asked for and is not there.
    """
    format_name = _first(environ, "CONFIG_BACKEND", "CONFIG_TYPE")
    formats = (format_name,) if format_name in FORMATS else FORMATS
    if line.config is not None:
        return _find_named(line.config, "command line", formats, cwd)
    if line.example is not None:
        return _find_example(line.example.removeprefix("examples/"), formats, cwd)
    if line.environment is not None:
        return _find_environment(line.environment, "command line", formats, cwd)
    if format_name == "cmd":
        return None
    if environ.get("CONFIG_PATH"):
        return _find_named(environ["CONFIG_PATH"], "environment CONFIG_PATH", formats, cwd)
    for variable in ("DARKROOM_ENVIRONMENT", "DARKROOM_ENV", "SIMPLETUNER_ENVIRONMENT", "SIMPLETUNER_ENV"):
        if environ.get(variable):
            return _find_environment(environ[variable], f"environment {variable}", formats, cwd)
    # ENV is a common name for other things, so it counts only when it names an environment that exists
    folders = [cwd / "config" / environ["ENV"]] if environ.get("ENV") else []
    return _find_existing([folder / f"config.{f}" for folder in [*folders, cwd, cwd / "config"] for f in formats])


def _find_named(name: str, source: str, formats: Sequence[str], cwd: Path) -> Path:
    """A file, a folder, a file without its ending, or the name of an environment."""
    path = cwd / expand_home(name)
    if is_file(path):
        if path.suffix.lstrip(".") in FORMATS:
            return path
        problem, change = (
            f"{path.name} is none of the kinds of config that can be read.",
            "Give a .json, .toml or .env file.",
        )
        if path.suffix in (".yaml", ".yml"):
            change += f" For a job of ai-toolkit: darkroom import ai-toolkit {name}"
        raise ConfigError("CONFIG", name, source, problem, change)
    tried = [path / f"config.{f}" for f in formats]
    tried += [path.with_name(f"{path.name}.{f}") for f in formats] if path.name else []
    tried += _environment_paths(name, formats, cwd)
    return _require(name, source, [path, *tried])


def _find_environment(name: str, source: str, formats: Sequence[str], cwd: Path) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9._/-]+", name):
        raise ConfigError("env", name, source, "This is no name of an environment.", "Use letters, digits, . _ and -.")
    return _require(name, source, _environment_paths(name, formats, cwd))


def _environment_paths(name: str, formats: Sequence[str], cwd: Path) -> list[Path]:
    name = name.removesuffix(".json")
    folders = [cwd / "config" / name]
    if name.startswith("examples/"):
        folders += [folder / name.removeprefix("examples/") for folder in example_folders(cwd)]
    return [folder / f"config.{f}" for folder in folders for f in formats]


def _find_example(name: str, formats: Sequence[str], cwd: Path) -> Path:
    """The config of one of SimpleTuner's examples."""
    tried = [folder / name / f"config.{f}" for folder in example_folders(cwd) for f in formats]
    return _require(name, COMMAND_LINE, tried)


def example_folders(cwd: Path, config: Path | None = None) -> list[Path]:
    """Where SimpleTuner's examples may be: its folder of configs, a checkout, beside the config, its package."""
    folders = [cwd / "config/examples", cwd / "examples", cwd / "simpletuner/examples"]
    if config is not None:
        folders.append(config.parent.parent)
    package = importlib.util.find_spec("simpletuner")
    places = package.submodule_search_locations if package is not None else None
    return folders + [Path(place) / "examples" for place in places or ()]


def _require(name: str, source: str, tried: Sequence[Path]) -> Path:
    existing = _find_existing(tried)
    if existing is None:
        listed = "".join(f"\n    {path}" for path in dict.fromkeys(tried))
        problem = f"There is no such config. These were tried:{listed}"
        raise ConfigError("CONFIG", name, source, problem, "Give a .json, .toml or .env file, or a folder in config/.")
    return existing


def _find_existing(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if is_file(path)), None)


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    for name in names:
        for prefix in ("DARKROOM_", "SIMPLETUNER_", ""):
            if environ.get(prefix + name):
                return environ[prefix + name].strip().lower()
    return None
