"""Files, frames, sizes, captions and batches of musubi-tuner's dataset files, against its rules written again."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from tests.data.test_clips import write_clip
from tests.data.test_musubi_keys import project, scanned  # noqa: F401
from tests.rows import each_row

SIZES = ((96, 96), (160, 80), (80, 160), (200, 40), (64, 48), (96, 90), (300, 200))
CLIPS = {"a": 41, "b": 24, "c": 7}
CLIP_SIZE = (64, 48)


def list_buckets(width: int, height: int) -> list[tuple[int, int]]:
    """Section 4 of musubi-tuner's rules: every width in steps of 16 and the height that keeps the area."""
    side = math.isqrt(width * height)
    sizes = set()
    for w in range(side // 2 // 16 * 16, side + 16, 16):
        h = width * height // w // 16 * 16
        sizes |= {(w, h), (h, w)}
    return sorted(sizes)


def choose_size(size: tuple[int, int], keys: dict[str, Any], clip: bool = False) -> tuple[int, int]:
    resolution = keys["resolution"]
    width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
    if not keys.get("enable_bucket") and not clip:
        return width, height
    if keys.get("bucket_no_upscale") and not clip and size[0] * size[1] <= width * height:
        return size[0] // 16 * 16, size[1] // 16 * 16
    return min(list_buckets(width, height), key=lambda bucket: abs(bucket[0] / bucket[1] - size[0] / size[1]))


def crops_of(frames: int, keys: dict[str, Any]) -> list[tuple[int, int]]:
    """Section 3.4: first frame and length of every part of a clip of so many frames."""
    if "source_fps" in keys:
        number, last, kept = 0.0, -1, 0
        for _ in range(frames):
            kept, last = kept + (int(number) != last), int(number)
            number += 16.0 / keys["source_fps"]
        frames = kept
    targets = sorted({(n - 1) // 4 * 4 + 1 for n in keys.get("target_frames", [1])})
    mode, fitting = keys.get("frame_extraction", "head"), [n for n in targets if n <= frames]
    if mode == "full":
        return [(0, (min(frames, keys.get("max_frames", 129)) - 1) // 4 * 4 + 1)]
    if mode == "uniform" and keys.get("frame_sample", 1) == 1:
        mode = "head"
    starts = {
        "head": lambda n: [0],
        "chunk": lambda n: [*range(0, frames - n + 1, n)],
        "slide": lambda n: [*range(0, frames - n + 1, keys.get("frame_stride", 1))],
        "uniform": lambda n: sorted(
            {int(i * (frames - n) / (keys["frame_sample"] - 1)) for i in range(keys["frame_sample"])}
        ),
    }[mode]
    return [(start, n) for n in fitting for start in starts(n)]


IMAGES = [
    {"resolution": resolution, "batch_size": batch, "num_repeats": repeats, **bucket}
    for (resolution, batch, repeats), bucket in itertools.product(
        [(64, 1, 1), ([96, 64], 2, 1), ([96, 96], 3, 2), ([160, 96], 4, 1), ([128, 128], 2, 3)],
        [{}, {"enable_bucket": True}, {"enable_bucket": True, "bucket_no_upscale": True}, {"bucket_no_upscale": True}],
    )
]
VIDEOS = [
    {"resolution": [64, 64], "batch_size": batch, **mode, **rate}
    for (batch, mode), rate in itertools.product(
        [
            (1, {}),
            (2, {"target_frames": [1, 9, 17]}),
            (2, {"target_frames": [10, 9], "frame_extraction": "chunk"}),
            (3, {"target_frames": [5], "frame_extraction": "slide", "frame_stride": 6}),
            (2, {"target_frames": [5, 9], "frame_extraction": "uniform", "frame_sample": 3}),
            (1, {"target_frames": [9], "frame_extraction": "uniform"}),
            (1, {"frame_extraction": "full"}),
            (2, {"frame_extraction": "full", "max_frames": 20}),
        ],
        [{}, {"source_fps": 30.0}, {"source_fps": 8.0}],
    )
]


def test_there_are_forty_dataset_files() -> None:
    assert len(IMAGES) + len(VIDEOS) >= 40


def compare(plan, expected: Counter, captions: set[str], keys: dict[str, Any]) -> None:
    """`expected` counts samples by path, start, frames and size."""
    dataset = plan.datasets[0]
    at = dataset.index.numbers
    rows = [
        (Path(dataset.index.path(int(row))).stem, int(at["start"][row]), int(at["count"][row]), bucket.target)
        for bucket in dataset.buckets.buckets
        for row in bucket.rows
    ]
    assert Counter(rows) == expected
    assert set(plan.captions()) == captions
    groups = Counter((frames, size) for _, _, frames, size in expected)
    size, repeats = keys["batch_size"], keys.get("num_repeats", 1)
    batches = Counter()
    for count in groups.values():
        full, rest = divmod(count * repeats, size)
        batches += Counter({size: full, **({rest: 1} if rest else {})})
    epoch = plan.order().epoch(1)
    assert Counter(len(epoch.batch(position).members) for position in range(len(epoch))) == batches


@each_row("keys", IMAGES, ids=str)
def test_images_are_those_of_musubi_tuner(project, keys) -> None:  # noqa: F811
    Path("images").mkdir(exist_ok=True)
    for number, size in enumerate(SIZES):
        if not Path(f"images/i{number}.png").exists():
            Image.new("RGB", size, (number * 30, 0, 0)).save(f"images/i{number}.png")
            Path(f"images/i{number}.txt").write_text(f" caption {number}\nof two lines\n" if number else "")
    plan = scanned(project, {"image_directory": "images", "caption_extension": ".txt", **keys})
    expected = Counter((f"i{number}", 0, 1, choose_size(size, keys)) for number, size in enumerate(SIZES))
    compare(plan, expected, {"", *(f"caption {n}\nof two lines" for n in range(1, len(SIZES)))}, keys)


@each_row("keys", VIDEOS, ids=str)
def test_clips_are_those_of_musubi_tuner(project, keys) -> None:  # noqa: F811
    for name, frames in CLIPS.items():
        if not Path(f"clips/{name}.mp4").exists():
            write_clip(Path(f"clips/{name}.mp4"), frames)
            Path(f"clips/{name}.txt").write_text(f"clip {name}")
    plan = scanned(project, {"video_directory": "clips", "caption_extension": ".txt", **keys})
    at = plan.datasets[0].index.numbers
    size = (int(at["width"][0]), int(at["height"][0]))
    expected = Counter(
        (name, start, count, choose_size(size, keys, clip=True))
        for name, frames in CLIPS.items()
        for start, count in crops_of(frames, keys)
    )
    used = {name for name, _, _, _ in expected}
    compare(plan, expected, {f"clip {name}" for name in used}, keys)
