"""What docs/datasets.md shows can be copied: its files are read without a complaint, and its lists are complete."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from darkroom.data.index.table import REASONS
from darkroom.media.controls import CONTROLS
from darkroom.media.frames import Cut, FrameRule, plan_cuts
from darkroom.options.datasets import read_datasets
from tests.rows import each_row

PAGE = (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```json\n(.*?)^```$", PAGE, re.M | re.S)


def folders_of(entry: dict) -> list[str]:
    return [entry["instance_data_dir"]] if "://" not in entry.get("instance_data_dir", "://") else []


@pytest.mark.parametrize("text", FILES, ids=range(len(FILES)))
def test_an_example_is_read_without_a_warning(shop, text: str, monkeypatch) -> None:
    monkeypatch.chdir(shop.folder)
    monkeypatch.setenv("HOME", str(shop.folder))
    entries = json.loads(text)
    for name in [name for entry in entries for name in folders_of(entry)]:
        Path(name).expanduser().mkdir(parents=True, exist_ok=True)
    Path("datasets.json").write_text(text)
    made = read_datasets("datasets.json", shop.config, {"ARCHIVE_KEY": "k", "ARCHIVE_SECRET": "s", "CACHE_KEY": "k",
                                                        "CACHE_SECRET": "s"})  # fmt: skip
    assert [text for text in made.warnings if "it is held out and encoded" not in text] == []


def test_the_musubi_example_is_read(shop, monkeypatch) -> None:
    monkeypatch.chdir(shop.folder)
    text = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.M | re.S)[0]
    for table in tomllib.loads(text)["datasets"]:
        for key in ("image_directory", "video_directory", "control_directory"):
            Path(table.get(key, ".")).mkdir(exist_ok=True)
    Path("musubi.toml").write_text(text)
    made = read_datasets("musubi.toml", shop.config, {})
    assert [d.id for d in made.training] == ["dataset-1", "dataset-2"]
    assert made.warnings == ()


@each_row(
    "mode, keys, wanted",
    [
        ("head", {}, [(0, 8)]),
        ("chunk", {}, [(0, 8), (9, 17)]),
        ("slide", {"stride": 7}, [(0, 8), (7, 15), (14, 22)]),
        ("uniform", {"sample": 2}, [(0, 8), (15, 23)]),
        ("full", {}, [(0, 20)]),
    ],
)
def test_the_parts_of_a_clip_are_those_of_the_table(mode, keys, wanted) -> None:
    made = plan_cuts(24, [9], mode, rule=FrameRule(step=4), **keys)
    assert made == [Cut(first, last - first + 1) for first, last in wanted]
    shown = next(line for line in PAGE.splitlines() if line.startswith(f"| `{mode}`"))
    assert all(f"{first} to {last}" in shown for first, last in wanted)


def test_every_reason_is_explained() -> None:
    table = PAGE[PAGE.index("## What is left out") : PAGE.index("## musubi-tuner's")]
    assert [reason for reason in REASONS if reason and f"`{reason}`" not in table] == []


def test_every_generator_is_named() -> None:
    assert [name for name in CONTROLS if f"`{name}`" not in PAGE] == []


def test_a_key_that_starts_with_an_underscore_is_a_comment(shop) -> None:
    assert shop.read(shop.entry(_note="of 2024")).warnings == ()
