"""Who may import whom, and what must stay cheap to import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import darkroom
from darkroom import families
from tests.rows import each_row

pytestmark = pytest.mark.smoke

ROOT = Path(darkroom.__file__).parent
SIBLINGS = {"families", "pretrained", "data", "adapters", "optim", "memory", "report", "publish"}
BELOW_TOOLS = SIBLINGS | {"core", "options", "media", "storage", "diffusion", "objectives", "validate"}
EVERYTHING = BELOW_TOOLS | {"train", "tools", "job", "demo", "cli"}

# a folder, and the folders or modules that it may import besides itself
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "options": {"core"},
    "media": {"core"},
    "demo": {"core"},
    "diffusion": {"core"},
    "families": {"core", "options", "diffusion"},
    "pretrained": {"core", "options", "families"},
    "storage": {"core", "options"},
    "data": {"core", "options", "media", "storage"},
    "adapters": {"core", "options"},
    "optim": {"core", "options"},
    "memory": {"core", "options"},
    "report": {"core", "options"},
    "publish": {"core", "options"},
    "objectives": {"core", "options", "diffusion", "families.base", "families.shared.conditioning"},
    "validate": {"core", "options", "media", "diffusion", "families", "pretrained"},
    # adapters.base: a checkpoint is the adapter's own files, written with the adapter's own writer
    "train": {"core", "options", "objectives", "optim", "memory", "data.batches.batch", "adapters.base"},
    # train.checkpoint: verify and self-test ask whether a folder is whole; train.distributed: verify draws in the
    # precision of the run; job.train and cli.common: self-test starts runs as a person does
    "tools": BELOW_TOOLS | {"train.checkpoint", "train.distributed", "job.train", "cli.common"},
    "job": EVERYTHING - {"cli"},
    "cli": {"core", "options"},
    "__main__": {"cli"},
}
# a command may import the rest when it runs, and families is as cheap as options
ALLOWED_INSIDE_COMMANDS = EVERYTHING
CHEAP = {"families"}


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def folder_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(nodes: list[ast.stmt], inside: bool = False) -> Iterator[tuple[str, bool]]:
    """(module of darkroom without the package's name, is it inside a function) of every import but those for types."""
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imported(node.orelse, inside)
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import", inside
        elif isinstance(node, ast.ImportFrom) and node.module == "darkroom":
            yield from ((alias.name, inside) for alias in node.names if not alias.name.startswith("__"))
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("darkroom."):
            # what is named may be a module of its own
            base = str(node.module).removeprefix("darkroom.")
            yield from ((f"{base}.{alias.name}", inside) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("darkroom.")]
            yield from ((name.removeprefix("darkroom."), inside) for name in names)
        deeper = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for field in ("body", "orelse", "finalbody"):
            yield from imported(getattr(node, field, []), deeper)
        for handler in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
            yield from imported(handler.body, deeper)


def permits(allowed: set[str], module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


@each_row("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_imports_only_what_its_folder_may(path):
    folder = folder_of(path)
    always = ALLOWED[folder] | {folder} | (CHEAP if folder == "cli" else set())
    inside_functions = always | (ALLOWED_INSIDE_COMMANDS if folder == "cli" else set())

    found = imported(ast.parse(path.read_text(encoding="utf-8")).body)

    wrong = [module for module, inside in found if not permits(inside_functions if inside else always, module)]
    assert not wrong, f"{folder} must not import {', '.join(wrong)}"


def test_every_folder_has_a_row():
    folders = {folder_of(path) for path in modules()}

    assert folders == ALLOWED.keys()


def test_the_walk_sees_every_kind_of_import():
    text = """
import darkroom.job.train
from darkroom import families, __version__
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from darkroom.train.step import Stepper
try:
    from darkroom.data import plan
except ImportError:
    import darkroom.tools
class A:
    def f(self):
        with self:
            from darkroom.core.log import redact
"""

    assert set(imported(ast.parse(text).body)) == {
        ("job.train", False), ("families", False), ("data.plan", False), ("tools", False), ("core.log.redact", True),
    }  # fmt: skip


HEAVY = "sys.exit(', '.join(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules))) or 0)"
CHEAP_CODE = {
    "core and options": "import darkroom.core.files, darkroom.core.log, darkroom.options.config",
    "every family": "from darkroom import families; [families.get(n).spec.defaults for n in families.names()]",
    "the import of the program": "import darkroom.cli.main",
    "darkroom --help": "from darkroom.cli.main import main; main(['--help'])",
    "darkroom options": "from darkroom.cli.main import main; main(['options'])",
    "darkroom families": "from darkroom.cli.main import main; main(['families'])",
    "every command's own import": (
        "import importlib; from darkroom.cli.main import COMMANDS; "
        "[importlib.import_module(c.path) for c in COMMANDS.values()]"
    ),
}


@pytest.mark.parametrize("code", CHEAP_CODE.values(), ids=CHEAP_CODE.keys())
def test_it_costs_no_torch(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; {HEAVY}"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


# options say to whom they belong; the demo and the self-test train one model
MAY_NAME_A_FAMILY = ("options/", "job/demo.py", "cli/selftest.py")


def named_families(tree: ast.Module) -> set[str]:
    """The families that texts of a module name, docstrings aside."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, owners) and node.body]
    docstrings = {id(node.value) for node in first if isinstance(node, ast.Expr)}
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    words = {word for text in texts if isinstance(text.value, str) for word in re.findall(r"\w+", text.value)}
    return words & set(families.names())


def test_nothing_but_declarations_names_a_family():
    paths = [path for path in modules() if folder_of(path) != "families"]
    named = {
        str(path.relative_to(ROOT)) for path in paths if named_families(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {place for place in named if not place.startswith(MAY_NAME_A_FAMILY)} == set()
    assert "options/families.py" in named
