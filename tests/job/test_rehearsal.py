"""A rehearsal before the first step: it finds what would end the run, and leaves no trace."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch

from darkroom.cli.main import main
from darkroom.core.events import Bus
from darkroom.job import forecast, rehearse
from darkroom.objectives.base import LossOutput
from darkroom.report.eventlog import read
from tests.job.test_run import weights
from tests.train.conftest import rows, tiny_run  # noqa: F401  (a fixture)

SAVED = {"checkpoint_step_interval": 2, "lr_scheduler": "constant", "use_ema": True, "lora_dropout": 0.1,
         "validation_prompt": "a cup"}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "lora"},
        {"model_type": "full", "lora_dropout": None},
        {"optimizer": "adamw_schedulefree", "gradient_accumulation_steps": 3, "train_batch_size": 1},
        {"optimizer_cpu_offload_method": "cpu", "optimizer_offload_gradients": True},
        {"optimizer_release_gradients": True},
        {"model_type": "full", "lora_dropout": None, "musubi_blocks_to_swap": 1, "optimizer": "bnb-adamw8bit"},
    ],
    ids=str,
)
def test_a_run_with_a_rehearsal_gives_the_same_bytes(options, arguments, tmp_path):
    found = {}
    for rehearsal in (True, False):
        out = tmp_path / str(rehearsal)
        assert main(["train", *arguments(**{**SAVED, **options}, rehearsal=rehearsal, output_dir=out)]) == 0
        found[rehearsal] = weights(out / "checkpoint-4")
        phases = [row["phase"] for row in read(out / "events.jsonl") if row["event"] == "phase"]
        assert [f"rehearsal: {name}" in phases for name in ("step", "picture", "save")] == [rehearsal] * 3, phases
        assert list(out.glob("*-tmp")) == []
    assert found[True].keys() == found[False].keys()
    assert [name for name, data in found[True].items() if found[False][name] != data] == []


def test_a_rehearsal_before_a_resumed_run_changes_nothing(arguments, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {**SAVED, "validation_disable": True}
    assert main(["train", *arguments(**options, output_dir=whole)]) == 0
    assert main(["train", *arguments(**options, output_dir=parts, max_train_steps=2)]) == 0
    assert main(["train", *arguments(**options, output_dir=parts, rehearsal=True)]) == 0
    assert weights(whole / "checkpoint-4") == weights(parts / "checkpoint-4")


@pytest.mark.slow
def test_memory_that_runs_out_is_answered_with_what_fits(arguments, monkeypatch, capsys, tmp_path):
    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    room = 10**12
    monkeypatch.setattr(forecast, "resident_bytes", lambda: 0)
    monkeypatch.setattr(forecast, "memory_of", lambda device: (room, None))
    options = {"train_batch_size": 3, "validation_disable": True, "base_model_precision": "int8-quanto"}
    steps = {}
    for again in (False, True):
        assert main(["plan", "--json", *arguments(**options, gradient_checkpointing=again)]) == 0
        made = json.loads(capsys.readouterr().out)["memory"]
        steps[again] = max(row["host"] for row in made["phases"] if row["phase"] == "step")
        assert "change" not in made
    assert steps[True] < steps[False]

    room = (steps[True] + steps[False]) // 2
    assert main(["plan", *arguments(**options)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"! It does not fit. It fits with .*gradient_checkpointing to true", said), said

    with monkeypatch.context() as patched:
        patched.setattr(rehearse, "dry_run", full)
        assert main(["train", *arguments(**options, rehearsal=True)]) == 2
    said = capsys.readouterr().err
    assert "Out of memory" in said
    assert re.search(r"Too large .*: .*step 3 latents of .*It fits with .*gradient_checkpointing to true", said), said
    assert list((tmp_path / "out").glob("checkpoint-*")) == []
    assert main(["train", *arguments(**options, rehearsal=True, gradient_checkpointing=True)]) == 0


def test_a_rehearsal_measures_a_step_that_finds_the_optimizers_state(tiny_run, tmp_path):  # noqa: F811
    run, finds = tiny_run(), []
    before, learn = run.weight, run.stepper.objective

    def watched(*given) -> LossOutput:
        finds.append(bool(run.stepper.optimizer.state))
        return learn(*given)

    run.stepper.objective = watched
    rehearse.dry_run(SimpleNamespace(bus=Bus(), output=tmp_path), run.snapshot, rows(1), None)

    assert finds == [False, True]
    assert torch.equal(run.weight, before)
