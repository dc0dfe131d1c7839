"""What a resume does when settings, data or the folder are not what they were."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import threading

import pytest
from safetensors.torch import load_file

from darkroom.cli.common import resolve_arguments
from darkroom.cli.main import main
from darkroom.core.errors import ConfigError, Interrupted
from darkroom.core.events import Event, Step
from darkroom.job import resume
from darkroom.job.claim import LOCK, PROCESS, claim_folder
from darkroom.job.plan import begin
from darkroom.job.train import train
from darkroom.options.config import every_option
from darkroom.report.eventlog import read
from darkroom.train.checkpoint import validate_checkpoint
from darkroom.train.state import TrainState

QUIET = {"validation_disable": True, "checkpoint_step_interval": 2}


def steps_of(out) -> list[dict]:
    return [row for row in read(out / "events.jsonl") if row["event"] == "step"]


def warnings_of(out) -> str:
    return "\n".join(row["message"] for row in read(out / "events.jsonl") if row["event"] == "warning")


@pytest.fixture
def own(photographs, dataset_file, tmp_path):
    """A folder of photographs of its own, which a test may change, and the dataset file that names it."""
    folder = tmp_path / "own"
    shutil.copytree(photographs, folder)

    def write(**keys) -> str:
        return dataset_file(instance_data_dir=str(folder), **keys)

    return folder, write


# -- settings ---------------------------------------------------------------------------------------------------------


def test_every_option_that_is_not_free_is_kept_in_a_checkpoint_and_compared(arguments, tmp_path):
    main(["train", *arguments(**QUIET, max_train_steps=2)])
    settings = json.loads((tmp_path / "out/checkpoint-2/training_state.json").read_text())["settings"]
    compared = {info.name for info in every_option() if info.resume != "free"}
    assert compared <= settings.keys()
    assert len(compared) > 100
    config = resolve_arguments(arguments(**QUIET)).config
    wrong = [info.name for info in every_option() if info.resume != resume.meaning(info.name)]
    silent = [name for name in ("lora_alpha", "base_model_precision", "lora_dropout", "snr_gamma", "model_flavour")
              if not resume.has_effect(name, config)]  # fmt: skip
    assert (wrong, silent) == ([], [])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lora_alpha", 64, "lora_alpha: 16 then, 64 now"),
        ("lora_rank", 4, "lora_rank: 16 then, 4 now"),
        ("optimizer", "torch-sgd", "optimizer: torch-adamw then, torch-sgd now"),
        ("seed", 6, "seed: 5 then, 6 now"),
        ("gradient_accumulation_steps", 3, "gradient_accumulation_steps: 1 then, 3 now"),
        ("flux_lora_target", "mmdit", "flux_lora_target: all then, mmdit now"),
    ],
)
def test_what_makes_another_model_or_another_order_is_refused_before_anything_is_encoded(
    name, value, said, arguments, capsys, tmp_path, monkeypatch
):
    main(["train", *arguments(**QUIET, max_train_steps=2)])
    monkeypatch.setattr("darkroom.job.train.scan_datasets", lambda *_: pytest.fail("it went on to the data"))
    assert main(["train", *arguments(**QUIET, max_train_steps=4, **{name: value})]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert "i_know_what_i_am_doing" in text


def test_what_enters_a_step_is_warned_of_and_taken(arguments, tmp_path):
    main(["train", *arguments(**QUIET, max_train_steps=2)])
    changes = {"lora_dropout": 0.2, "loss_type": "huber", "caption_dropout_probability": 0.5, "learning_rate": 2e-3,
               "adam_weight_decay": 0.3, "flow_sigmoid_scale": 2.0}  # fmt: skip
    assert main(["train", *arguments(**QUIET, max_train_steps=4, **changes)]) == 0
    said = warnings_of(tmp_path / "out")
    assert [name for name in changes if f"{name}:" not in said] == []


def test_what_changes_nothing_of_the_result_is_free(arguments, tmp_path):
    main(["train", *arguments(**QUIET, max_train_steps=2)])
    assert main(["train", *arguments(**QUIET, max_train_steps=4, gradient_checkpointing=True,
                                     checkpoints_total_limit=7)]) == 0  # fmt: skip
    said = [line for line in warnings_of(tmp_path / "out").splitlines() if line.startswith("Since the checkpoint")]
    assert said == ["Since the checkpoint: max_train_steps: 2 then, 4 now"]


def test_another_optimizer_begins_afresh_for_who_insists(arguments, tmp_path):
    main(["train", *arguments(**QUIET, max_train_steps=2)])
    options = {**QUIET, "optimizer": "torch-sgd", "i_know_what_i_am_doing": True, "max_train_steps": 4}
    assert main(["train", *arguments(**options)]) == 0
    assert "The optimizer begins afresh" in warnings_of(tmp_path / "out")
    assert len(steps_of(tmp_path / "out")) == 4


# -- data -------------------------------------------------------------------------------------------------------------


def remove(folder, keys):
    for name in ("chelsea", "coffee"):
        (folder / f"{name}.png").unlink()
        (folder / f"{name}.txt").unlink()


def add(folder, keys):
    for ending in ("png", "txt"):
        shutil.copy(folder / f"chelsea.{ending}", folder / f"cat.{ending}")


def rename(folder, keys):
    for ending in ("png", "txt"):
        (folder / f"chelsea.{ending}").rename(folder / f"tom.{ending}")


def edit(folder, keys):
    (folder / "chelsea.txt").write_text("another sentence about a cat")


def repaint(folder, keys):
    shutil.copy(folder / "coffee.png", folder / "rocket.png")
    os.utime(folder / "rocket.png", (1, 1))


def repeat(folder, keys):
    keys["repeats"] = 2


CHANGES = {
    "removed": (remove, "2 removed (chelsea.png, coffee.png)", True),
    "added": (add, "1 added (cat.png)", True),
    "renamed": (rename, "1 renamed (chelsea.png to tom.png)", True),
    "caption": (edit, "1 with another caption (chelsea.png)", False),
    "content": (repaint, "1 with another content (rocket.png)", False),
    "repeats": (repeat, "repeats 0 then, 2 now", True),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_data_are_named_and_the_run_goes_on_with_the_right_counts(kind, arguments, own, tmp_path):
    change, said, reorders = CHANGES[kind]
    folder, write = own
    options = {"train_batch_size": 1, "num_train_epochs": 4, "max_train_steps": 0, "lr_scheduler": "cosine", **QUIET}
    options |= {"checkpoints_total_limit": 0}
    main(["train", *arguments(**options, data_backend_config=write())])
    out = tmp_path / "out"
    for step in range(10, 26):  # as if stopped at the second image of the second epoch
        shutil.rmtree(out / f"checkpoint-{step}", ignore_errors=True)
    keys: dict = {}
    change(folder, keys)
    again = arguments(**options, data_backend_config=write(**keys))
    planned = begin(resolve_arguments(again)).values
    assert main(["train", *again]) == 0

    assert planned["resume"] == "checkpoint-8"
    assert planned["steps"] == steps_of(out)[-1]["total"]
    assert kind in ("content", "renamed") or said in "\n".join(
        planned["resume_changes"]
    )  # a file is read again when it is encoded
    assert said in warnings_of(out)
    again = steps_of(out)[8:]
    batches = {"removed": 4, "added": 7, "repeats": 18}.get(kind, 6)
    length = 2 * batches if reorders else 16
    assert [row["epoch"] for row in again] == (
        [3] * batches + [4] * batches if reorders else [2] * 4 + [3] * 6 + [4] * 6
    )
    assert {row["total"] for row in again} == {8 + length}
    rates = [row["metrics"]["learning_rate"] for row in again]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] <= steps_of(out)[7]["metrics"]["learning_rate"]


def test_the_counters_of_changed_data_are_worked_by_hand():
    state = TrainState(step=15, epoch=2, position=5, total=40)
    state.start_on_other_data(last_epoch=4)
    assert (state.epoch, state.position, state.base_step, state.base_epoch) == (3, 0, 15, 3)
    state.total = 15 + 2 * 20
    assert [state.find_schedule_position(s) for s in (15, 35, 55)] == [15, 27.5, 40]

    state.step, state.position = 35, 4  # changed again, half way
    state.start_on_other_data(last_epoch=4)
    state.total = 45
    assert (state.epoch, state.schedule_total) == (4, 40)
    assert [state.find_schedule_position(s) for s in (35, 40, 45)] == [27.5, 33.75, 40]

    last = TrainState(step=9, epoch=4, position=3, total=12)
    last.start_on_other_data(last_epoch=4)
    assert (last.epoch, last.position) == (4, 0)


# -- the folder -------------------------------------------------------------------------------------------------------


def test_a_second_run_in_the_folder_is_refused_and_the_first_is_not_harmed(arguments, tmp_path, capsys):
    out = tmp_path / "out"
    codes, seen = [], []

    def second(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            seen.append(json.loads((out / PROCESS).read_text())["pid"])
            thread = threading.Thread(target=lambda: codes.append(main(["train", *arguments(**QUIET, seed=6)])))
            thread.start()
            thread.join()

    train(resolve_arguments(arguments(**QUIET)), listener=second)

    assert (codes, seen) == ([2], [os.getpid()])
    text = capsys.readouterr().err
    assert f"Another run is writing into this folder: process {os.getpid()} on" in text
    assert "output_dir" in text
    assert validate_checkpoint(out / "checkpoint-4") is None
    assert not (out / PROCESS).exists()
    assert len(steps_of(out)) == 4


def test_a_folder_is_free_again_when_its_run_has_ended(tmp_path):
    with claim_folder(tmp_path), pytest.raises(ConfigError, match="Another run"), claim_folder(tmp_path):
        pass
    with claim_folder(tmp_path):
        assert (tmp_path / LOCK).exists()


def test_a_finished_run_says_so_and_does_nothing(arguments, tmp_path, capsys):
    options = {**QUIET, "num_train_epochs": 1, "max_train_steps": 0}
    main(["train", *arguments(**options)])
    out = tmp_path / "out"
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    capsys.readouterr()

    assert main(["train", *arguments(**options)]) == 0

    assert "This run is finished: 4 steps" in "".join(capsys.readouterr())
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == kept
    assert len(steps_of(out)) == 4
    assert main(["train", *arguments(**{**options, "num_train_epochs": 2})]) == 0
    assert len(steps_of(out)) == 8


def test_checkpoints_of_a_branch_that_is_left_are_set_aside_and_the_new_branch_is_the_latest(arguments, tmp_path):
    out = tmp_path / "out"
    main(["train", *arguments(**QUIET, max_train_steps=6)])
    options = {**QUIET, "checkpoints_total_limit": 2, "max_train_steps": 4}
    main(["train", *arguments(**options, resume_from_checkpoint="checkpoint-2")])

    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert sorted(p.name for p in (out / "abandoned-1").iterdir()) == ["checkpoint-4", "checkpoint-6"]
    assert "checkpoint-4, checkpoint-6 moved to abandoned-1" in warnings_of(out)

    main(["train", *arguments(**options, resume_from_checkpoint="none")])
    assert sorted(p.name for p in (out / "abandoned-2").iterdir()) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("asked", ["latest", "none"])
def test_stopped_and_saved_is_true_although_an_older_run_has_a_checkpoint_of_that_name(
    asked, arguments, tmp_path, capsys
):
    out = tmp_path / "out"
    main(["train", *arguments(**{**QUIET, "checkpoint_step_interval": 1})])
    old = load_file(out / "checkpoint-3/pytorch_lora_weights.safetensors")
    shutil.rmtree(out / "checkpoint-4")
    (out / "checkpoint-3/training_state.json").write_text("{}")  # damaged: latest passes it over
    if asked == "latest":
        shutil.rmtree(out / "checkpoint-2")

    def interrupt(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    options = {"validation_disable": True, "checkpoint_step_interval": 0, "max_train_steps": 9}
    settings = resolve_arguments(arguments(**options, resume_from_checkpoint=asked, learning_rate=1e-2))
    with pytest.raises(Interrupted):
        train(settings, listener=interrupt)

    said = "".join(capsys.readouterr())
    assert "Stopped after step 3; saved." in said
    assert ("The same command goes on from there." in said) == (asked == "latest")
    assert validate_checkpoint(out / "checkpoint-3") is None
    new = load_file(out / "checkpoint-3/pytorch_lora_weights.safetensors")
    assert any((new[name] != old[name]).any() for name in old)


def test_results_follow_the_umask_and_a_killed_save_leaves_nothing_for_ever(arguments, tmp_path):
    out = tmp_path / "out"
    main(["train", *arguments(**QUIET, max_train_steps=2)])
    leftovers = [out / ".pytorch_lora_weights.safetensors.123.tmp", out / ".tmpAb12Cd", out / "ema" / ".x.json.9.tmp"]
    (out / "ema").mkdir()
    (out / "pipeline-tmp").mkdir()
    (out / "pipeline-old-tmp").mkdir()
    for path in leftovers:
        path.touch()

    main(["train", *arguments(**QUIET, max_train_steps=4)])

    modes = {stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*.*") if path.is_file() and path.name != LOCK}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask}
    assert [path for path in leftovers if path.exists()] == []
    assert (sorted(path.name for path in out.glob("pipeline*"))) == ["pipeline"]
