"""Every family and flavour, by existing: a LoRA run, its files in the stock pipeline, a resume, a full fine-tune."""

from __future__ import annotations

import shutil

import pytest

from darkroom import families
from darkroom.cli.main import main
from darkroom.tools.verify import verify
from tests.families.conformance import cases  # it also lets the editing pipelines make small pictures
from tests.job.test_run import weights

pytestmark = [pytest.mark.slow, pytest.mark.each_family]


def prompts_of(name: str, flavour: str) -> int:
    return 2 if families.get(name, flavour).spec.flavour.image_pipeline else 1


@pytest.mark.parametrize(("name", "flavour"), cases())
def test_a_lora_run_loads_elsewhere_looks_the_same_there_and_resumes_exactly(
    name, flavour, settings, arguments, tmp_path, record_property
):
    def cell(column: str, words: str) -> None:
        record_property("cell", ((name, flavour), column, words))

    options = {
        **settings(name, flavour), "max_train_steps": 4, "checkpoint_step_interval": 2, "lr_scheduler": "constant",
        "caption_dropout_probability": 0.3,
    }  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", *arguments(name, **options, output_dir=whole)]) == 0
    cell("lora", "4 steps")

    verdict = verify(whole)
    cell("loads", f"{verdict.matched} of {verdict.matched + len(verdict.unmatched)}")
    cell("picture", f"{verdict.difference:.0f}")
    assert verdict.unmatched == []
    assert verdict.matched > 0
    assert verdict.images == prompts_of(name, flavour)
    assert verdict.difference <= 1

    shutil.copytree(whole / "checkpoint-2", parts / "checkpoint-2")
    options["validation_disable"] = True
    assert main(["train", *arguments(name, **options, output_dir=parts)]) == 0
    expected, found = weights(whole / "checkpoint-4"), weights(parts / "checkpoint-4")
    cell("resume", "same bytes")
    assert expected.keys() == found.keys()
    assert [file for file in expected if expected[file] != found[file]] == []


@pytest.mark.parametrize(("name", "flavour"), cases())
def test_a_full_run_leaves_a_pipeline_that_draws_the_same_picture(
    name, flavour, settings, arguments, tmp_path, record_property
):
    record_property("cell", ((name, flavour), "full", "2 steps"))
    options = {**settings(name, flavour), "model_type": "full", "max_train_steps": 2, "disable_benchmark": True}
    assert main(["train", *arguments(name, **options)]) == 0

    verdict = verify(tmp_path / "out")
    assert verdict.unmatched == []
    assert verdict.images == prompts_of(name, flavour)
    assert verdict.difference <= 1
