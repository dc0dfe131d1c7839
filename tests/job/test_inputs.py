"""Validation prompts that come from datasets: their captions, and the pictures that the model starts from."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from darkroom import families
from darkroom.cli.main import main
from darkroom.core.events import Bus, Warn
from darkroom.families.shared.conditioning import control_kwargs
from darkroom.job import train
from darkroom.report.eventlog import read
from darkroom.tools.verify import verify
from darkroom.validate.prompts import Prompt
from darkroom.validate.recipe import Recipe
from tests.families import conformance

EDGES = {"conditioning": {"type": "canny", "conditioning_type": "controlnet"}}


def drawn(tmp_path):
    """The recipes of the last step's pictures, by name."""
    originals = sorted((tmp_path / "out/validation_images/originals").glob("step_4_*.png"))
    return {path.stem.split("_", 2)[2].rsplit("_", 2)[0]: Recipe.read(path) for path in originals}


def test_a_controlnet_is_validated_with_control_pictures_of_its_dataset(arguments, dataset_file, tmp_path, capfd):
    mine = {**EDGES, "instance_data_dir": str(_photographs(tmp_path))}
    data = dataset_file(mine, {**EDGES, "disable_validation": True})
    argv = arguments(
        "sdxl", controlnet=True, model_type="full", data_backend_config=data, num_eval_images=2,
        validation_prompt="a cup",
    )  # fmt: skip
    assert main(["plan", *argv]) == 0
    assert main(["train", *argv]) == 0

    found = drawn(tmp_path)
    assert list(found) == ["set0_0", "set0_1"]
    assert [recipe.prompt for recipe in found.values()] == ["a photograph of chelsea", "a photograph of coffee"]
    edges = np.asarray(Image.open(found["set0_0"].pictures[0]))
    assert {*np.unique(edges).tolist()} == {0, 255}
    said = [row["message"] for row in read(tmp_path / "out/events.jsonl") if row["event"] == "warning"]
    assert any("is not drawn: validation" in message for message in said)
    verdict = verify(tmp_path / "out")
    assert verdict.images == 2
    assert verdict.difference <= 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_input_stands_beside_what_was_made_of_it(arguments, dataset_file, tmp_path, side):
    folder, before = _photographs(tmp_path), tmp_path / "before"
    before.mkdir()
    for path in folder.glob("*.png"):
        Image.new("RGB", (64, 64), "red").save(before / path.name)
    references = {
        "id": "before", "dataset_type": "conditioning", "conditioning_type": "reference_strict",
        "source_dataset_id": "set0", "instance_data_dir": str(before), "caption_strategy": None,
    }  # fmt: skip
    argv = arguments(
        "qwen_image", model_flavour="tiny-edit", num_eval_images=1, validation_using_datasets=True,
        data_backend_config=dataset_file({"instance_data_dir": str(folder)}, references),
        validation_stitch_input_location=side,
    )  # fmt: skip
    assert main(["train", *argv]) == 0

    (sheet,) = (tmp_path / "out/validation_images").glob("step_4_*.png")
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    column = pixels[80, 10 if side == "left" else -10]
    assert column.tolist() == [255, 0, 0]


def test_clips_start_from_the_first_frame_of_a_samples_clip(arguments, dataset_file, tmp_path):
    from darkroom.media.video import write_mp4

    films = tmp_path / "films"
    films.mkdir()
    frames = np.zeros((9, 64, 64, 3), np.uint8)
    frames[0] = 200
    write_mp4(films / "flash.mp4", frames, 16.0)
    (films / "flash.txt").write_text("a flash")
    data = dataset_file(dataset_type="video", instance_data_dir=str(films), video={"num_frames": 9, "min_frames": 9})
    argv = arguments("wan", model_flavour="tiny-i2v", data_backend_config=data, train_batch_size=1)
    assert main(["train", *argv]) == 0

    (recipe,) = drawn(tmp_path).values()
    assert recipe.prompt == "a flash"
    assert np.asarray(Image.open(recipe.pictures[0])).mean() > 150


