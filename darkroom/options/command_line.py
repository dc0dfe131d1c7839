"""A command line of options, taken apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from darkroom.core.errors import ConfigError, missing_option
from darkroom.options.config import option_names
from darkroom.options.config_files import plain_name
from darkroom.options.imports.musubi.arguments import find_option
from darkroom.options.imports.musubi.options import LISTS, SWITCHES

COMMAND_LINE = "command line"
TRUE_WORDS = frozenset({"true", "yes", "on", "1", "y", "t"})
FALSE_WORDS = frozenset({"false", "no", "off", "0", "n", "f"})


@dataclass
class Arguments:
    """A command line taken apart."""

    config: str | None = None  # the positional argument or --config_file
    environment: str | None = None  # --env
    example: str | None = None  # --example
    pairs: list[tuple[str, object]] = field(default_factory=list)
    errors: list[ConfigError] = field(default_factory=list)


def parse_arguments(argv: Sequence[str], source: str = COMMAND_LINE) -> Arguments:
    """Take `[CONFIG] [--env NAME] [--flag] [--option VALUE] [--option=VALUE] [key=value]` apart."""
    line = Arguments()
    words = list(argv)
    while words:
        word = words.pop(0)
        if word.startswith("--") and len(word) > 2:
            _parse_option(line, word[2:], words, source)
        elif re.match(r"^[A-Za-z_][\w-]*=", word):
            key, _, value = word.partition("=")
            _add_pair(line, key, value, source)
        elif word == "-e" and words:
            line.environment = words.pop(0)
        elif word.startswith("-"):
            problem = "This is not understood."
            line.errors.append(ConfigError("argument", word, source, problem, "Write --OPTION VALUE."))
        elif line.config is None:
            line.config = word
        else:
            problem = f"A config was already given: {line.config}."
            line.errors.append(ConfigError("CONFIG", word, source, problem, "Give one, and options as --OPTION VALUE."))
    return line


def _parse_option(line: Arguments, text: str, words: list[str], source: str) -> None:
    """One `--option`, taking its value from `words` when it stands there."""
    key, equals, value = text.partition("=")
    if equals:
        _add_pair(line, key, value, source)
        return
    info = option_names().get(plain_name(key))
    following = words[0] if words else None
    if (info is not None and info.kind == "bool") or find_option(key) in SWITCHES:
        if following is not None and following.lower() in TRUE_WORDS | FALSE_WORDS:
            value = words.pop(0)
        _add_pair(line, key, value or "true", source)
        return
    if following is None or following.startswith("--"):
        if info is None and plain_name(key) not in ("env", "example", "config_file"):
            _add_pair(line, key, "true", source)
        else:
            change = f"Write --{key} VALUE."
            line.errors.append(missing_option(f"--{key}", "It needs a value and none follows.", change))
        return
    if find_option(key) in LISTS and info is None:
        line.pairs.append((key, _take_words(words)))
        return
    _add_pair(line, key, words.pop(0), source)


def _take_words(words: list[str]) -> list[str]:
    """Every word up to the next option: the value of a list of musubi-tuner's."""
    taken = []
    while words and not words[0].startswith("--"):
        taken.append(words.pop(0))
    return taken


def _add_pair(line: Arguments, key: str, value: str, source: str) -> None:
    name = plain_name(key)
    if name in ("env", "environment"):
        line.environment = value
    elif name == "example":
        line.example = value
    elif name == "config_file":
        if line.config is not None:
            problem = f"A config was already given: {line.config}."
            line.errors.append(ConfigError("config_file", value, source, problem, "Give only one of them."))
        line.config = value
    else:
        line.pairs.append((key, value))
