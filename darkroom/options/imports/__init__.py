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

SIGNS: Mapping[str, frozenset[str]] = {
    "ai-toolkit": frozenset({"job", "config"}),
    "onetrainer": frozenset({"training_method", "base_model_name", "workspace_dir", "concept_file_name"}),
    "diffusion-pipe": frozenset({"micro_batch_size_per_gpu", "pipeline_stages", "epochs", "activation_checkpointing"}),
    "kohya": frozenset({"min_snr_gamma", "unet_lr", "network_train_unet_only", "clip_skip", "cache_latents",
                        "cache_latents_to_disk", "train_data_dir", "enable_bucket"}),
}  # fmt: skip
"""Keys at the top of a config that are a program's own: two of them tell whose it is."""


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


def refuse_foreign(document: Mapping[str, object], name: str) -> None:
    """Raises ConfigError for a config of a program whose configs are imported and not read as they are."""
    keys = set(document) | {key for table in document.values() if isinstance(table, Mapping) for key in table}
    for program, signs in SIGNS.items():
        if len(signs & keys) >= 2:
            title = find_program(program).TITLE
            change = f"Make one of Darkroom's of it: darkroom import {program} {name}"
            raise missing_option("CONFIG", f"'{name}' is a config of {title}.", change)
