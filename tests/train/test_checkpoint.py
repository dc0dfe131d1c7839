"""Checkpoints: whole or absent, found or refused, thinned, and exact on the way back."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch

from darkroom.adapters import base
from darkroom.core import files
from darkroom.core.errors import CheckpointError, DiskFullError
from darkroom.train import checkpoint
from darkroom.train.checkpoint import MANIFEST, STATE, TRAINED, find_differences, read_state, validate_checkpoint

from .conftest import rows


def names(run) -> list[str]:
    return [path.name for path in run.keeper.folders()]


# -- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {}, {"use_ema": True}, {"optimizer": "adamw_schedulefree"}, {"optimizer": "torch-adamw", "use_ema": True},
], ids=["plain", "ema", "schedule-free", "both"])  # fmt: skip
def test_a_resumed_run_takes_the_same_steps_to_the_byte(tiny_run, options):
    if options.get("optimizer") == "adamw_schedulefree":
        pytest.importorskip("schedulefree")
    whole, resumed = tiny_run(**options), tiny_run(**options)
    for seed in range(4):
        whole.step(rows(seed))
    folder = whole.save()

    resumed.snapshot.read(folder)
    for seed in range(4, 8):
        whole.step(rows(seed))
        resumed.step(rows(seed))

    assert torch.equal(whole.weight, resumed.weight)
    assert resumed.snapshot.state == whole.snapshot.state
    if whole.stepper.ema:
        assert torch.equal(whole.stepper.ema.shadows["weight"], resumed.stepper.ema.shadows["weight"])


def test_what_torch_refuses_is_said_in_words(tiny_run, monkeypatch):
    run, other = tiny_run(), tiny_run()
    folder = run.save(1)
    monkeypatch.setattr(
        type(other.snapshot.adapter), "read", lambda *_: torch.Generator().set_state(torch.zeros(16, dtype=torch.uint8))
    )

    with pytest.raises(CheckpointError, match="does not fit this run"):
        other.snapshot.read(folder)


def test_equal_runs_write_equal_bytes(tiny_run, tmp_path):
    def saved(name: str) -> dict[str, bytes]:
        run = tiny_run(folder=tmp_path / name, use_ema=True)
        run.step(rows(1))
        folder = run.save()
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert saved("a") == saved("b")


def test_a_resume_uses_the_learning_rate_of_now(tiny_run):
    run, other = tiny_run(learning_rate=0.1), tiny_run(learning_rate=0.01)
    run.step(rows(1))

    other.snapshot.read(run.save())

    assert other.step(rows(2)).metrics["learning_rate"] == 0.01


def test_schedule_free_checkpoints_hold_both_kinds_of_weights(tiny_run):
    pytest.importorskip("schedulefree")
    run = tiny_run(optimizer="adamw_schedulefree")
    run.step(rows(1))

    assert (run.save() / TRAINED).exists()


def test_weights_of_another_shape_are_refused_with_a_remedy(tiny_run):
    run, other = tiny_run(), tiny_run()
    folder = run.save(1)
    other.snapshot.adapter.model.weight = torch.nn.Parameter(torch.zeros(5, 3))

    with pytest.raises(CheckpointError, match="does not fit this run") as caught:
        other.snapshot.read(folder)

    assert "resume_from_checkpoint" in str(caught.value)


def test_changed_settings_are_listed_with_both_values(tiny_run):
    _, settings = read_state(tiny_run().save(1))

    assert find_differences(settings, {"seed": 2, "new": 1}) == {"seed": (1, 2)}
    assert find_differences(settings, {"seed": 1}) == {}


# -- whole or not -----------------------------------------------------------------------------------------------------


def flip(folder):
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def rewrite(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


DAMAGE = {
    "a flipped byte": (flip, "was changed after it was written"),
    "a truncated file": (truncate, "bytes instead of"),
    "a missing file": (lambda folder: (folder / STATE).unlink(), "is missing"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "was not finished"),
    "half a manifest": (lambda folder: (folder / MANIFEST).write_text('{"files": ['), "cannot be read"),
    "a foreign manifest": (lambda f: rewrite(f, lambda m: m.update(files=["weights.bin"])), "expected form"),
    "a path that leads outside": (
        lambda f: rewrite(f, lambda m: m["files"].append({"path": "../x", "size": 0, "sha256": ""})),
        "names a file outside it",
    ),
    "a version of the future": (lambda f: rewrite(f, lambda m: m.update(version=2)), "has version 2"),
    "no version": (lambda f: rewrite(f, lambda m: m.pop("version")), "has version None"),
    "a version that is no number": (lambda f: rewrite(f, lambda m: m.update(version=[1])), "has version"),
    "another name": (lambda f: rewrite(f, lambda m: m.update(checkpoint="checkpoint-77")), "renamed since"),
    "a list": (lambda f: (f / MANIFEST).write_text("[1, 2]"), "expected form"),
    "a text": (lambda f: (f / MANIFEST).write_text('"x"'), "expected form"),
    "nothing": (lambda f: (f / MANIFEST).write_text("null"), "expected form"),
    "files that are no list": (lambda f: rewrite(f, lambda m: m.update(files={"a": 1})), "expected form"),
    "a size that is a text": (lambda f: rewrite(f, lambda m: m["files"][0].update(size="7")), "expected form"),
    "a path that is a list": (lambda f: rewrite(f, lambda m: m["files"][0].update(path=["x"])), "not of the expected"),
    "a path with NUL": (lambda f: rewrite(f, lambda m: m["files"][0].update(path="a\0b")), "a file outside it"),
    "a path that is too long": (lambda f: rewrite(f, lambda m: m["files"][0].update(path="x" * 9999)), "cannot be"),
    "five thousand brackets": (lambda f: (f / MANIFEST).write_text("[" * 5000 + "]" * 5000), "RecursionError"),
    "bytes that are no text": (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe{}"), "cannot be read"),
    "a folder in its place": (
        lambda f: ((f / MANIFEST).unlink(), (f / MANIFEST).mkdir()),
        "cannot be read (IsADirectoryError)",
    ),
    "a row too few": (lambda f: rewrite(f, lambda m: m["files"].pop()), "does not name"),
    "no rows": (lambda f: rewrite(f, lambda m: m.update(files=[])), "does not name training_state.json"),
    "a row too many": (
        lambda f: rewrite(f, lambda m: m["files"].append({"path": "x.json", "size": 1, "sha256": ""})),
        "x.json is missing",
    ),
    "a file too many": (lambda f: (f / "trained.safetensors").write_bytes(b""), "does not name trained.safetensors"),
    "an absolute path": (
        lambda f: rewrite(f, lambda m: m["files"].append({"path": "/etc/hosts", "size": 0, "sha256": ""})),
        "names a file outside it",
    ),
}  # fmt: skip


def test_a_saved_checkpoint_is_whole(tiny_run):
    assert validate_checkpoint(tiny_run(use_ema=True).save(1)) is None


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found(tiny_run, damage, said):
    folder = tiny_run().save(1)

    damage(folder)

    assert said in validate_checkpoint(folder)


@pytest.mark.parametrize("damage", [d for d, _ in DAMAGE.values()], ids=DAMAGE.keys())
def test_latest_passes_over_damaged_ones(tiny_run, damage):
    run = tiny_run()
    whole = run.save(9)
    damage(run.save(10))

    assert run.keeper.find("latest") == whole


def test_latest_counts_steps_as_numbers_and_rolling_ones_too(tiny_run):
    run = tiny_run(checkpoints_rolling_total_limit=2)
    run.save(9)
    newest = run.save(10, rolling=True)

    assert run.keeper.find("latest") == newest


def test_latest_of_nothing_is_a_fresh_run(tiny_run):
    assert tiny_run().keeper.find("latest") is None


def test_a_note_of_a_person_does_not_make_a_checkpoint_unusable(tiny_run):
    folder = tiny_run().save(1)
    (folder / "README.md").write_text("the good one")
    (folder / ".DS_Store").write_bytes(b"x")

    assert validate_checkpoint(folder) is None


def test_a_renamed_folder_is_passed_over_and_one_with_a_name_of_its_own_can_be_named(tiny_run, tmp_path):
    run = tiny_run()
    whole = run.save(3)
    run.save(4).rename(tmp_path / "checkpoint-40")

    assert run.keeper.find("latest") == whole
    assert run.keeper.find(str((tmp_path / "checkpoint-40").rename(tmp_path / "the-good-one"))) is not None


def test_a_state_of_another_form_is_refused_in_words(tiny_run):
    run = tiny_run()
    for text in ("[]", "{}", '{"settings": 3}', '{"settings": {}, "step": "x"}', "[" * 5000, "\0"):
        folder = run.save(3)
        (folder / STATE).write_text(text)

        with pytest.raises(CheckpointError, match="cannot be read"):
            read_state(folder)
        with pytest.raises(CheckpointError, match="does not fit this run"):
            run.snapshot.read(folder)


@pytest.mark.parametrize("wanted", [None, "", "none", "None"])
def test_no_resume_is_asked_for(tiny_run, wanted):
    run = tiny_run()
    run.save(1)

    assert run.keeper.find(wanted) is None


def test_a_checkpoint_is_found_by_name_and_by_path(tiny_run, tmp_path):
    run = tiny_run(folder=tmp_path / "here")
    folder = run.save(3)

    assert run.keeper.find("checkpoint-3") == folder
    assert tiny_run(folder=tmp_path / "elsewhere").keeper.find(str(folder)) == folder


def test_an_absent_checkpoint_is_refused_with_those_there_are(tiny_run):
    run = tiny_run()
    run.save(3)

    with pytest.raises(CheckpointError, match="checkpoint-3"):
        run.keeper.find("checkpoint-4")


def test_a_damaged_checkpoint_that_was_named_is_refused(tiny_run):
    run = tiny_run()
    flip(run.save(3))

    with pytest.raises(CheckpointError, match="was changed after it was written"):
        run.keeper.find("checkpoint-3")


# -- thinning ---------------------------------------------------------------------------------------------------------


def test_regular_and_rolling_checkpoints_have_limits_of_their_own(tiny_run):
    run = tiny_run(checkpoints_total_limit=2, checkpoints_rolling_total_limit=1)

    for step in (2, 10, 20):
        run.save(step)
        run.save(step + 1, rolling=True)

    assert names(run) == ["checkpoint-10", "checkpoint-20", "checkpoint-21-rolling"]


def test_the_one_just_saved_stays_even_if_it_is_the_lowest(tiny_run):
    run = tiny_run(checkpoints_total_limit=1)
    run.save(20)

    run.save(5)

    assert names(run) == ["checkpoint-5"]


def test_a_kill_while_an_old_one_is_deleted_leaves_nothing_that_is_half_there(tiny_run, tmp_path, monkeypatch):
    run = tiny_run(checkpoints_total_limit=1)
    run.save(2)

    def killed(folder, ignore_errors):
        if folder.exists() and folder.name.startswith("checkpoint-2"):
            (folder / STATE).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run.save(3)

    assert names(run) == ["checkpoint-3"]
    assert validate_checkpoint(tmp_path / "checkpoint-3") is None
    run.keeper.clear_leftovers()
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-3"}


def test_other_folders_are_left_alone(tiny_run, tmp_path):
    run = tiny_run(checkpoints_total_limit=1)
    for name in ("checkpoint-best", "checkpoint-1-backup", "checkpoints"):
        (tmp_path / name).mkdir()

    run.save(2)
    run.save(3)

    assert {p.name for p in tmp_path.iterdir()} == {
        "checkpoint-best", "checkpoint-1-backup", "checkpoints", "checkpoint-3",
    }  # fmt: skip


def test_leftovers_of_a_killed_save_are_cleared(tiny_run, tmp_path):
    (tmp_path / "checkpoint-7-tmp").mkdir()
    (tmp_path / "checkpoint-7-tmp" / "half.safetensors").touch()

    run = tiny_run()
    run.save(8)

    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-8"}


def test_a_checkpoint_that_stepped_aside_for_a_killed_save_gets_its_name_back(tiny_run, tmp_path):
    run = tiny_run()
    run.save(7)
    (tmp_path / "checkpoint-7").rename(tmp_path / "checkpoint-7-old-tmp")

    run.keeper.clear_leftovers()

    assert validate_checkpoint(tmp_path / "checkpoint-7") is None


def test_the_same_step_can_be_saved_again(tiny_run, tmp_path):
    run = tiny_run()
    run.save(7)
    run.step(rows(1))

    folder = run.save(7)

    assert validate_checkpoint(folder) is None
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-7"}
    other = tiny_run()
    other.snapshot.read(folder)
    assert torch.equal(other.weight, run.weight)


# -- a full disk ------------------------------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_as_safetensors_says_it(*_, **__):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def after(count: int, whole, broken):
    """A function that works `count` times and then fails."""
    calls = iter(range(count))

    def act(*args, **kwargs):
        return whole(*args, **kwargs) if next(calls, None) is not None else broken()

    return act


def fill_first_tensors(patch):
    patch.setattr("safetensors.torch.save_file", full_as_safetensors_says_it)


def fill_later_tensors(patch):
    import safetensors.torch

    patch.setattr("safetensors.torch.save_file", after(1, safetensors.torch.save_file, full_as_safetensors_says_it))


def fill_metadata(patch):
    patch.setattr(base, "_sort_metadata", full)


def fill_json(patch):
    patch.setattr(files, "write_text", full)


def fill_flush(patch):
    patch.setattr(files, "fsync", after(3, files.fsync, full))


def fill_manifest(patch):
    patch.setattr(checkpoint, "write_manifest", full)


def fill_folder(patch):
    patch.setattr("pathlib.Path.mkdir", full)


def fill_rename(patch):
    whole = os.replace
    patch.setattr(os, "replace", lambda a, b: full() if str(a).endswith("-5-tmp") else whole(a, b))


POINTS = [
    fill_first_tensors, fill_later_tensors, fill_metadata, fill_json, fill_flush, fill_manifest, fill_folder,
    fill_rename,
]  # fmt: skip


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step"])
@pytest.mark.parametrize("fill", POINTS, ids=lambda f: f.__name__)
def test_a_disk_that_fills_up_leaves_older_checkpoints_whole(tiny_run, tmp_path, fill, again):
    run = tiny_run(checkpoints_total_limit=1)
    run.save(5 if again else 3)

    with pytest.MonkeyPatch.context() as patch:
        fill(patch)
        with pytest.raises(DiskFullError, match="The disk is full"):
            run.save(5)

    assert names(run) == ["checkpoint-5" if again else "checkpoint-3"]
    assert validate_checkpoint(run.keeper.folders()[0]) is None
    assert not list(tmp_path.glob("*-tmp"))


def test_other_failures_keep_their_own_words(tiny_run, tmp_path, monkeypatch):
    run = tiny_run()
    monkeypatch.setattr(
        "safetensors.torch.save_file", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error"))
    )

    with pytest.raises(OSError, match="I/O error"):
        run.save(5)

    assert not list(tmp_path.iterdir())
