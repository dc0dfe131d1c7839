"""The text of a dataset file as a document: JSON, or TOML by its ending. Every way it can fail is a DataError."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from darkroom.core.errors import DataError
from darkroom.core.text import ESCAPES, TOML_ESCAPES

Values = dict[str, Any]
"""An entry as it was written, any JSON under its keys, until the model of its kind has checked it."""

REMEDY = "Point data_backend_config to a JSON file that holds an array of dataset entries; see docs/datasets.md."


def document(path: Path) -> object:
    """What the file holds. Raises DataError naming the file and, where it is malformed, the place."""
    text = _text(path)
    twice: list[str] = []

    def collect(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        values = dict(pairs)
        if len(values) < len(keys):  # keys that start with an underscore are comments
            duplicates = dict.fromkeys(key for key in keys if keys.count(key) > 1 and not key.startswith("_"))
            entry_name = f" of dataset '{values['id']}'" if isinstance(values.get("id"), str) else ""
            twice.extend(f"'{key}'{entry_name}" for key in duplicates)
        return values

    try:
        if path.suffix.lower() == ".toml":
            return tomllib.loads(text)
        parsed = json.loads(text, object_pairs_hook=collect)
    except RecursionError as cause:
        raise DataError(f"The dataset file {path} is nested too deeply.\n  {REMEDY}") from cause
    except json.JSONDecodeError as cause:
        remedy = ESCAPES if "escape" in cause.msg else "JSON allows neither comments nor a comma after the last item."
        raise DataError(
            f"The dataset file {path} is not valid JSON: {cause.msg} in line {cause.lineno}, column "
            f"{cause.colno}.\n  {remedy}"
        ) from cause
    except tomllib.TOMLDecodeError as cause:
        remedy = TOML_ESCAPES if "\\" in str(cause) else "Texts are quoted and true is lower case."
        raise DataError(f"The dataset file {path} is not valid TOML: {cause}.\n  {remedy}") from cause
    except ValueError as cause:  # a number of thousands of digits
        raise DataError(f"The dataset file {path} cannot be read: {cause}.\n  Correct the number.") from cause
    if twice:
        raise DataError(
            f"The dataset file {path} has a key twice in one object: {', '.join(twice)}.\n"
            "  Leave each key once; which of the two counts is not for us to guess."
        )
    return parsed


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as cause:
        raise DataError(f"The dataset file {path} does not exist.\n  {REMEDY}") from cause
    except UnicodeDecodeError as cause:
        raise DataError(
            f"The dataset file {path} is not UTF-8 text (byte {cause.start}).\n  Save it as UTF-8."
        ) from cause
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the path
        reason = getattr(cause, "strerror", None) or cause
        raise DataError(f"The dataset file {path} cannot be read: {reason}.\n  {REMEDY}") from cause
