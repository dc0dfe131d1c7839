"""Which families the slow tests prove: those that changed since the table was written, and an eighth of the rest.

A test marked `each_family` is there for several families, by its argument `name`, `family` or `fault`. Of it are run

    every family whose code is not the one that docs/conformance.md was written with
    an eighth of the others, another one with every commit
    all of them, where a test is asked for by `-k` or its name, with `-m proof`, in `make proofs`, and without git
"""

from __future__ import annotations

import ast
import functools
import io
import os
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

from darkroom import families
from darkroom.core.files import digest
from darkroom.families.modules import HOMES

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "conformance.md"
PARTS = 8
# everything reads these, and the tests of every day read all of them
EVERYWHERE = ("core", "options")
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
# for a case that another family shows in every run
IN_TURN = (pytest.mark.slow, pytest.mark.each_family)


def code_of(name: str) -> str:
    """A hash of a family's file, of its faults, and of what they import: `core`, `options` and all comments aside."""
    own = [ROOT / "tests" / "families" / path for path in ("conformance.py", f"faults/{name}.py")]
    files = sorted({*reached(f"families.{name}"), *(path for path in own if path.exists())})
    return digest([(str(path.relative_to(ROOT)), spoken(path.read_text(encoding="utf-8"))) for path in files])[:8]


def spoken(text: str) -> str:
    """What a file says to Python: without comments, docstrings and the space between."""
    found: list[str] = []
    begins = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in SILENT:
            begins = begins or token.type not in (tokenize.COMMENT, tokenize.NL)
        elif begins and token.type == tokenize.STRING:
            begins = False
        else:
            found.append(token.string)
            begins = False
    return "".join(found)


def reached(module: str) -> set[Path]:
    """The files of a module of darkroom, and of all modules that it imports or names."""
    found: set[Path] = set()
    left = [file_of(module)]
    while left:
        path = left.pop()
        if path is not None and path not in found:
            found.add(path)
            left += [file_of(name) for name in named(path) if not name.startswith(EVERYWHERE)]
    return found


@functools.cache
def named(path: Path) -> set[str]:
    """What a file names of darkroom, without the package's name: imports, modules as text, and networks of our own."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    paths = [f"{node.module}.{alias.name}" for node in imports for alias in node.names]
    found = {name for text in [*paths, *texts] for name in re.findall(r"^darkroom\.([\w.]+)", text)}
    return found | {f"families.modules.{HOMES[text]}" for text in texts if text in HOMES}


def file_of(name: str) -> Path | None:
    """The file of the module that is named, or whose class or function is."""
    while name:
        path = ROOT / "darkroom" / name.replace(".", "/")
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file
        name = name.rpartition(".")[0]
    return None


def proven(table: str) -> dict[str, str]:
    """By family, the code that the rows of the table were written with; families with a row without are left out."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    head = next((row for row in lines if row[0] == "family, flavour"), [])
    if "code" not in head:
        return {}
    at = head.index("code")
    codes: dict[str, set[str]] = {}
    for row in lines[lines.index(head) + 1 :]:
        codes.setdefault(row[0].split()[0], set()).add(row[at] if len(row) > at else "")
    return {name: found.pop() for name, found in codes.items() if len(found) == 1}


def number_of_commits() -> int | None:
    """Of the checkout; None without git or without its history."""
    asked = ["git", "-C", str(ROOT), "rev-list", "--count", "HEAD"]
    try:
        return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return None


def due(names: list[str], changed: set[str], commits: int | None) -> tuple[set[str], str]:
    """(families to prove, a sentence that says which and why)."""
    if commits is None:
        return set(names), f"proofs of all {len(names)} families: git does not say which eighth is due"
    rest = [name for name in names if name not in changed]
    turn = commits % PARTS
    eighth = {name for number, name in enumerate(names) if number % PARTS == turn and name in rest}
    if changed == set(names):
        return (
            changed,
            f"proofs of all {len(names)} families: docs/conformance.md knows another code of each",
        )
    since = f"changed since docs/conformance.md: {', '.join(sorted(changed)) or 'none'}"
    others = f"of the rest by {commits} commits eighth {turn + 1} of {PARTS}: {', '.join(sorted(eighth)) or 'none'}"
    return changed | eighth, f"proofs of families {since}; {others}; `make proofs` shows all"


@functools.cache
def today() -> tuple[set[str], str]:
    """What is due in this checkout."""
    names = sorted(families.names())
    known = proven(TABLE.read_text(encoding="utf-8"))
    return due(names, {name for name in names if known.get(name) != code_of(name)}, number_of_commits())


def shows_all(config: pytest.Config) -> bool:
    """Does somebody ask for certain tests, or for all of them?"""
    asked = config.option.keyword or any("::" in argument for argument in config.args)
    return bool(asked or "CONFORMANCE_TABLE" in os.environ or re.search(r"(?<!not )\bproof", config.option.markexpr))


def family_of(item: pytest.Function) -> str:
    """The family that an item proves something of."""
    arguments = item.callspec.params
    return arguments["fault"].family if "fault" in arguments else arguments.get("family") or arguments["name"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which families were proven, where slow tests were."""
    if not shows_all(config) and re.search(r"(?<!not )\bslow", config.option.markexpr):
        terminalreporter.write_line(today()[1])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep of each family's proofs those that are due."""
    marked = [item for item in items if isinstance(item, pytest.Function) and item.get_closest_marker("each_family")]
    if not marked or shows_all(config):
        return
    left_out = [item for item in marked if family_of(item) not in today()[0]]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
