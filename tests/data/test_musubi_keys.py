"""Keys of a musubi-tuner dataset file do what they do there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from darkroom.core.errors import ConfigError
from darkroom.data.plan import scan_datasets
from darkroom.data.requirements import DataRequirements
from darkroom.media.frames import FrameRule
from darkroom.options.datasets import DatasetFile, read_datasets
from darkroom.options.datasets.musubi import FRAMEPACK
from tests.data.prepared import PreparedData
from tests.data.test_clips import write_clip

CLIPS = DataRequirements(
    "toy", media=frozenset({"image", "video"}), frames=FrameRule(step=4), fps=16.0, temporal=4, references=True
)


@pytest.fixture
def project(shop, monkeypatch):
    monkeypatch.chdir(shop.folder)
    shop.options |= {"output_dir": "out"}
    return shop


def read(project, dataset: dict[str, Any], general: dict[str, Any] | None = None) -> DatasetFile:
    Path("musubi.json").write_text(json.dumps({"general": general or {}, "datasets": [dataset]}))
    return read_datasets("musubi.json", project.config, {})


def scanned(project, dataset: dict[str, Any], needs: DataRequirements = CLIPS) -> PreparedData:
    from darkroom.core.events import Bus

    return PreparedData(scan_datasets(project.config, read(project, dataset), Bus(), needs))


def pictures(project, size=(200, 100), **keys: Any) -> dict[str, Any]:
    project.add(2, size)
    return {"image_directory": "pictures", "resolution": [64, 64], "caption_extension": ".txt", **keys}


def films(project, frames: int = 24, **keys: Any) -> dict[str, Any]:
    write_clip(Path("films/a.mp4"), frames)
    return {"video_directory": "films", "resolution": [64, 64], "caption_extension": ".txt", **keys}


def cuts(plan: PreparedData) -> list[tuple[int, int]]:
    at = plan.datasets[0].index.numbers
    return list(zip(at["start"].tolist(), at["count"].tolist(), strict=True))


@pytest.mark.parametrize(
    ("keys", "target"),
    [
        ({}, (64, 64)),
        ({"resolution": 48}, (48, 48)),
        ({"enable_bucket": True}, (80, 48)),
        ({"enable_bucket": True, "resolution": [320, 320]}, (448, 224)),
        ({"enable_bucket": True, "resolution": [320, 320], "bucket_no_upscale": True}, (192, 96)),
    ],
)
def test_pictures_get_the_buckets_of_musubi_tuner(project, keys, target) -> None:
    plan = scanned(project, pictures(project, **keys))
    assert [bucket.target for bucket in plan.datasets[0].buckets.buckets] == [target]


def test_captions_batches_and_repeats_of_a_folder(project) -> None:
    dataset = pictures(project, batch_size=2, num_repeats=3, caption_extension=".caption", cache_directory="kept")
    for i in range(2):
        Path(f"pictures/p{i:03d}.caption").write_text(f"first line {i}\nsecond")
    plan = scanned(project, dataset)
    assert plan.captions() == ["first line 0\nsecond", "first line 1\nsecond"]
    assert plan.lengths.batches_per_epoch == 3
    assert plan.datasets[0].entry.cache_dir_vae == Path("kept/darkroom/dataset-1")


def test_general_values_hold_where_a_dataset_says_nothing(project) -> None:
    project.add(1)
    made = read(project, {"image_directory": "pictures", "batch_size": 3}, {"batch_size": 2, "num_repeats": 5})
    assert (made.samples[0].train_batch_size, made.samples[0].repeats) == (3, 4)


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, [(0, 1)]),
        ({"target_frames": [9]}, [(0, 9)]),
        ({"target_frames": [9], "frame_extraction": "chunk"}, [(0, 9), (9, 9)]),
        ({"target_frames": [9], "frame_extraction": "slide", "frame_stride": 7}, [(0, 9), (7, 9), (14, 9)]),
        ({"target_frames": [9], "frame_extraction": "uniform", "frame_sample": 2}, [(0, 9), (15, 9)]),
        ({"frame_extraction": "full"}, [(0, 21)]),
        ({"frame_extraction": "full", "max_frames": 13}, [(0, 13)]),
        ({"target_frames": [9], "frame_extraction": "chunk", "source_fps": 32.0}, [(0, 9)]),
    ],
)  # fmt: skip
def test_films_are_cut_as_musubi_tuner_cuts_them(project, keys, wanted) -> None:
    assert cuts(scanned(project, films(project, **keys))) == wanted


def test_films_and_their_controls_may_stand_in_a_list(project) -> None:
    write_clip(Path("films/a.mp4"), 9)
    write_clip(Path("controls/b.mp4"), 9)
    line = {"video_path": "films/a.mp4", "caption": "told", "control_path": "controls/b.mp4"}
    Path("list.jsonl").write_text(json.dumps(line) + "\n")
    keys = {"video_jsonl_file": "list.jsonl", "cache_directory": "kept", "resolution": [64, 64], "target_frames": [9]}
    plan = scanned(project, keys)
    assert plan.captions() == ["told"]
    assert [c.index.path(0) for c in plan.datasets[0].conditioning] == ["films/a.mp4"]
    assert plan.datasets[0].conditioning[0].index.store.local("films/a.mp4") == Path("controls/b.mp4")


def test_controls_of_films_lie_in_a_folder(project) -> None:
    write_clip(Path("controls/a.mp4"), 24)
    plan = scanned(project, films(project, control_directory="controls", target_frames=[9]))
    assert plan.datasets[0].conditioning[0].present.all()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("flux_kontext_no_resize_control", "no_resize_control"),
        ("qwen_image_edit_no_resize_control", "no_resize_control"),
        ("qwen_image_edit_control_resolution", "control_resolution"),
    ],
)
def test_old_names_are_understood_with_a_warning(project, old, new) -> None:
    project.add(1)
    Path("controls").mkdir()
    value: Any = [32, 32] if new == "control_resolution" else True
    keys = {"image_directory": "pictures", "control_directory": "controls", "caption_extension": ".txt"}
    made, plain = read(project, {**keys, old: value}), read(project, {**keys, new: value})
    assert made.samples == plain.samples
    assert [old in warning for warning in made.warnings if "old name" in warning] == [True]


def test_an_edited_list_is_read_again(project) -> None:
    project.add(1)
    for caption in ("before", "afterwards"):
        Path("list.jsonl").write_text(json.dumps({"image_path": "pictures/p000.png", "caption": caption}))
        plan = scanned(project, {"image_jsonl_file": "list.jsonl", "cache_directory": "kept"})
        assert plan.captions() == [caption]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"bucket_no_upscale": True}, "bucket_no_upscale has no effect: enable_bucket is false"),
        ({"fp_latent_window_size": 9}, "offered for FramePack only"),
    ],
)
def test_a_key_that_does_nothing_here_says_so(project, keys, words) -> None:
    assert any(words in warning for warning in read(project, pictures(project, **keys)).warnings)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"bucket_no_upscale": True}, "bucket_no_upscale has no effect: clips always have buckets"),
        ({"max_frames": 9}, "max_frames has no effect: frame_extraction is not full"),
        ({"frame_stride": 3}, "frame_stride has no effect: frame_extraction is not slide"),
        ({"frame_sample": 3}, "frame_sample has no effect: frame_extraction is not uniform"),
        ({"frame_extraction": "uniform"}, "uniform with frame_sample = 1 is the same as head"),
    ],
)
def test_a_key_that_does_nothing_for_films_says_so(project, keys, words) -> None:
    assert any(words in warning for warning in read(project, films(project, **keys)).warnings)


def test_a_control_folder_beside_a_list_says_that_it_does_nothing(project) -> None:
    project.add(1)
    Path("list.jsonl").write_text(json.dumps({"image_path": "pictures/p000.png", "caption": "x"}))
    made = read(project, {"image_jsonl_file": "list.jsonl", "control_directory": "controls"})
    assert any("control_directory has no effect" in warning for warning in made.warnings)


@pytest.mark.parametrize(("key", "option"), FRAMEPACK.items())
def test_keys_of_framepack_agree_with_the_options(project, key, option) -> None:
    value = [1] if "indices" in key else 1
    project.options |= {"model_family": "framepack_one_frame", option: value}
    assert read(project, pictures(project, **{key: value})).warnings == ()
    project.options[option] = None
    with pytest.raises(ConfigError, match=rf"Set {option} to"):
        read(project, pictures(project, **{key: value}))


def test_several_controls_say_that_one_is_drawn_unless_all_are_asked_for(project) -> None:
    keys = pictures(project, control_directory="controls")
    for i in range(2):
        project.picture(Path(f"controls/p000_{i}.png"), caption=None)
    assert any("conditioning_multidataset_sampling to combined" in w for w in read(project, keys).warnings)
    project.options["conditioning_multidataset_sampling"] = "combined"
    assert read(project, keys).warnings == ()
