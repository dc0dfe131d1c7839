"""Clips in every container: what is counted, which frames are read, and what is said of files that cannot be used."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media_files import av, decoded, encoded, pattern, write, write_sound
from PIL import Image, ImageOps

from darkroom.media import images, video
from darkroom.media.images import BadImage
from darkroom.media.resize import Sizes
from darkroom.media.video import prepare_clip, probe, read_frames, times, write_mp4
from tests.rows import each_row

GROUPS = {"g": "12", "bf": "3"}
WAYS = {
    "h264.mp4": ("libx264", {"options": GROUPS}),
    "open.mp4": ("libx264", {"options": {**GROUPS, "x264-params": "open-gop=1"}}),
    "h265.mp4": ("libx265", {"options": {"x265-params": "log-level=none:keyint=12:bframes=3"}}),
    "front.mp4": ("libx264", {"options": GROUPS, "container": {"movflags": "faststart"}}),
    "parts.mp4": ("libx264", {"options": GROUPS, "container": {"movflags": "frag_keyframe+empty_moov"}}),
    "h264.mkv": ("libx264", {"options": GROUPS}),
    "h264.ts": ("libx264", {"options": GROUPS}),
    "h264.flv": ("libx264", {"options": GROUPS}),
    "vp9.webm": ("libvpx-vp9", {"options": {"g": "12"}}),
    "mpeg4.avi": ("mpeg4", {"options": {"g": "12", "bf": "2"}}),
    "mjpeg.avi": ("mjpeg", {"pixels": "yuvj420p"}),
    "mpeg2.mpg": ("mpeg2video", {"options": {"g": "12", "bf": "2"}, "fps": 25}),
    "wmv2.wmv": ("wmv2", {"options": {"g": "12"}}),
}


@pytest.fixture(scope="module", params=WAYS)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    codec, options = WAYS[request.param]
    return write(tmp_path_factory.mktemp("clips") / request.param, codec, **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain") / "plain.mp4", options=GROUPS, container={"movflags": "faststart"})


def reason(call) -> str:
    with pytest.raises(BadImage) as caught:
        call()
    return caught.value.reason


# --- counting ---------------------------------------------------------------------------------------------------------


def test_frames_rate_and_size_are_those_of_a_full_decode(clip: Path) -> None:
    made = probe(clip)
    assert (made.width, made.height, made.frames) == (64, 48, len(decoded(clip)))
    assert made.fps == (25 if clip.suffix == ".mpg" else 24)
    assert made.duration == pytest.approx(made.frames / made.fps, abs=0.002)


def test_times_are_evenly_spaced_and_as_many_as_frames(clip: Path) -> None:
    made = times(clip)
    assert len(made) == probe(clip).frames
    assert made == pytest.approx(np.arange(50) / probe(clip).fps, abs=0.0011)


def test_a_path_a_text_an_open_file_and_bytes_are_the_same(clip: Path) -> None:
    data, numbers = clip.read_bytes(), [3, 30]
    file = io.BytesIO(data)
    file.seek(7)  # wherever it stands
    assert probe(clip) == probe(str(clip)) == probe(file) == probe(data)
    for source in (str(clip), file, data):
        assert np.array_equal(read_frames(source, numbers), read_frames(clip, numbers))
    assert not file.closed


def test_a_name_full_of_signs_is_only_a_name(tmp_path: Path, plain: Path) -> None:
    for name in ("concat:a|b.mp4", "%03d é\n.mp4", os.fsdecode(b"\xff.mp4")):
        with contextlib.suppress(OSError):  # some file systems refuse some of them
            path = tmp_path / name
            path.write_bytes(plain.read_bytes())
            assert probe(path).frames == 50


@pytest.mark.parametrize("ending", [".mkv", ".mp4"])
def test_a_changing_rate_is_told_by_time_stamps(tmp_path: Path, ending: str) -> None:
    stamps = [0, 40, 80, 500, 540, 1000, 1040, 1080]
    path = write(tmp_path / f"a{ending}", frames=pattern(8), stamps=stamps, options={"bf": "0"})
    assert probe(path).frames == 8
    assert times(path) == pytest.approx(np.array(stamps) / 1000, abs=0.001)
    assert probe(path).fps == pytest.approx(8 / 1.1, rel=0.15)


def test_one_frame_is_a_clip(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.webm"):
        path = write(tmp_path / name, "libvpx-vp9" if name == "a.webm" else "libx264", frames=pattern(1))
        assert (probe(path).frames, len(times(path)), read_frames(path, [0]).shape) == (1, 1, (1, 48, 64, 3))
        assert probe(path).duration > 0


def test_counting_does_not_decode(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mkv", options=GROUPS)
    looks = []
    true = video._detect_format
    monkeypatch.setattr(video, "_detect_format", lambda *given: looks.append(1) or true(*given))
    probe(path)
    times(path)
    assert len(looks) == 1


# --- reading ----------------------------------------------------------------------------------------------------------


@each_row("numbers", [[0], [0, 0, 5, 9], range(50), [23, 47, 47, 48], [24], [30, 31, 40], [36], [49]])
def test_frames_are_exactly_those_of_a_full_decode(clip: Path, numbers) -> None:
    assert np.array_equal(read_frames(clip, numbers), decoded(clip)[list(numbers)])


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, 49), min_size=1, max_size=6).map(sorted))
def test_any_frames_are_exactly_those_of_a_full_decode(clip: Path, numbers: list[int]) -> None:
    assert np.array_equal(read_frames(clip, numbers), decoded(clip)[numbers])


def test_a_late_cut_is_decoded_from_a_key_frame_near_it(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    true = video._decode
    monkeypatch.setattr(video, "_decode", lambda *g, **k: (seen.append(1) or p for p in true(*g, **k)))
    read_frames(plain, [40])
    assert len(seen) <= 12


@pytest.mark.parametrize("numbers", [[], [-1], [3, 2]])
def test_numbers_must_ascend_from_zero(plain: Path, numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        read_frames(plain, numbers)


@pytest.mark.parametrize("numbers", [[0, 50], [50], [400]])
def test_a_frame_after_the_end_is_not_there(plain: Path, numbers: list[int]) -> None:
    assert reason(lambda: read_frames(plain, numbers)) == "truncated"


@each_row("angle, turns", [(90, 1), (180, 2), (-90, 3)])
@each_row("ending", [".mp4", ".mkv"])
def test_rotation_is_applied_to_size_and_pixels_alike(tmp_path: Path, angle: int, turns: int, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", frames=pattern(3), rotation=angle)
    made = read_frames(path, [0, 1, 2])
    assert (probe(path).height, probe(path).width) == made.shape[1:3]
    assert np.array_equal(made, np.rot90(decoded(path), turns, (1, 2)))


@pytest.mark.parametrize(("matrix", "axis"), [((-1, 0, 0, 1), 2), ((1, 0, 0, -1), 1)])
def test_mirrored_clips_are_mirrored_back(tmp_path: Path, matrix, axis: int) -> None:
    a, b, c, d = (v << 16 for v in matrix)
    path = write(tmp_path / "a.mp4", frames=pattern(2), matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    assert np.array_equal(read_frames(path, [0]), np.flip(decoded(path)[:1], axis))


@each_row(
    "aspect, rotation, size",
    [((4, 3), None, (85, 48)), ((1, 2), None, (64, 96)), ((4, 3), 90, (48, 85)), ((1, 100), None, (64, 48))],
)
def test_sizes_are_in_square_pixels(tmp_path: Path, aspect, rotation, size: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mp4", frames=pattern(2), aspect=Fraction(*aspect), rotation=rotation)
    assert (probe(path).width, probe(path).height) == size
    assert read_frames(path, [0]).shape == (1, size[1], size[0], 3)


@each_row(
    "name, codec, pixels, size",
    [
        ("odd.webm", "libvpx-vp9", "yuv420p", (53, 41)),
        ("deep.mp4", "libx265", "yuv420p10le", (64, 48)),
        ("deep.mkv", "ffv1", "yuv444p16le", (63, 47)),
        ("alpha.mov", "prores_ks", "yuva444p10le", (64, 48)),
        ("alpha.mkv", "ffv1", "bgra", (63, 47)),
        ("grey.mkv", "ffv1", "gray", (63, 47)),
    ],
)
def test_odd_sizes_deep_colours_and_alpha_become_rgb(tmp_path, name, codec, pixels, size) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    frames = pattern(3, *size)
    path = write(tmp_path / name, codec, frames, pixels=pixels, options=options)
    made = read_frames(path, [0, 2])
    assert (made.shape, made.dtype) == ((2, size[1], size[0], 3), np.uint8)
    if pixels != "gray":
        assert np.abs(made[..., :2].astype(int) - frames[[0, 2], ..., :2]).mean() < 8


def test_colour_under_transparency_is_kept(tmp_path: Path) -> None:
    clear = np.full((2, 32, 32, 4), (10, 20, 30, 0), np.uint8)
    path = write(tmp_path / "a.mkv", "ffv1", clear, pixels="bgra", source="rgba")
    assert read_frames(path, [0])[0, 5, 5].tolist() == [10, 20, 30]


def test_prepared_frames_are_resized_and_cropped_as_pictures_are(clip: Path) -> None:
    sizes = Sizes((64, 48), (32, 16), (32, 24), 2.0)
    made = prepare_clip(clip, [2, 2, 30], sizes, (5, 0))
    full = decoded(clip)
    by_hand = [images.resize_and_crop(Image.fromarray(full[i]), sizes, (5, 0)) for i in (2, 2, 30)]
    assert np.array_equal(made, by_hand)


def test_prepared_frames_of_another_size_than_planned_are_refused(plain: Path) -> None:
    assert reason(lambda: prepare_clip(plain, [0], Sizes((60, 48), (32, 16), (32, 24), 2.0), (0, 0))) == "size differs"


def test_preparing_holds_one_full_frame_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", frames=pattern(40, 640, 480), options={"preset": "ultrafast"})
    tracemalloc.start()
    made = prepare_clip(path, range(40), Sizes((640, 480), (64, 48), (64, 48), 1.33), (0, 0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < made.nbytes + 4 * 640 * 480 * 3


# --- files that cannot be used ----------------------------------------------------------------------------------------


def test_unusable_files_say_why(tmp_path: Path, plain: Path) -> None:
    moving = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    sound = write_sound(tmp_path / "a.wav", np.zeros((1, 4000), np.float32), 8000)
    covered = write_sound(
        tmp_path / "a.mp3", np.zeros((1, 8000), np.float32), 8000, "libmp3lame", cover=encoded(moving[0], "jpeg")
    )
    whole = write(tmp_path / "whole.mp4").read_bytes()
    cases = {
        "empty file": [b""],
        "not a video": [
            b"hello, this is no film at all\n" * 20,
            encoded(moving[0], "png"),
            encoded(moving[0], "gif", save_all=True, append_images=moving[1:]),
            encoded(moving[0], "webp", save_all=True, append_images=moving[1:]),
            b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        ],
        "no video stream": [sound.read_bytes(), covered.read_bytes()],
        "truncated": [whole[: len(whole) * 2 // 3], plain.read_bytes()[:900], plain.read_bytes()[:20]],
    }
    for expected, files in cases.items():
        for data in files:
            (tmp_path / "file.mp4").write_bytes(data)
            for source in (tmp_path / "file.mp4", data):
                for call in (probe, times, lambda s: read_frames(s, [0])):
                    if expected == "truncated" and call is times:
                        continue  # packets may be there that cannot be decoded
                    assert reason(lambda call=call, source=source: call(source)) == expected


def test_a_file_that_went_or_may_not_be_read_is_named_so(tmp_path: Path, plain: Path) -> None:
    assert reason(lambda: probe(tmp_path / "gone.mp4")) == "vanished"
    if os.geteuid():
        shut = tmp_path / "shut.mp4"
        shut.write_bytes(plain.read_bytes())
        shut.chmod(0)
        assert reason(lambda: probe(shut)) == "unreadable"


@each_row("share", [0.7, 0.9])
def test_frames_before_a_cut_are_counted_and_read(tmp_path: Path, clip: Path, share: float) -> None:
    data = clip.read_bytes()
    cut = data[: int(len(data) * share)]
    if clip.name in ("h264.mp4", "open.mp4", "h265.mp4") or (clip.name, share) == ("parts.mp4", 0.9):
        assert reason(lambda: probe(cut)) == "truncated"  # the cut took the table of frames or went through one
        return
    made = probe(cut)
    assert 0 < made.frames <= 50
    assert len(times(cut)) == made.frames
    whole = decoded(clip)
    sure = made.frames - 4  # the order of storing is not that of showing
    if sure > 0:
        assert np.array_equal(read_frames(cut, [0, sure - 1]), whole[[0, sure - 1]])


def test_a_header_that_promises_more_than_the_file_holds_is_not_believed(plain: Path) -> None:
    data = plain.read_bytes()
    cut = data[: int(len(data) * 0.8)]
    made = probe(cut)
    assert made.frames < 50
    assert len(read_frames(cut, range(made.frames))) == made.frames
    assert reason(lambda: read_frames(cut, range(50))) in ("truncated", "damaged")


@pytest.mark.parametrize(("edge", "expected"), [(16000, "too many pixels"), (60000, "truncated")])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, edge: int, expected: str) -> None:
    path = write(tmp_path / "a.avi", "rawvideo", pattern(2, 64, 48), pixels="bgr24")
    bomb = path.read_bytes().replace(struct.pack("<ii", 64, -48), struct.pack("<ii", edge, -edge))
    assert reason(lambda: probe(bomb)) == expected  # the larger one FFmpeg itself does not accept
    assert reason(lambda: read_frames(bomb, [0])) == expected


def damaged(path: Path, number: int) -> bytes:
    """The file with the inside of the packet shown as frame `number` overwritten."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        found = sorted((p.pts, p.pos, p.size) for p in file.demux(video=0) if p.size)
    _, at, size = found[number]
    data[at + size // 2 : at + size] = b"\xa5" * (size - size // 2)
    return bytes(data)


@each_row(
    "hurt, numbers, usable",
    [
        (20, [0, 5, 11], True),
        (20, [20], False),
        (20, range(50), False),
        (12, [13], False),  # made from a damaged key frame
        (20, [36, 40], True),  # after the next key frame
        (40, [24, 30], True),
    ],
)
def test_damage_matters_only_to_frames_that_depend_on_it(tmp_path: Path, hurt: int, numbers, usable: bool) -> None:
    path = write(
        tmp_path / "a.mp4",
        frames=np.random.default_rng(0).integers(0, 255, (50, 48, 64, 3), np.uint8),
        options={"g": "12", "bf": "0", "x264-params": "scenecut=0:keyint=12:min-keyint=12"},
    )
    data = damaged(path, hurt)
    if usable:
        assert np.array_equal(read_frames(data, numbers), decoded(path)[list(numbers)])
    else:
        assert reason(lambda: read_frames(data, numbers)) == "damaged"


def test_every_cut_of_a_file_is_a_clip_or_a_bad_one(clip: Path) -> None:
    data = clip.read_bytes()
    for end in range(0, len(data), max(1, len(data) // 25)):
        for call in (probe, times, lambda d: read_frames(d, [0, 30])):
            with contextlib.suppress(BadImage):
                call(data[:end])


def test_flipped_bytes_never_raise_anything_else(clip: Path) -> None:
    rng = np.random.default_rng(2)
    data = clip.read_bytes()
    for _ in range(25):
        hurt = bytearray(data)
        hurt[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        for call in (probe, times, lambda d: read_frames(d, [0, 30])):
            with contextlib.suppress(BadImage):
                call(bytes(hurt))


# --- folders of pictures ----------------------------------------------------------------------------------------------


def folder_of(path: Path, frames: np.ndarray) -> Path:
    path.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"frame {i}.png")
    (path / "notes.txt").write_text("no frame")
    (path / ".hidden.png").write_bytes(b"")
    return path


def test_a_folder_of_pictures_is_a_clip_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    frames = pattern(12)
    folder = folder_of(tmp_path / "clip", frames)
    assert probe(folder) == video.Clip(64, 48, 12, 0.0, 0.0)
    assert np.array_equal(read_frames(folder, [2, 10, 10, 11]), frames[[2, 10, 10, 11]])
    sizes = Sizes((64, 48), (32, 16), (32, 24), 2.0)
    by_hand = images.resize_and_crop(Image.fromarray(frames[3]), sizes, (1, 0))
    assert np.array_equal(prepare_clip(str(folder), [3], sizes, (1, 0)), [by_hand])


@pytest.mark.parametrize("kind", ["tiff", "jpg", "png"])
def test_frames_in_a_folder_are_turned_once_and_have_their_size_upright(tmp_path: Path, kind) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, frame in enumerate(pattern(3)):
        Image.fromarray(frame).save(tmp_path / f"{i}.{kind}", exif=exif)
    clip = probe(tmp_path)
    frames = read_frames(tmp_path, [0, 2])
    assert (clip.width, clip.height) == (48, 64)
    with Image.open(tmp_path / f"2.{kind}") as last:
        assert np.array_equal(frames[1], np.asarray(ImageOps.exif_transpose(last).convert("RGB")))


def test_a_folder_that_is_no_clip_says_why(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clip", pattern(3))
    assert reason(lambda: times(folder)) == "no frame times"
    assert reason(lambda: read_frames(folder, [3])) == "truncated"
    Image.new("RGB", (5, 5)).save(folder / "frame 3.png")
    assert reason(lambda: probe(folder)) == "size differs"
    assert reason(lambda: read_frames(folder, [0, 3])) == "size differs"
    (tmp_path / "empty").mkdir()
    assert reason(lambda: probe(tmp_path / "empty")) == "not a video"


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    frames = np.zeros((6, 48, 64, 3), np.uint8)
    for frame, colour in zip(
        frames, [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (90, 160, 40)], strict=True
    ):
        frame[:] = colour
    write_mp4(tmp_path / "a.mp4", frames, 24000 / 1001, quality=4)
    made = probe(tmp_path / "a.mp4")
    assert (made.width, made.height, made.frames) == (64, 48, 6)
    assert made.fps == pytest.approx(24000 / 1001)
    assert np.abs(read_frames(tmp_path / "a.mp4", range(6)).astype(int) - frames).max() <= 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_track_is_written_beside_the_film(tmp_path: Path, channels: int) -> None:
    write_mp4(tmp_path / "a.mp4", pattern(24), 24, audio=(np.zeros((channels, 16000), np.float32), 16000))
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert [s.type for s in file.streams] == ["video", "audio"]
        assert file.streams.audio[0].codec_context.layout.nb_channels == channels
        assert float(file.streams.audio[0].duration * file.streams.audio[0].time_base) == pytest.approx(1, abs=0.1)


@each_row(
    "frames, audio, words",
    [
        (np.zeros((2, 47, 64, 3), np.uint8), None, "crop it to 64x46"),
        (np.zeros((2, 48, 64, 3), np.float32), None, "uint8"),
        (np.zeros((0, 48, 64, 3), np.uint8), None, "uint8"),
        (np.zeros((2, 48, 64, 3), np.uint8), (np.zeros((3, 9), np.float32), 8000), "1 or 2"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path: Path, frames, audio, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_mp4(tmp_path / "a.mp4", frames, 24, audio=audio)
    assert not list(tmp_path.iterdir())
