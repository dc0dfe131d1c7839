"""Config files as pairs of names and values: JSON, TOML, and lines of NAME=value."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from darkroom.core.text import ESCAPES, TOML_ESCAPES, split_lines, strip_last_commas
from darkroom.options.config import option_names

FORMATS = ("json", "toml", "env")
Pairs = list[tuple[str, object]]


def plain_name(key: str) -> str:
    """The option name in `--learning-rate`, `learning_rate` or `--learning_rate`."""
    return key.strip().lstrip("-").replace("-", "_")


def lower_first(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


class MalformedError(Exception):
    """A file that cannot be understood: what is wrong, and what to change."""

    def __init__(self, problem: str, change: str):
        self.problem, self.change = problem, change
        super().__init__(problem)


def read_json(path: Path) -> tuple[Pairs, list[str]]:
    """The pairs of a flat JSON object, in order, and the keys that stand in it twice."""
    twice: list[str] = []

    def collect(pairs: Pairs) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        twice.extend(key for key in dict.fromkeys(keys) if keys.count(key) > 1)
        return dict(pairs)

    text = read_utf8(path)
    if not text.strip():
        raise MalformedError("The file is empty.", 'Write { "option": value, ... }.')
    try:
        document = json.loads(strip_last_commas(text), object_pairs_hook=collect)
    except RecursionError:
        raise MalformedError("The file is nested too deeply.", 'Write { "option": value, ... }.') from None
    except json.JSONDecodeError as wrong:
        problem = f"Line {wrong.lineno}, column {wrong.colno}: {lower_first(wrong.msg)}."
        change = "Correct it; JSON has double quotes, no comments, and a comma between two entries."
        raise MalformedError(problem, ESCAPES if "escape" in wrong.msg else change) from None
    except ValueError as wrong:  # a number of thousands of digits
        raise MalformedError(f"{wrong}.", "Correct the number.") from None
    if not isinstance(document, dict):
        raise MalformedError("The file does not hold an object.", 'Write { "option": value, ... }.')
    return list(document.items()), twice


def read_toml(path: Path) -> tuple[Pairs, list[str]]:
    """The pairs of a TOML file with its sections flattened, and the keys that stand in several sections."""
    try:
        document = tomllib.loads(read_utf8(path))
        pairs = _flatten(document)
    except RecursionError:
        raise MalformedError("The file is nested too deeply.", "Write lines as option = value.") from None
    except tomllib.TOMLDecodeError as wrong:
        match = re.search(r"\(at line (\d+), column (\d+)\)", str(wrong))
        position = f"Line {match[1]}, column {match[2]}: " if match else ""
        problem = re.sub(r"\s*\(at .*\)$", "", str(wrong))
        change = "Correct it; in TOML texts are quoted and true is lower case."
        raise MalformedError(
            f"{position}{lower_first(problem) if position else problem}.", TOML_ESCAPES if "\\" in problem else change
        ) from None
    except ValueError as wrong:  # a number of thousands of digits, a date that is none
        raise MalformedError(f"{wrong}.", "Correct the value.") from None
    keys = [plain_name(key) for key, _ in pairs]
    return pairs, [key for key in dict.fromkeys(keys) if keys.count(key) > 1]


def _flatten(table: Mapping[str, object]) -> Pairs:
    """Sections mean nothing: their entries count as if they stood at the top."""
    pairs: Pairs = []
    for key, value in table.items():
        info = option_names().get(plain_name(key))
        if isinstance(value, dict) and not (info is not None and info.json):
            pairs += _flatten(value)
        else:
            pairs.append((key, value))
    return pairs


def read_utf8(path: Path) -> str:
    """A text file. Raises MalformedError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise MalformedError(f"The file is not UTF-8 text (byte {wrong.start}).", "Save it as UTF-8.") from None
    except OSError as wrong:
        raise MalformedError(f"The file cannot be read: {wrong.strerror}.", "Check its permissions.") from None


def parse_env_file(text: str) -> dict[str, str]:
    """`KEY=value` lines with comments, `export`, quotes, and `KEY+=value` to append. Later lines win."""
    variables: dict[str, str] = {}
    for number, line in enumerate(split_lines(text), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.match(r"^(?:export\s+)?([A-Za-z_]\w*)\s*(\+?=)\s*(.*)$", line)
        if match is None:
            raise MalformedError(f"Line {number}: this is not NAME=value.", "Write lines as NAME=value.")
        name, sign, value = match[1], match[2], _unquote(match[3])
        variables[name] = f"{variables[name]} {value}" if sign == "+=" and variables.get(name) else value
    return variables


def _unquote(text: str) -> str:
    """The value without its quotes, or up to a comment when it has none."""
    if text[:1] in ("'", '"'):
        end = text.find(text[0], 1)
        while end > 0 and text[0] == '"' and text[end - 1] == "\\":
            end = text.find('"', end + 1)
        if end > 0:
            inner = text[1:end]
            return re.sub(r'\\(["\\$`])', r"\1", inner) if text[0] == '"' else inner
    return re.split(r"\s+#", text, maxsplit=1)[0].strip()
