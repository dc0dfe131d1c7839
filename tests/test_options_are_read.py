"""Every option is read by code outside its declaration, or marked pending and refused."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import darkroom
from darkroom.options.config import every_option

pytestmark = pytest.mark.smoke

PACKAGE = Path(darkroom.__file__).parent
# read while settings are resolved, before anything else runs
READ_BY_THE_READERS = frozenset({"strict", "ignore_unsupported", "defaults"})


def names_read() -> set[str]:
    """Attribute names and texts in the package's code, declarations apart."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "options":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_every_option_is_read_or_marked_pending():
    read = names_read() | READ_BY_THE_READERS
    assert [info.name for info in every_option() if info.name not in read and not info.pending] == []
