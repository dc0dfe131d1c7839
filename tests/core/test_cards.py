"""Cards by the names that people give them, and what a run is told of one that is not here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import darkroom
from darkroom.core import device
from darkroom.core.cards import BF16, CARDS, FP8, find_card
from darkroom.core.errors import ConfigError
from tests.rows import each_row

GIB = 2**30
# they run something on the device that is here, and decide nothing by what it can do
MAY_ASK_TORCH = {
    "cli/doctor.py", "cli/generate.py", "core/device.py", "families/components.py",
    "job/phases.py", "job/train.py", "media/controls/networks.py", "memory/checkpointing.py", "objectives/base.py",
    "tools/generate.py", "train/distributed.py", "validate/render.py",
}  # fmt: skip
QUESTIONS = re.compile(r"cuda\.(is_available|get_device_|mem_get_info|is_bf16|device_count|get_arch_list)")


@each_row(
    "text, name",
    [
        ("RTX 4090", "RTX 4090"), ("rtx4090", "RTX 4090"), ("4090", "RTX 4090"), ("GeForce RTX 3060", "RTX 3060"),
        ("h100", "H100"), ("A100-40GB", "A100-40GB"), ("nvidia a100 80gb", "A100-80GB"), ("Tesla T4", "T4"),
    ],
)  # fmt: skip
def test_a_card_is_found_by_the_ways_its_name_is_written(text, name):
    assert find_card(text).name == name


@each_row("text", ["24GiB", "24GB", "24G", "24", "24.0", "24 gib"])
def test_a_size_alone_is_a_card_of_that_memory(text):
    card = find_card(text)

    assert card.memory == 24 * GIB
    assert 0.9 * card.memory < card.room < card.memory
    assert BF16 <= card.capability < FP8


@each_row("name", CARDS)
def test_every_card_is_found_by_its_own_name(name):
    assert find_card(name) == CARDS[name]


def test_what_a_card_can_do_follows_from_its_capability():
    able = {
        name: (CARDS[name].capability >= BF16, CARDS[name].capability >= FP8)
        for name in ("T4", "RTX 3090", "RTX 4090", "H100")
    }

    assert able == {
        "T4": (False, False), "RTX 3090": (True, False), "RTX 4090": (True, True), "H100": (True, True)
    }  # fmt: skip


@each_row(
    "text, said",
    [
        ("A100", "did you mean A100-40GB or A100-80GB"), ("RTX 4091", "did you mean RTX"), ("a potato", "is not known"),
        ("512M", "No run fits into so little"),
    ],
)  # fmt: skip
def test_a_card_that_is_not_known_is_refused_with_those_that_are_near(text, said):
    with pytest.raises(ConfigError, match=said):
        find_card(text)


def test_an_assumed_card_answers_for_its_capability_and_memory_and_nothing_else_changes():
    card = find_card("RTX 3090")
    with device.assume_card(card):
        place = device.run_device()
        told = device.capability(place), device.has_bf16(place), device.has_fp8(place), device.device_name(place)
        room = device.find_run_card()

    assert told == ((8, 6), True, False, "RTX 3090")
    assert room == card
    assert not device.is_host(place)
    assert device.is_host(torch.device("cpu"))
    assert device.get_assumed_card() is None


def test_what_a_device_can_do_is_asked_in_one_place():
    root = Path(darkroom.__file__).parent
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if QUESTIONS.search(path.read_text())}

    assert found <= MAY_ASK_TORCH
