"""Imported commands of musubi-tuner are planned at tiny, all of them, and one of each kind is trained."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom.cli.main import main
from tests.data.test_clips import write_clip
from tests.imports.musubi_commands import CACHING, TRAINING, Command
from tests.rows import each_row

pytestmark = pytest.mark.slow

HEAD = '[general]\nresolution = [64, 64]\ncaption_extension = ".txt"\n[[datasets]]\n'
DATASETS = {
    "images": 'image_directory = "images"',
    "edit": 'image_directory = "images"\ncontrol_directory = "controls"',
    "clips": 'video_directory = "clips"\ntarget_frames = [9]',
    "whole clips": 'video_directory = "clips"\nframe_extraction = "full"',
    "layers": 'image_directory = "layers"\nmultiple_target = true',
}
PLANNED = [command for command in (*TRAINING, *CACHING) if command.tiny]
TRAINED = [command for command in PLANNED if command in TRAINING][::6]


def choose_datasets(command: Command) -> str:
    script = command.words.split()[0]
    if script.startswith("fpack"):
        return "whole clips"
    if "edit" in command.tiny or "kontext" in command.tiny:
        return "edit"
    if "layered" in command.tiny:
        return "layers"
    is_video = script.startswith(("hv", "wan", "cache", "kandinsky5")) and "t2i" not in command.words
    return "clips" if is_video or "i2v" in command.tiny else "images"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("musubi")
    random = np.random.default_rng(0)

    def save(path: Path, channels: int = 3) -> None:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (64, 64, channels), dtype=np.uint8)).save(path)

    for number in range(4):
        save(folder / f"images/a{number}.png")
        save(folder / f"controls/a{number}.png")
        (folder / f"images/a{number}.txt").write_text(f"fox {number}")
    for number in range(2):
        write_clip(folder / f"clips/c{number}.mp4", 41)
        (folder / f"clips/c{number}.txt").write_text("a fox runs")
        for layer in ("", "_0", "_1"):
            save(folder / f"layers/l{number}{layer}.png", 4)
        (folder / f"layers/l{number}.txt").write_text("a fox")
    return folder


def import_command(command: Command, data: Path, output: Path) -> Path:
    """The config of a command, its output in `output`."""
    (data / "data.toml").write_text(HEAD + DATASETS[choose_datasets(command)])
    assert main(["import", "-o", str(output / "config"), "musubi", *shlex.split(command.words)]) == 0
    return output / "config" / "config.toml"


@each_row("command", PLANNED, ids=lambda command: command.words.split()[0])
def test_every_command_is_planned_at_tiny(command, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(data)
    number = len(list(tmp_path.iterdir()))
    config = import_command(command, data, tmp_path / str(number))
    capsys.readouterr()
    assert main(["plan", str(config), "--model_flavour", command.tiny, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]


@each_row("command", TRAINED, ids=lambda command: command.words.split()[0])
def test_one_of_each_kind_is_trained(command, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    number = len(list(tmp_path.iterdir()))
    config = import_command(command, data, tmp_path / str(number))
    output = tmp_path / f"{number}-out"
    words = ["--model_flavour", command.tiny, "--output_dir", str(output), "--rehearsal=false"]
    assert main(["train", str(config), *words]) == 0
    assert (output / "checkpoint-2").is_dir() or (output / "pytorch_lora_weights.safetensors").is_file()
