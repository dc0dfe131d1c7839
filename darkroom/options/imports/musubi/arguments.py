"""A command line of musubi-tuner as values by name, read as its scripts read it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from darkroom.core.errors import ConfigError, ConfigErrors, missing_option
from darkroom.core.files import expand_home, is_file
from darkroom.core.registry import find_nearest
from darkroom.options.imports.musubi.options import ALIASES, OPTIONS

TRUE = frozenset({"true", "yes", "on", "1", "y", "t"})
FALSE = frozenset({"false", "no", "off", "0", "n", "f"})
_TAKES_FILES = ("path", "src_path", "dst_path")  # positional arguments of the tools


def find_option(key: str) -> str:
    """The option's name in `--network-dim`, `network_dim` or an alias; empty where there is none."""
    name = key.lstrip("-").replace("-", "_")
    name = ALIASES.get(name, name)
    return name if name in OPTIONS else ""


def split_launcher(words: Sequence[str]) -> list[str]:
    """The words from the script on, without `accelerate launch ...` or `python` before it.

    Raises ConfigError when no script is named.
    """
    words = [word for word in words if word not in ("\\", "^", "`", "\n", "")]
    for position, word in enumerate(words):
        if word.endswith(".py") or (position == 0 and word not in ("accelerate", "python", "python3", "uv")):
            return list(words[position:])
    raise missing_option("SCRIPT", "No script of musubi-tuner is named.", "Write `import musubi wan_train_network.py`.")


def parse(words: Sequence[str]) -> dict[str, object]:
    """`--option value...` as values; lists take every word up to the next option. Later ones win.

    Raises ConfigErrors with every option that there is not, each with the nearest name.
    """
    values: dict[str, object] = {}
    errors: list[ConfigError] = []
    files: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not _is_option(word):
            files.append(word)
            continue
        key, equals, value = word.lstrip("-").partition("=")
        name = find_option(key)
        taken = [value] if equals else _take_values(rest, OPTIONS[name].kind if name else "list")
        if not name:
            errors.append(unknown_option(key, " ".join(taken) or True, "command line"))
            continue
        try:
            values[name] = read_value(name, taken if OPTIONS[name].kind == "list" else (taken[0] if taken else None))
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise ConfigErrors(errors)
    return values | ({"path": files} if files else {})


def read_config_file(name: str, cwd: Path) -> dict[str, object]:
    """The keys of a `--config_file`, tables flattened by one level, as musubi-tuner reads it.

    Raises ConfigErrors for keys that there are not, and ConfigError for a file that cannot be read.
    """
    path = cwd / expand_home(name if name.endswith(".toml") else f"{name}.toml")
    if not is_file(path):
        raise ConfigError("config_file", name, "command line", f"There is no file {path}.", "Correct the path.")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as wrong:
        raise ConfigError("config_file", name, "command line", f"It is not TOML: {wrong}.", "Correct it.") from None
    flat: dict[str, object] = {}
    for key, value in document.items():
        flat |= value if isinstance(value, dict) else {key: value}
    errors = [unknown_option(key, value, path.name) for key, value in flat.items() if not find_option(key)]
    if errors:
        raise ConfigErrors(errors)
    return {find_option(key): read_value(find_option(key), value) for key, value in flat.items()}


def unknown_option(key: str, value: object, source: str) -> ConfigError:
    """The error for an option that musubi-tuner has not."""
    hint = find_nearest(key.replace("-", "_"), OPTIONS)
    problem = "musubi-tuner has no option of this name" + (f"; did you mean {' or '.join(hint)}?" if hint else ".")
    return ConfigError(key, value, source, problem, "Correct the name or take it out.")


def read_value(name: str, value: object, source: str = "command line") -> object:
    """`value` in the type of the option. Raises ConfigError for one that is none of it."""
    kind = OPTIONS[name].kind
    if kind == "switch":
        return _read_switch(name, value, source)
    if value is None:
        raise ConfigError(name, value, source, "It needs a value and none follows.", f"Write --{name} VALUE.")
    if kind == "list":
        return list(value) if isinstance(value, list | tuple) else [value]
    if kind == "text":
        return value if isinstance(value, str | bool) else str(value)
    return _read_number(name, value, kind, source)


def _read_switch(name: str, value: object, source: str) -> bool:
    word = str(value).strip().lower()
    if value is None or value is True or word in TRUE:
        return True
    if value is False or word in FALSE:
        return False
    raise ConfigError(name, value, source, "This switch is true or false.", "Write true or false, or the name alone.")


def _read_number(name: str, value: object, kind: str, source: str) -> int | float:
    text = str(value).strip()
    try:
        if text.endswith("%") and name in ("lr_warmup_steps", "lr_decay_steps"):
            return float(text[:-1]) / 100
        number = float(text)
    except ValueError:
        number = float("nan")
    if isinstance(value, bool) or number != number or (kind == "integer" and not number.is_integer()):
        expected = "a whole number" if kind == "integer" else "a number"
        raise ConfigError(name, value, source, f"This is not {expected}.", f"Write {expected}.")
    is_whole = kind == "integer" or not set(text) & set(".e")
    return int(number) if number.is_integer() and is_whole else number


def _is_option(word: str) -> bool:
    """`--x` and `-i`; a negative number is a value."""
    return bool(re.match(r"^--?[A-Za-z]", word))


def _take_values(rest: list[str], kind: str) -> list[str]:
    """What follows an option: all up to the next one for a list, one word, or for a switch only a truth value."""
    if kind == "switch":
        return [rest.pop(0)] if rest and rest[0].lower() in TRUE | FALSE else []
    taken: list[str] = []
    while rest and not _is_option(rest[0]) and (kind == "list" or not taken):
        taken.append(rest.pop(0))
    return taken


def parse_assignments(name: str, words: Sequence[object], source: str = "command line") -> Mapping[str, str]:
    """`["a=1", "betas=(0.9,0.95)"]` as texts by name. Raises ConfigError for a word that is no assignment."""
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = str(word).partition("=")
        if not equals or not key.strip().isidentifier():
            raise ConfigError(
                name, str(word), source, "This is not name=value.", "Write for example weight_decay=0.01."
            )
        pairs[key.strip()] = value.strip()
    return pairs
