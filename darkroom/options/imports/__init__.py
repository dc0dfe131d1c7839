"""Configs of other trainers, read into Darkroom's: one file or folder for each program, and what they share.

    imported = find_program("musubi").read(["wan_train_network.py", "--task", "t2v-14B"], Path.cwd())

A program is a module with `TITLE`, `USAGE` and `read(words, cwd) -> Imported`; its row is below. `report.py` has what
all of them answer, `writer.py` writes it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from darkroom.core.errors import missing_option
from darkroom.core.registry import find_nearest
from darkroom.options.imports.report import Imported

PROGRAMS: Mapping[str, str] = {
    "simpletuner": "darkroom.options.imports.simpletuner",
    "musubi": "darkroom.options.imports.musubi.program",
    "kohya": "darkroom.options.imports.kohya",
    "ai-toolkit": "darkroom.options.imports.ai_toolkit",
    "onetrainer": "darkroom.options.imports.onetrainer",
    "diffusion-pipe": "darkroom.options.imports.diffusion_pipe",
    "diffusers": "darkroom.options.imports.diffusers_scripts",
}
"""Programs by the word that `darkroom import` takes, and the modules that read them."""


class Program(Protocol):
    """A module that reads the configs of one program."""

    TITLE: str
    USAGE: str

    def read(self, words: Sequence[str], cwd: Path) -> Imported:
        """What the words after the program's name ask for. Raises ConfigErrors for what cannot be read."""
        ...


def find_program(name: str) -> Program:
    """The program called `name`. Raises ConfigError with the nearest names."""
    plain = name.lower().replace("_", "-").removesuffix("-tuner")
    plain = {"sd-scripts": "kohya", "aitoolkit": "ai-toolkit", "diffusionpipe": "diffusion-pipe"}.get(plain, plain)
    if plain not in PROGRAMS:
        hint = find_nearest(plain, PROGRAMS) or list(PROGRAMS)
        raise missing_option(name, "Configs of this program are not read.", f"Choose one of: {', '.join(hint)}.")
    return cast(Program, importlib.import_module(PROGRAMS[plain]))
