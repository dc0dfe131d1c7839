"""The text of a dataset file as a document: JSON, or TOML by its ending. Every way it can fail is a DataError."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from darkroom.core.errors import DataError

REMEDY = "Point data_backend_config to a JSON file that holds an array of dataset entries; see docs/datasets.md."


def document(path: Path) -> Any:
    """What the file holds. Raises DataError naming the file and, where it is malformed, the place."""
    text = _text(path)
    try:
        return tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except RecursionError as cause:
        raise DataError(f"The dataset file {path} is nested too deeply.\n  {REMEDY}") from cause
    except json.JSONDecodeError as cause:
        raise DataError(
            f"The dataset file {path} is not valid JSON: {cause.msg} in line {cause.lineno}, column "
            f"{cause.colno}.\n  JSON allows neither comments nor a comma after the last item."
        ) from cause
    except tomllib.TOMLDecodeError as cause:
        raise DataError(
            f"The dataset file {path} is not valid TOML: {cause}.\n  Texts are quoted and true is lower case."
        ) from cause


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as cause:
        raise DataError(f"The dataset file {path} does not exist.\n  {REMEDY}") from cause
    except UnicodeDecodeError as cause:
        raise DataError(
            f"The dataset file {path} is not UTF-8 text (byte {cause.start}).\n  Save it as UTF-8."
        ) from cause
    except OSError as cause:
        raise DataError(f"The dataset file {path} cannot be read: {cause.strerror}.\n  {REMEDY}") from cause
