"""A key that nobody has is an error in every form of a config, and the answer names the nearest one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from darkroom.core.errors import ConfigErrors
from darkroom.options.config import every_option, option_names
from darkroom.options.origins import ORIGINS
from darkroom.options.sources import resolve
from tests.rows import each_row

NEEDED = {"model_family": "flux", "data_backend_config": "d.json"}
KNOWN = {*option_names(), *(name for origin in ORIGINS.values() for row in origin.foreign for name in row.keys)}


def misspell(name: str, how: int) -> str:
    """A slip of the fingers: a letter left out, doubled, exchanged with the next, or replaced."""
    place = random.Random(f"{name}{how}").randrange(1, len(name) - 2)
    head, one, two, tail = name[:place], name[place], name[place + 1], name[place + 2 :]
    return (head + two + tail, head + one + one + two + tail, head + two + one + tail, head + "q" + two + tail)[how % 4]


LONG = [info.name for info in every_option() if len(info.name) >= 8]
CASES = [
    (wrong, name)
    for number, name in enumerate(random.Random(16).sample(LONG, min(len(LONG), 220)))
    if (wrong := misspell(name, number)) not in KNOWN and "__" not in wrong
]


def by_json(folder: Path, name: str) -> list[str]:
    (folder / "config.json").write_text(json.dumps({**NEEDED, name: 1}))
    return ["config.json"]


def by_dashed_json(folder: Path, name: str) -> list[str]:
    (folder / "config.json").write_text(json.dumps({f"--{key}": value for key, value in {**NEEDED, name: 1}.items()}))
    return ["config.json"]


def by_toml(folder: Path, name: str) -> list[str]:
    (folder / "config.toml").write_text("\n".join(f'{key} = "{value}"' for key, value in {**NEEDED, name: 1}.items()))
    return ["config.toml"]


def by_env_file(folder: Path, name: str) -> list[str]:
    lines = [f"{key.upper()}={value}" for key, value in {**NEEDED, name: 1}.items()]
    (folder / "config.env").write_text("\n".join(lines))
    return ["config.env"]


def by_extra_arguments(folder: Path, name: str) -> list[str]:
    (folder / "config.env").write_text(f"MODEL_FAMILY=flux\nDATALOADER_CONFIG=d\nTRAINER_EXTRA_ARGS='--{name} 1'")
    return ["config.env"]


def by_command_line(folder: Path, name: str) -> list[str]:
    return [*(f"--{key}={value}" for key, value in NEEDED.items()), f"--{name}", "1"]


def by_key_value(folder: Path, name: str) -> list[str]:
    return [*(f"{key}={value}" for key, value in NEEDED.items()), f"{name}=1"]


FORMS: tuple[Callable[[Path, str], list[str]], ...] = (
    by_json, by_dashed_json, by_toml, by_env_file, by_extra_arguments, by_command_line, by_key_value,
)  # fmt: skip


def test_there_are_two_hundred():
    assert len(CASES) >= 200


@each_row("number", range(len(CASES)))
def test_a_misspelt_key_is_an_error_that_names_the_nearest(number, tmp_path):
    wrong, meant = CASES[number]
    with pytest.raises(ConfigErrors) as caught:
        resolve(FORMS[number % len(FORMS)](tmp_path, wrong), {}, tmp_path)
    [error] = [e for e in caught.value.errors if e.option.lower() == wrong]
    assert "did you mean" in error.problem
    assert meant in error.problem


@each_row("number", range(0, len(CASES), 10))
def test_a_misspelt_variable_of_the_environment_is_noted_with_the_nearest(number, tmp_path):
    wrong, meant = CASES[number]
    words = [f"--{key}={value}" for key, value in NEEDED.items()]
    notes = resolve(words, {f"DARKROOM_{wrong.upper()}": "1"}, tmp_path).notes
    assert any(f"DARKROOM_{meant.upper()}" in note.reason for note in notes)


def test_a_misspelt_key_of_simpletuner_names_that_key(tmp_path):
    with pytest.raises(ConfigErrors) as caught:
        resolve(by_json(tmp_path, "context_paralel_size"), {}, tmp_path)
    assert "context_parallel_size" in str(caught.value)
