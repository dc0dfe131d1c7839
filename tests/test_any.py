"""Any stands nowhere but where nothing else can: mypy forbids it in the other folders, and here in all of them."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "darkroom"
EXCEPTIONS = {
    "memory/ledger.py": 1,  # the arguments of an operator are what its schema says
    "options/datasets/document.py": 1,  # a dataset entry before its model has checked it
    "options/field.py": 5,  # a declaration stands for a value of the option's own type
}
WRAPPERS = ("families/", "pretrained/")
"""Folders around classes of diffusers and transformers, whose own annotations are few."""


def test_no_module_names_any_but_the_listed_ones() -> None:
    counts = Counter(
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "Any"
    )
    found = {name: count for name, count in counts.items() if not name.startswith(WRAPPERS)}

    assert found == EXCEPTIONS
