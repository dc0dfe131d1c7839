"""Clips: which frames become samples, how they are grouped, and what a batch of them holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from darkroom.core.errors import DataError
from darkroom.core.events import Warn
from darkroom.data.index.clips import Clipping
from darkroom.data.requirements import DataRequirements
from darkroom.media.frames import Cut, FrameRule
from darkroom.media.video import write_mp4
from darkroom.options.datasets import VideoBlock
from tests.media.media_files import pattern, write
from tests.rows import each_row

NEEDS = DataRequirements("toy", media=frozenset({"image", "video"}), frames=FrameRule(step=4), fps=16.0, temporal=4)


def write_clip(
    path: Path, frames: int, size: tuple[int, int] = (96, 64), fps: float = 24.0, caption: str = "a clip"
) -> Path:
    """Frame i is one grey, 4 * i; so a decoded frame says which one it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 4
    write_mp4(path, np.broadcast_to(grey, (frames, size[1], size[0], 3)).copy(), fps)
    path.with_suffix(".txt").write_text(caption)
    return path


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, F, H, W) to (B, 3, (F - 1) / 4 + 1, H / 8, W / 8): the first frame of each group, averaged."""
    clips = pixels.unsqueeze(2) if pixels.ndim == 4 else pixels
    return torch.nn.functional.avg_pool3d(clips[:, :, ::4], (1, 8, 8))


@pytest.fixture
def clips(shop):
    """A project whose family trains on clips."""
    shop.requirements = NEEDS
    shop.encode_pixels = encode
    return shop


def entry(shop, **video):
    return shop.entry(id="clips", dataset_type="video", train_batch_size=1, video=video)


def test_the_first_frames_of_each_clip_make_a_batch(clips) -> None:
    for i in range(3):
        write_clip(clips.pictures / f"c{i}.mp4", 12 + i)
    plan = clips.filled(entry(clips, num_frames=10, min_frames=10))
    index = plan.datasets[0].index
    assert index.numbers["count"].tolist() == [9, 9, 9]  # 10 is brought down to 4 n + 1
    with plan.loader() as loader:
        batch = next(loader.epoch(1))
    assert batch.latents.shape[1:3] == (3, 3)
    shown = (batch.latents[0, 0, :, 0, 0] + 1) * 127.5 / 4  # the number of the frame that each latent frame shows
    assert shown.round().tolist() == [0, 4, 8]


@pytest.mark.parametrize("is_i2v", [None, True, False])
def test_whether_clips_start_from_their_first_frame_is_told_to_the_step(clips, is_i2v) -> None:
    clips.requirements = dataclasses.replace(NEEDS, may_start=True)
    write_clip(clips.pictures / "c.mp4", 9)
    plan = clips.filled(entry(clips, num_frames=9, is_i2v=is_i2v))
    with plan.loader() as loader:
        assert next(loader.epoch(1)).is_i2v is is_i2v


def test_a_family_whose_flavour_decides_it_says_that_is_i2v_has_no_effect(clips) -> None:
    write_clip(clips.pictures / "c.mp4", 9)
    clips.plan(entry(clips, num_frames=9, is_i2v=True))
    assert any("is_i2v has no effect here" in e.message for e in clips.events if isinstance(e, Warn))


def test_a_clip_gives_several_samples_that_are_encoded_apart(clips) -> None:
    write_clip(clips.pictures / "c.mp4", 20)
    plan = clips.filled(entry(clips, frame_extraction="chunk", target_frames=[5]))
    index = plan.datasets[0].index
    assert index.numbers["start"].tolist() == [0, 5, 10, 15]
    cache = plan.latent_cache(plan.datasets[0])
    first = [(float(cache.get(row)["latents"][0, 0, 0, 0]) + 1) * 127.5 / 4 for row in range(4)]
    assert [round(x) for x in first] == [0, 5, 10, 15]
    again = clips.plan(entry(clips, frame_extraction="chunk", target_frames=[5]))
    assert again.datasets[0].index.opened == 0
    assert len(again.datasets[0].index) == 4
    assert again.fill_latents(encode, "vae-1").encoded == 0


def test_changing_the_extraction_cuts_the_same_files_anew(clips) -> None:
    write_clip(clips.pictures / "c.mp4", 21)
    clips.filled(entry(clips, frame_extraction="chunk", target_frames=[5]))
    plan = clips.plan(entry(clips, frame_extraction="full", max_frames=17))
    assert plan.datasets[0].index.opened == 0
    assert plan.datasets[0].index.numbers["count"].tolist() == [17]


def test_lengths_make_buckets_of_their_own(clips) -> None:
    write_clip(clips.pictures / "short.mp4", 9)
    write_clip(clips.pictures / "long.mp4", 18)
    clips.options["train_batch_size"] = 1
    plan = clips.filled(entry(clips, bucket_strategy="resolution_frames", frame_interval=1))
    assert [b.key for b in plan.datasets[0].buckets.buckets] == ["80x56@9", "80x56@17"]


def test_frames_are_taken_at_a_rate_by_their_time(clips) -> None:
    write_clip(clips.pictures / "c.mp4", 24, fps=24.0)
    plan = clips.filled(entry(clips, num_frames=5, fps=12.0))
    with plan.loader() as loader:
        batch = next(loader.epoch(1))
    shown = (batch.latents[0, 0, :, 0, 0] + 1) * 127.5 / 4
    assert shown.round().tolist() == [0, 8]  # five frames at half the rate are 0, 2, 4, 6, 8


@each_row(
    "block, frames, wanted",
    [
        ({"num_frames": 9}, 8, "too_short"),
        ({"num_frames": 9, "min_frames": 13}, 12, "too_short"),
        ({"num_frames": 9, "max_frames": 20}, 21, "too_long"),
        ({"num_frames": 9, "max_frames": 20}, 20, [Cut(0, 9)]),
        ({"num_frames": 8}, 8, [Cut(0, 5)]),
        ({"bucket_strategy": "resolution_frames", "frame_interval": 8, "num_frames": None}, 27, [Cut(0, 21)]),
        ({"frame_extraction": "slide", "target_frames": [5], "frame_stride": 4}, 13, [Cut(0, 5), Cut(4, 5), Cut(8, 5)]),
        ({"frame_extraction": "uniform", "target_frames": [5], "frame_sample": 2}, 13, [Cut(0, 5), Cut(8, 5)]),
        ({"target_frames": [1, 9]}, 9, [Cut(0, 1), Cut(0, 9)]),
        ({"frame_extraction": "full", "max_frames": 129}, 30, [Cut(0, 29)]),
        ({"source_fps": 32.0, "num_frames": 5}, 12, [Cut(0, 5)]),
    ],
)  # fmt: skip
def test_a_clip_is_cut_by_its_rules(block, frames, wanted) -> None:
    assert Clipping(VideoBlock(**block), NEEDS).of(frames, frames / 24) == wanted


def test_bad_films_are_left_out_and_named(clips) -> None:
    for i in range(2):
        write_clip(clips.pictures / f"c{i}.mp4", 9)
    whole = (clips.pictures / "c0.mp4").read_bytes()
    (clips.pictures / "empty.mp4").write_bytes(b"")
    (clips.pictures / "words.mp4").write_text("not a film")
    (clips.pictures / "torn.mp4").write_bytes(whole[: len(whole) // 3])
    write_clip(clips.pictures / "short.mp4", 3)
    for name in ("empty", "words", "torn"):
        (clips.pictures / f"{name}.txt").write_text("x")
    plan = clips.filled(entry(clips, num_frames=9))
    dropped = plan.datasets[0].drop_counts
    assert plan.datasets[0].buckets.count == 2
    assert dropped.pop("too_short") == 1
    assert dropped.pop("empty file") == 1
    assert sum(dropped.values()) == 2


def test_a_family_of_pictures_refuses_clips(shop) -> None:
    write_clip(shop.pictures / "c.mp4", 9)
    with pytest.raises(DataError, match="trains on image"):
        shop.plan(entry(shop, num_frames=9))


def test_too_few_frames_asked_for_is_an_error(clips) -> None:
    with pytest.raises(Exception, match="cannot give num_frames = 9"):
        clips.read(entry(clips, num_frames=9, min_frames=5))


def test_control_clips_are_made_of_clips_frame_by_frame(clips) -> None:
    from dataclasses import replace

    clips.requirements = replace(NEEDS, references=True)
    for i in range(2):
        write_clip(clips.pictures / f"c{i}.mp4", 9)
    made = clips.filled(entry(clips, num_frames=9) | {"conditioning": {"type": "superresolution", "add_noise": False}})
    with made.loader() as loader:
        batch = next(loader.epoch(1))
    assert batch.references[0].shape == batch.latents.shape
    assert torch.allclose(batch.references[0], batch.latents, atol=0.05)  # a blurred grey is the same grey
    assert len(list((clips.folder / "out/cache/conditioning_data").rglob("*.mp4.mp4"))) == 2


RATE = 8000


def test_a_family_that_hears_is_given_the_sound_of_each_cut(clips) -> None:
    # 24 frames of film, which the family plays at 24 a second, and less sound than film: the second half is louder
    clips.requirements = dataclasses.replace(NEEDS, fps=24.0, audio_format=(RATE, 2))
    loud = np.repeat(np.float32([0.25, 0.5]), RATE * 3 // 8)[None]
    grey = np.full((24, 64, 96, 3), 99, np.uint8)
    for name, sound in (("heard", (loud, RATE)), ("silent", None)):
        write_mp4(clips.pictures / f"{name}.mp4", grey, 24.0, audio=sound)
        (clips.pictures / f"{name}.txt").write_text("a film")
    given: dict[int, list[np.ndarray | None]] = {}

    def hearing(pixels: torch.Tensor, sounds: list[np.ndarray | None]) -> torch.Tensor:
        given.setdefault(pixels.shape[2], []).extend(sounds)
        return encode(pixels)

    clips.encode_pixels = hearing
    clips.filled(entry(clips, target_frames=[9], frame_extraction="chunk"))

    sounds = given[9]
    assert [sound is None for sound in sounds] == [False, False, True, True]
    first, second = sounds[:2]
    assert first is not None
    assert second is not None
    assert first.shape == second.shape == (2, round(9 / 24 * RATE))  # as long as nine frames play
    middle = slice(RATE // 16, 5 * RATE // 16)  # where no edge of the codec's rings
    assert first[:, middle].mean() == pytest.approx(0.25, abs=0.02)
    assert second[:, middle].mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("block", "heard", "left_out"),
    [(None, [True, False], 0), ({}, [True], 1), ({"allow_zero_audio": True}, [True, False], 0),
     ({"auto_split": False}, [False, False], 0)],
)  # fmt: skip
def test_the_block_audio_says_what_becomes_of_the_sound(clips, block, heard, left_out) -> None:
    clips.requirements = dataclasses.replace(NEEDS, fps=24.0, audio_format=(RATE, 1))
    for name, sound in (("heard", (np.zeros((1, RATE), np.float32), RATE)), ("silent", None)):
        write_mp4(clips.pictures / f"{name}.mp4", np.zeros((9, 64, 96, 3), np.uint8), 24.0, audio=sound)
        (clips.pictures / f"{name}.txt").write_text("a film")
    given: list[bool] = []

    def hearing(pixels: torch.Tensor, sounds: list[np.ndarray | None]) -> torch.Tensor:
        given.extend(sound is not None for sound in sounds)
        return encode(pixels)

    plan = clips.plan({**entry(clips, num_frames=9, min_frames=9), "audio": block})
    report = plan.fill_latents(hearing, "vae-1")
    assert given == heard
    assert list(report.dropped.values()) == ["no audio stream"] * left_out


def test_sound_without_a_family_that_hears_is_said_to_have_no_effect(clips) -> None:
    write_clip(clips.pictures / "a.mp4", 9)
    clips.plan({**entry(clips, num_frames=9), "audio": {"auto_split": True}})
    assert any("audio has no effect: toy does not train" in e.message for e in clips.events if isinstance(e, Warn))


def test_what_lies_beside_a_clip_is_not_listened_to(clips) -> None:
    clips.requirements = dataclasses.replace(NEEDS, fps=24.0, audio_format=(RATE, 2), references=True)
    write_clip(clips.pictures / "a.mp4", 9)
    write_clip(clips.folder / "before" / "a.mp4", 9)
    heard: list[int] = []

    def hearing(pixels: torch.Tensor, sounds: list[np.ndarray | None]) -> torch.Tensor:
        heard.append(len(sounds))
        return encode(pixels)

    before = {"id": "before", "dataset_type": "conditioning", "conditioning_type": "reference_strict"}
    plan = clips.plan(
        {**entry(clips, num_frames=9, min_frames=9), "conditioning_data": "before"},
        {**before, "instance_data_dir": str(clips.folder / "before"), "resolution": 64, "caption_strategy": None},
    )
    plan.fill_latents(hearing, "vae-1", plain=(encode, "vae-1"))
    assert heard == [1]


def test_a_clip_too_thin_for_a_size_is_left_out_and_named(clips) -> None:
    write_clip(clips.pictures / "right.mp4", 12)
    path = clips.pictures / "strip.mkv"
    write(path, "ffv1", pattern(12, 8, 400), pixels="yuv444p")
    path.with_suffix(".txt").write_text("a strip")
    plan = clips.plan(entry(clips, num_frames=9, min_frames=9))
    assert plan.datasets[0].drop_counts == {"too thin": 1}
    assert [name for name, _ in plan.datasets[0].index.iterate_dropped()] == ["strip.mkv"]
