"""Dataset files of SimpleTuner, where they mean something that they do not say."""

from __future__ import annotations

import pytest

from darkroom.data.requirements import DataRequirements
from darkroom.data.suitability import fit_conditioning
from darkroom.options.datasets import read_datasets
from tests.rows import each_row

CLIPS = {"id": "clips", "dataset_type": "video", "instance_data_dir": "."}
BEFORE = {
    "id": "before", "dataset_type": "conditioning", "conditioning_type": "controlnet", "source_dataset_id": "pics",
    "instance_data_dir": ".",
}  # fmt: skip


def warned(file, words):
    return [warning for warning in file.warnings if words in warning]


@pytest.mark.parametrize(("framerate", "frames"), [(None, 80), (25, 125)])
def test_clips_without_a_length_are_five_seconds_at_the_familys_rate(framerate, frames, shop):
    shop.options["framerate"] = framerate
    shop.read(CLIPS)
    file = read_datasets(shop.folder / "datasets.json", shop.config, {}, frame_rate=16)
    assert file.samples[0].video.num_frames == frames
    assert warned(file, "five seconds at")


@each_row(
    "block, expected",
    [
        ({"num_frames": 9, "frame_rate": 12}, (9, 12, None)),
        ({"num_frames": 9, "frame_rate": 0, "max_frames": 0, "min_frames": 0}, (9, None, None)),
        ({"num_frames": 9, "max_frames": 90}, (9, None, 90)),
    ],
)
def test_numbers_of_a_clip_are_left_out_by_zero_and_frame_rate_is_fps(block, expected, shop):
    video = shop.read({**CLIPS, "video": block}).samples[0].video
    assert (video.num_frames, video.fps, video.max_frames) == expected


@each_row("value", [0, -1, "", None, False, "0"])
@each_row("key", ["minimum_image_size", "maximum_image_size", "target_downsample_size"])
def test_sizes_of_a_dataset_are_left_out_by_zero(key, value, shop):
    assert getattr(shop.read(shop.entry(**{key: value})).samples[0], key) is None


def test_conditioning_beside_a_controlnet_is_for_the_controlnet(shop):
    shop.options["controlnet"] = True
    plain = {key: value for key, value in BEFORE.items() if key != "conditioning_type"}
    file = shop.read(shop.entry(), plain)
    assert file.samples[1].conditioning_type == "controlnet"
    assert warned(file, "conditioning_type is not set")


def test_controls_are_references_for_a_model_that_edits(shop):
    file = fit_conditioning(shop.read(shop.entry(), BEFORE), DataRequirements("edits", references=True))
    assert file.samples[1].conditioning_type == "reference_strict"
    assert warned(file, "read as reference_strict")


def test_controls_stay_controls_where_the_model_takes_them(shop):
    file = fit_conditioning(shop.read(shop.entry(), BEFORE), DataRequirements("net", control="pixels"))
    assert file.samples[1].conditioning_type == "controlnet"


@pytest.mark.parametrize("is_tiny", [True, False])
def test_only_tiny_leaves_out_what_it_cannot_take(is_tiny, shop):
    file = fit_conditioning(shop.read(shop.entry(), BEFORE), DataRequirements("plain", substitutes=is_tiny))
    assert [d.id for d in file.samples] == (["pics"] if is_tiny else ["pics", "before"])
    assert file.samples[0].conditioning_data == (() if is_tiny else ("before",))


@each_row("kind", ["caption", "distillation_cache"])
def test_datasets_for_distillation_have_no_effect_without_it(kind, shop):
    file = shop.read(shop.entry(), {"id": "words", "dataset_type": kind, "instance_data_dir": "."})
    assert [d.id for d in file.samples] == ["pics"]
    assert warned(file, "this run distills nothing")