@pytest.mark.parametrize(("flavour", "starts"), [("tiny-vace", False), ("tiny-fun", False), ("tiny-fun-i2v", True)])
def test_control_clips_are_validated_with_whole(arguments, dataset_file, tmp_path, flavour, starts):
    from darkroom.media.video import write_mp4

    for name in ("films", "followed"):
        (tmp_path / name).mkdir()
        frames = np.zeros((9, 64, 64, 3), np.uint8)
        frames[5:] = 200
        write_mp4(tmp_path / name / "step.mp4", frames, 16.0)
    (tmp_path / "films/step.txt").write_text("a step")
    data = dataset_file(
        {"dataset_type": "video", "instance_data_dir": str(tmp_path / "films"), "video": {"num_frames": 9}},
        {
            "id": "followed", "dataset_type": "conditioning", "conditioning_type": "controlnet",
            "source_dataset_id": "set0", "instance_data_dir": str(tmp_path / "followed"), "caption_strategy": None,
        },
    )  # fmt: skip
    argv = arguments(
        "wan", model_flavour=flavour, data_backend_config=data, train_batch_size=1, validation_num_video_frames=13
    )
    assert main(["train", *argv]) == 0

    (recipe,) = drawn(tmp_path).values()
    with Image.open(recipe.pictures[0]) as clip:
        assert clip.n_frames == 9
        call = control_kwargs(families.get("wan", flavour), clip, 64, 64, conformance.options("wan", flavour))
        (given,) = call.values()
    if starts:
        with Image.open(recipe.pictures[1]) as first:
            assert getattr(first, "n_frames", 1) == 1
    assert [np.asarray(frame).mean() > 150 for frame in given] == [False] * 5
    verdict = verify(tmp_path / "out")
    assert verdict.images == 1
    assert verdict.difference <= 1


@pytest.mark.parametrize(
    ("options", "named"),
    [({"validation_using_datasets": True}, "starts from no picture"),
     ({"model_flavour": "tiny-kontext", "validation_using_datasets": True, "eval_dataset_id": "x"}, "eval_dataset_id")],
)  # fmt: skip
def test_what_cannot_be_taken_from_datasets_is_said(arguments, dataset_file, capfd, options, named):
    assert main(["train", *arguments("flux", data_backend_config=dataset_file(), **options)]) == 2
    assert named in capfd.readouterr().err


def _photographs(tmp_path):
    from skimage import data

    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).resize((64, 64)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a photograph of {name}")
    return folder


def test_prompts_of_a_library_that_bring_pictures_are_drawn_as_they_are(arguments, dataset_file, photographs, tmp_path):
    library = tmp_path / "prompts.json"
    library.write_text(json.dumps({"cup": {"prompt": "a cup", "image": str(photographs / "coffee.png")}}))
    argv = arguments(
        "sdxl", controlnet=True, model_type="full", user_prompt_library=library,
        data_backend_config=dataset_file({**EDGES, "instance_data_dir": str(photographs)}),
    )  # fmt: skip
    assert main(["train", *argv]) == 0
    assert list(drawn(tmp_path)) == ["cup"]


def test_a_dataset_chosen_for_nothing_is_reported(tmp_path):
    """Prompts of the settings are drawn, so `eval_dataset_id` chooses nothing."""
    bus, heard = Bus(), []
    bus.on(Warn, heard.append)
    config = SimpleNamespace(
        **{**vars(conformance.options("sd1x", "tiny")), "eval_dataset_id": "cats", "validation_disable": False}
    )
    run = SimpleNamespace(config=config, family=families.get("sd1x", "tiny"), bus=bus)
    prompts = [Prompt("validation", "a house")]

    assert train.collect_prompts(run, None, prompts) is prompts
    assert "eval_dataset_id = cats" in heard[0].message
