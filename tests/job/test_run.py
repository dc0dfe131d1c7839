"""A run, from the command line to what it leaves behind, for families of different mechanics.

`test_every_family.py` has the others.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from darkroom.cli.common import resolve_arguments
from darkroom.cli.main import main
from darkroom.core.errors import Interrupted
from darkroom.core.events import Event, Step
from darkroom.job.train import train
from darkroom.report.eventlog import read
from darkroom.tools.verify import verify
from darkroom.train.checkpoint import STATE, validate_checkpoint

SOME = (pytest.param("flux", marks=pytest.mark.smoke), "sdxl", "wan")


@pytest.mark.parametrize("family", SOME)
def test_a_lora_run_leaves_what_it_promises_and_loads_in_the_stock_pipeline(family, arguments, tmp_path):
    options = {"validation_prompt": "a cup of coffee", "use_ema": True, "gradient_accumulation_steps": 2}
    code = main(["train", *arguments(family, **options, checkpoint_step_interval=2, train_batch_size=1)])

    out = tmp_path / "out"
    assert code == 0
    for name in (
        "pytorch_lora_weights.safetensors",
        "ema/pytorch_lora_weights.safetensors",
        "report.html",
        "run.lock.json",
    ):
        assert (out / name).is_file(), name
    assert [validate_checkpoint(out / f"checkpoint-{n}") for n in (2, 4)] == [None, None]
    names = [row["event"] for row in read(out / "events.jsonl")]
    assert {"run_start", "phase", "step", "checkpoint", "validation", "run_end"} <= set(names)
    verdict = verify(out)
    assert verdict.unmatched == []
    assert verdict.matched > 0
    assert verdict.images == 1
    assert verdict.difference is not None
    assert verdict.difference <= 1


@pytest.mark.parametrize("family", SOME)
def test_a_full_run_leaves_a_pipeline_that_draws_the_same_picture(family, arguments, tmp_path):
    options = {"model_type": "full", "max_train_steps": 2, "validation_prompt": "a cup of coffee"}
    assert main(["train", *arguments(family, **options, disable_benchmark=True)]) == 0

    verdict = verify(tmp_path / "out")
    assert verdict.unmatched == []
    assert verdict.images == 1
    assert verdict.difference <= 1


def weights(folder, settings=True):
    """Bytes of everything in a checkpoint but its manifest, and without `settings` but what the state says of those."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "checkpoint_manifest.json"
    }
    if not settings:
        state = json.loads(found[STATE])
        found[STATE] = json.dumps({**state, "settings": None}).encode()
    return found


@pytest.mark.parametrize("kind", [pytest.param("lora", marks=pytest.mark.smoke), "full"])
def test_a_resumed_run_ends_with_the_same_bytes(kind, arguments, tmp_path):
    options = {
        "model_type": kind, "lora_dropout": 0.1, "use_ema": True, "caption_dropout_probability": 0.3,
        "lr_scheduler": "constant", "validation_disable": True, "checkpoint_step_interval": 2,
        "dataloader_prefetch": True,
    }  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main(["train", *arguments(**options, max_train_steps=6, output_dir=whole)])
    main(["train", *arguments(**options, max_train_steps=2, output_dir=parts)])
    main(["train", *arguments(**options, max_train_steps=6, output_dir=parts)])

    expected, found = weights(whole / "checkpoint-6"), weights(parts / "checkpoint-6")
    assert expected.keys() == found.keys()
    # the state keeps max_train_steps, which the first part set otherwise and the second set back
    assert [name for name in expected if expected[name] != found[name]] == []


