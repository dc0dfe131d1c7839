"""Distilled flavours say so, and what helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkroom import families
from darkroom.job.preflight import list_full_flavours, note_distillation
from darkroom.options.sources import resolve
from tests.rows import each_row

DISTILLED = {
    ("chroma", "flash"),
    ("ernie", "turbo"),
    ("flux", "schnell"),
    ("hidream", "dev"),
    ("hidream", "fast"),
    ("hunyuanvideo", "t2v-480p-distilled"),
    ("hunyuanvideo", "i2v-480p-distilled"),
    ("hunyuanvideo", "i2v-720p-distilled"),
    ("krea2", "turbo"),
    ("ltxvideo2", "2.3-distilled"),
    ("z_image", "turbo"),
}
WORDS = ("distill", "turbo", "flash", "schnell", "fast", "lightning", "nocfg")


def told(name: str, flavour: str, *argv: str) -> str:
    made = resolve(
        [f"--model_family={name}", f"--model_flavour={flavour}", *argv], {}, Path.cwd(), families.defaults, partial=True
    )
    return " ".join(map(str, note_distillation(made.config, made.sources, families.get(name, flavour))))


def test_all_of_them_are_known():
    every = [(name, flavour) for name in families.names() for flavour in families.get(name).flavours]

    assert {row for row in every if families.get(row[0], row[1]).spec.flavour.distilled} == DISTILLED
    # "de-turbo" has its distillation taken back
    named = {row for row in every if any(word in row[1] for word in WORDS) and "de-turbo" not in row[1]}
    assert named <= DISTILLED


@each_row("name, flavour", sorted(DISTILLED))
def test_a_run_of_a_distilled_flavour_says_what_it_loses_and_what_helps(name, flavour):
    said = told(name, flavour)

    assert f"{flavour} is distilled to {families.get(name, flavour).spec.flavour.distilled}" in said
    assert "training wears the distillation off: set assistant_lora_path" in said
    assert all(other in said for other in list_full_flavours(families.get(name, flavour)))


def test_the_published_assistants_are_named():
    assert "such as ostris/FLUX.1-schnell-training-adapter;" in told("flux", "schnell")
    assert "zimage_turbo_training_adapter_v2.safetensors" in told("z_image", "turbo")


def test_with_an_assistant_it_says_that_it_is_left_out():
    said = told("flux", "schnell", "--assistant_lora_path=a.safetensors")

    assert "assistant_lora_path is applied while training, and left out of the result" in said
    assert "wears" not in said


@pytest.mark.parametrize("name", ["flux", "wan", "chroma"])
def test_of_other_flavours_nothing_is_said(name):
    assert told(name, families.get(name).default_flavour) == told(name, "tiny") == ""
