"""Runs with LayerSync: its own line, the same bytes wherever weights are, an exact resume, an early refusal."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file

from darkroom.cli.main import main
from darkroom.report.eventlog import read
from tests.job.test_run import weights

ON = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 2}


@pytest.fixture
def go(arguments, tmp_path):
    """Runs four steps into a folder; gives the terms of each."""

    def run(folder: str, **options) -> list[dict[str, float]]:
        usual = {"validation_disable": True, "checkpoint_step_interval": 2, "train_batch_size": 1}
        assert main(["train", *arguments("flux", **{**usual, **options}, output_dir=tmp_path / folder)]) == 0
        rows = read(tmp_path / folder / "events.jsonl")
        return [row["terms"] for row in rows if row["event"] == "step"]

    return run


def learnt(folder) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in load_file(folder / "pytorch_lora_weights.safetensors").items()}


def test_a_run_with_layersync_learns_the_same_bytes_wherever_blocks_are_and_resumes_exactly(go, tmp_path):
    plain, terms = go("plain"), go("run", **ON)
    assert [row.keys() for row in plain] == [{"denoise"}] * 4
    assert all(-0.2 <= row["layersync"] <= 0.2 for row in terms)
    assert learnt(tmp_path / "run") != learnt(tmp_path / "plain")

    off = {**ON, "layersync_enabled": False}
    assert (go("off", **off), learnt(tmp_path / "off")) == (plain, learnt(tmp_path / "plain"))
    for name, options in {
        "checkpointing": {"gradient_checkpointing": True},
        "swap": {"musubi_blocks_to_swap": 1, "gradient_checkpointing": True},
    }.items():
        assert (go(name, **ON, **options), learnt(tmp_path / name)) == (terms, learnt(tmp_path / "run")), name

    shutil.copytree(tmp_path / "run" / "checkpoint-2", tmp_path / "parts" / "checkpoint-2")
    go("parts", **ON)
    assert weights(tmp_path / "run" / "checkpoint-4") == weights(tmp_path / "parts" / "checkpoint-4")


def test_full_training_and_accumulation_have_layersyncs_term_too(go):
    terms = go("full", **ON, model_type="full", gradient_accumulation_steps=2, max_train_steps=1)

    assert [sorted(row) for row in terms] == [["denoise", "layersync"]]


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_block_that_the_network_lacks_is_refused_before_anything_is_encoded(command, arguments, tmp_path, capsys):
    assert main([command, *arguments("flux", **{**ON, "layersync_teacher_block": 9})]) == 2

    said = capsys.readouterr().err
    assert "layersync_teacher_block = 9 (from command line)" in said
    assert "Set it to a number from 1 to 2." in said
    assert not (tmp_path / "out" / "cache").exists()