def test_a_signal_finishes_the_step_saves_and_a_resume_ends_with_the_same_bytes(arguments, tmp_path):
    options = {"checkpoint_step_interval": 6, "max_train_steps": 6, "validation_disable": True}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    main(["train", *arguments(**options, output_dir=whole)])

    def interrupt(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    settings = resolve_arguments(arguments(**options, output_dir=stopped))
    with pytest.raises(Interrupted):
        train(settings, listener=interrupt)
    assert validate_checkpoint(stopped / "checkpoint-3") is None
    assert read(stopped / "events.jsonl")[-1]["status"] == "interrupted"
    assert main(["train", *arguments(**options, output_dir=stopped)]) == 0
    assert weights(whole / "checkpoint-6") == weights(stopped / "checkpoint-6")


@pytest.mark.smoke
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(arguments, tmp_path):
    found = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        main(["train", *arguments(seed=seed, output_dir=tmp_path / name, validation_disable=True)])
        found.append((tmp_path / name / "pytorch_lora_weights.safetensors").read_bytes())
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_init_lora_starts_from_a_saved_adapter(arguments, tmp_path):
    main(["train", *arguments(validation_disable=True)])
    first = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    main([
        "train", *arguments(validation_disable=True, init_lora=first, max_train_steps=1, learning_rate=1e-30,
                            output_dir=tmp_path / "second"),
    ])  # fmt: skip
    before, after = load_file(first), load_file(tmp_path / "second" / "pytorch_lora_weights.safetensors")
    assert max((before[k] - after[k]).abs().max().item() for k in before) < 1e-6


@pytest.mark.smoke
def test_resuming_with_another_batch_size_is_refused_by_name(arguments, capsys):
    main(["train", *arguments(validation_disable=True, checkpoint_step_interval=2)])
    code = main(["train", *arguments(validation_disable=True, train_batch_size=1)])
    assert code == 2
    assert "train_batch_size: 2 then, 1 now" in capsys.readouterr().err


def test_base_pictures_equal_a_zero_adapter(arguments, tmp_path):
    """Before the first step an adapter changes nothing, to the last bit."""
    from PIL import Image, ImageChops

    main(["train", *arguments(validation_prompt="a cat", validation_on_startup=True, max_train_steps=1)])
    out = tmp_path / "out"
    base = Image.open(out / "benchmarks/base_model/validation_0_64x64.png")
    start = Image.open(out / "validation_images/originals/step_0_validation_0_64x64.png")
    assert ImageChops.difference(base.convert("RGB"), start.convert("RGB")).getbbox() is None


def test_the_lock_file_says_what_the_run_was_made_from(arguments, tmp_path):
    main(["train", *arguments(validation_disable=True)])
    lock = json.loads((tmp_path / "out" / "run.lock.json").read_text())
    assert lock["options"]["seed"] == {"value": 5, "from": "command line"}
    assert lock["seeds"] == {"seed": 5}
    assert len(lock["dataset_manifest"]) == 64
    assert lock["versions"]["torch"]


@pytest.mark.smoke
def test_a_second_start_encodes_nothing(arguments, tmp_path, monkeypatch):
    main(["train", *arguments(validation_disable=True)])

    def refuse(*_):
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr("darkroom.pretrained.components.Components.text", refuse)
    monkeypatch.setattr("darkroom.pretrained.components.Components.vae", refuse)
    assert main(["train", *arguments(validation_disable=True, max_train_steps=5)]) == 0


def test_regularisation_data_teaches_an_untrained_adapter_nothing(arguments, dataset_file, tmp_path):
    """A fresh adapter answers as the base does, so its loss on such data is zero and it stays where it is."""
    data = dataset_file({"is_regularisation_data": True})
    options = {"data_backend_config": data, "validation_disable": True, "max_train_steps": 2, "lora_dropout": 0}
    assert main(["train", *arguments(**options)]) == 0
    steps = [row for row in read(tmp_path / "out" / "events.jsonl") if row["event"] == "step"]
    assert [row["terms"] for row in steps] == [{"regularisation": 0.0}] * 2


def test_regularisation_data_in_a_full_run_is_refused(arguments, dataset_file, capsys):
    data = dataset_file({"is_regularisation_data": True})
    assert main(["train", *arguments(data_backend_config=data, model_type="full")]) == 2
    assert "is_regularisation_data" in capsys.readouterr().err


def test_an_assistant_changes_what_is_learnt_and_is_left_out_of_results_and_pictures(arguments, tmp_path):
    """It is applied to the training steps alone: pictures before the first are those of the base."""

    def run(name: str, **options) -> Path:
        usual = {"validation_prompt": "a cat", "max_train_steps": 2, "learning_rate": 0.01, "seed": 1}
        out = tmp_path / name
        assert main(["train", *arguments(output_dir=out, **{**usual, **options})]) == 0
        return out

    helper = run("helper", max_train_steps=4, learning_rate=0.1, validation_disable=True)
    plain, helped = run("plain"), run("helped", assistant_lora_path=helper)
    shown = run("shown", assistant_lora_path=helper, validation_assistant_lora=True)

    weights_of = {out: load_file(out / "pytorch_lora_weights.safetensors") for out in (plain, helped, shown)}
    assert weights_of[helped].keys() == weights_of[plain].keys()
    assert any(not torch.equal(weights_of[helped][name], t) for name, t in weights_of[plain].items())
    assert all(torch.equal(weights_of[helped][name], t) for name, t in weights_of[shown].items())
    base = {out: first_picture(out) for out in (plain, helped, shown)}
    assert base[helped] == base[plain] != base[shown]
    assert verify(helped).holds
    assert verify(shown).holds


def first_picture(out: Path) -> bytes:
    """The pixels of the picture before the first step."""
    from PIL import Image

    return Image.open(next((out / "benchmarks" / "base_model").glob("*.png"))).tobytes()
