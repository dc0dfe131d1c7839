"""Batches, captions and frames of a musubi-tuner dataset file are those of musubi-tuner."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from darkroom.media.frames import thin_frames
from darkroom.options.datasets import read_datasets
from tests.data.test_musubi_keys import cuts, pictures, project, scanned  # noqa: F401
from tests.rows import each_row


def batch_sizes(plan) -> list[int]:
    epoch = plan.order().epoch(1)
    return sorted(len(epoch.batch(position).members) for position in range(len(epoch)))


@each_row("count, size, sizes", [(5, 2, [1, 2, 2]), (3, 4, [3]), (4, 4, [4]), (7, 3, [1, 3, 3])])
def test_last_batches_are_short_and_every_image_is_trained_once(project, count, size, sizes) -> None:  # noqa: F811
    project.add(count)
    plan = scanned(project, {**pictures(project, batch_size=size), "num_repeats": 1})
    usable = len(plan.datasets[0].index.usable)
    assert sum(batch_sizes(plan)) == usable
    epoch = plan.order().epoch(1)
    members = Counter(int(m) for position in range(len(epoch)) for m in epoch.batch(position).members)
    assert set(members.values()) == {1}


def test_empty_captions_are_trained(project) -> None:  # noqa: F811
    dataset = pictures(project)
    Path("pictures/p000.txt").write_text(" \n")
    plan = scanned(project, dataset)
    assert len(plan.datasets[0].index.usable) == 2
    assert "" in plan.captions()


def test_empty_captions_of_a_list_are_trained(project) -> None:  # noqa: F811
    project.add(1)
    Path("list.jsonl").write_text('{"image_path": "pictures/p000.png", "caption": ""}\n')
    plan = scanned(project, {"image_jsonl_file": "list.jsonl", "cache_directory": "kept", "resolution": [64, 64]})
    assert plan.captions() == [""]


def test_a_dataset_repeated_no_times_is_not_trained_and_said_to_be_so(project) -> None:  # noqa: F811
    trained, idle = pictures(project), pictures(project, num_repeats=0)
    Path("musubi.json").write_text(json.dumps({"datasets": [trained, {**idle, "cache_directory": "other"}]}))
    file = read_datasets("musubi.json", project.config, {})
    assert any("num_repeats is 0" in warning for warning in file.warnings)
    assert [dataset.probability for dataset in file.training] == [1.0, 0.0]


def test_a_clip_of_a_list_may_be_a_folder_of_frames(project) -> None:  # noqa: F811
    Path("frames/b").mkdir(parents=True)
    for number in range(9):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(f"frames/b/{number:03d}.png")
    Path("list.jsonl").write_text(json.dumps({"video_path": "frames/b", "caption": "told"}) + "\n")
    keys = {"video_jsonl_file": "list.jsonl", "cache_directory": "kept", "resolution": [64, 64], "target_frames": [5]}
    plan = scanned(project, {**keys, "frame_extraction": "chunk"})
    assert plan.captions() == ["told"]
    assert cuts(plan) == [(0, 5)]
    assert plan.datasets[0].buckets.buckets[0].target == (64, 64)


def accumulate(total: int, source: float, target: float) -> list[int]:
    """musubi-tuner's rule as its documentation has it, in a loop."""
    kept, number, last = [], 0.0, -1
    for frame in range(total):
        if int(number) != last:
            kept.append(frame)
            last = int(number)
        number += target / source
    return kept


SOURCES = """
    1 3 4 5 6 8 10 12 12.5 14.985 15 16 17 18 19 20 21 22 23.976 24 25 26 27 28 29.97 30 31 32 33 35 36 40 45 48 50
    59.94 60 64 72 75 80 90 96 100 119.88 120 144 165 180 192 200 240
"""
RATES = [(float(source), target) for target in (16.0, 24.0, 30.0) for source in SOURCES.split()]


def test_source_fps_keeps_the_frames_of_an_added_up_number() -> None:
    assert len(RATES) == 156
    for source, target in RATES:
        assert thin_frames(1000, source, target).tolist() == accumulate(1000, source, target)
    products = np.flatnonzero(np.diff(np.floor(np.arange(1000) * 16.0 / 30.0), prepend=-1.0)).tolist()
    assert products != thin_frames(1000, 30.0, 16.0).tolist()
