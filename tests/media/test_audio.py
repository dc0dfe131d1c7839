"""Sound: lengths, stretches to the sample, mixing, and files that cannot be used."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from media_files import av, encoded, pattern, write, write_sound
from PIL import Image

from darkroom.media.audio import SHORT, AudioFacts, mixing_matrix, probe, read_audio
from darkroom.media.images import BadImage
from darkroom.media.video import write_mp4
from tests.rows import each_row

RATE = 48000
CODECS = {
    "a.wav": "pcm_s16le",
    "a.flac": "flac",
    "a.aiff": "pcm_s16be",
    "a.mp3": "libmp3lame",
    "a.m4a": "aac",
    "a.opus": "libopus",
    "a.ogg": "vorbis",
    "a.mkv": "aac",
}


def noise(seconds: float, rate: int = RATE) -> np.ndarray:
    """float32 (2, samples): soft noise without high tones, left and right unlike."""
    rng = np.random.default_rng(0)
    window = np.hanning(64) / 320
    return np.stack([np.convolve(rng.normal(size=int(seconds * rate)), window, "same") for _ in range(2)]).astype("f4")


@pytest.fixture(scope="module", params=CODECS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"strict": "experimental"} if request.param == "a.ogg" else {}
    path = tmp_path_factory.mktemp("sounds") / request.param
    return write_sound(path, noise(3), RATE, CODECS[request.param], options=options)


def reason(call) -> str:
    with pytest.raises(BadImage) as caught:
        call()
    return caught.value.reason


def test_length_rate_and_channels_are_known_without_decoding(sound: Path) -> None:
    made = probe(sound)
    assert (made.rate, made.channels) == (RATE, 2)
    assert made.seconds == pytest.approx(3, abs=SHORT)
    assert made.samples == round(made.seconds * RATE)
    if sound.suffix in (".wav", ".flac", ".aiff", ".mp3", ".m4a"):
        assert made == AudioFacts(3.0, RATE, 2, 3 * RATE)
    assert probe(sound.read_bytes()) == probe(io.BytesIO(sound.read_bytes())) == made


@each_row("start", [0.0, 0.25, 1.7])
def test_a_stretch_has_the_asked_length_and_starts_where_it_should(sound: Path, start: float) -> None:
    made = read_audio(sound, RATE, 2, start, 1.0)
    assert (made.shape, made.dtype) == ((2, RATE), np.float32)
    lossless = sound.suffix in (".wav", ".flac", ".aiff")
    begin = round(start * RATE)
    # .mkv knows only milliseconds: up to 24 samples off
    where = [noise(3)[:, begin + d :][:, :RATE] for d in (range(-24, 25) if sound.suffix == ".mkv" and begin else [0])]
    off = [np.abs(made - there) for there in where]
    assert min(o.max() for o in off) < 2e-5 if lossless else min(o.mean() for o in off) < 0.004


@each_row("rate, seconds", [(16000, 1.00003), (44100, 0.5), (8000, 2.9), (RATE, 1 / RATE)])
def test_the_number_of_samples_is_exact_at_every_rate(sound: Path, rate: int, seconds: float) -> None:
    assert read_audio(sound, rate, 1, 0.01, seconds).shape == (1, round(seconds * rate))


def test_a_jump_into_a_long_file_changes_nothing(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac"):
        path = write_sound(tmp_path / name, noise(12), RATE, CODECS[name])
        near, whole = read_audio(path, RATE, 2, 9.5, 2), read_audio(path, RATE, 2, 0, 12)
        assert np.array_equal(near, whole[:, int(9.5 * RATE) : int(11.5 * RATE)])


def test_another_rate_keeps_the_tone(tmp_path: Path) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)[None].astype(np.float32)
    path = write_sound(tmp_path / "a.wav", tone, RATE)
    by_hand = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    made = read_audio(path, 16000, 1, 0, 1)[0]
    assert np.abs(made - by_hand)[200:-200].max() < 0.01


def test_one_channel_is_the_mean_and_two_are_the_same_twice(tmp_path: Path) -> None:
    both = noise(1)
    path = write_sound(tmp_path / "a.wav", both, RATE)
    assert read_audio(path, RATE, 1, 0, 1)[0] == pytest.approx(both.mean(0), abs=4e-5)
    alone = write_sound(tmp_path / "b.wav", both[:1], RATE)
    made = read_audio(alone, RATE, 2, 0, 1)
    assert np.array_equal(made[0], made[1])


def test_surround_is_brought_to_left_and_right(tmp_path: Path) -> None:
    six = np.zeros((6, RATE), np.float32)
    six[0], six[3] = 0.5, 1.0  # left, and the low-frequency channel, which is dropped
    path = write_sound(tmp_path / "a.wav", six, RATE, layout="5.1")
    made = read_audio(path, RATE, 2, 0.1, 0.5)
    assert made[0] == pytest.approx(0.5 / (1 + 2 * 0.5**0.5), abs=1e-3)
    assert made[1] == pytest.approx(0, abs=1e-4)
    assert read_audio(path, RATE, 6, 0.1, 0.5).shape == (6, RATE // 2)
    assert reason(lambda: read_audio(path, RATE, 4, 0, 0.5)) == "wrong channels"


def test_mixing_never_exceeds_what_went_in() -> None:
    for names in (["FL", "FR"], ["FL", "FR", "FC", "LFE", "SL", "SR", "BL", "BR"], ["XX", "YY", "ZZ"]):
        for channels in (1, 2):
            weights = mixing_matrix(names, channels)
            assert weights.shape == (channels, len(names))
            assert (weights >= 0).all()
            assert (weights.sum(1) > 0).all()
            assert (weights.sum(1) <= 1 + 1e-6).all()
    assert mixing_matrix(["FL", "FR"], 1).tolist() == [[0.5, 0.5]]


def test_the_sound_of_a_video_is_read(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", pattern(48), 24, audio=(noise(2), RATE))
    made = probe(tmp_path / "a.mp4")
    assert (made.rate, made.channels) == (RATE, 2)
    assert made.seconds == pytest.approx(2, abs=SHORT)
    assert np.abs(read_audio(tmp_path / "a.mp4", RATE, 2, 0.5, 1) - noise(2)[:, RATE // 2 : 3 * RATE // 2]).max() < 0.01


def test_a_sound_that_starts_after_the_film_begins_with_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        film = file.add_stream("mjpeg", rate=10)
        film.width, film.height, film.pix_fmt = 64, 48, "yuvj420p"
        track = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        for i, pixels in enumerate(pattern(20)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            file.mux(film.encode(frame))
        late = av.AudioFrame.from_ndarray(np.full((1, 8000), 16384, np.int16), format="s16", layout="mono")
        late.sample_rate, late.pts, late.time_base = 8000, 4000, film.codec_context.time_base / 800
        file.mux(track.encode(late))
        file.mux([*film.encode(None), *track.encode(None)])
    made = read_audio(path, 8000, 1, 0.25, 1.0)[0]
    assert made[:1990] == pytest.approx(0)
    assert made[2010:] == pytest.approx(0.5, abs=1e-3)


def test_a_stretch_after_the_end_is_truncated_and_a_breath_is_not(sound: Path) -> None:
    assert reason(lambda: read_audio(sound, RATE, 1, 2.5, 1.0)) == "truncated"
    assert reason(lambda: read_audio(sound, RATE, 1, 60, 1.0)) == "truncated"
    assert read_audio(sound, RATE, 1, 2.5, 0.5 + SHORT / 2).shape[1] == round((0.5 + SHORT / 2) * RATE)


def test_unusable_files_say_why(tmp_path: Path) -> None:
    wave = write_sound(tmp_path / "a.wav", noise(1), RATE).read_bytes()
    silent = write(tmp_path / "a.mp4", frames=pattern(5)).read_bytes()
    cases = {
        "empty file": b"",
        "not a sound": b"la la la, this is only text\n" * 30,
        "no audio stream": silent,
        "truncated": wave[:44],
    }
    for expected, data in cases.items():
        assert reason(lambda data=data: probe(data)) == expected
        assert reason(lambda data=data: read_audio(data, 8000, 1, 0, 0.5)) == expected
    assert reason(lambda: probe(encoded(Image.new("RGB", (9, 9)), "jpeg"))) == "not a sound"
    assert reason(lambda: probe(tmp_path / "gone.wav")) == "vanished"


def test_a_cut_file_is_as_long_as_what_is_left(tmp_path: Path) -> None:
    whole = write_sound(tmp_path / "a.wav", noise(2), RATE).read_bytes()
    assert probe(whole[: len(whole) // 2]).seconds == pytest.approx(1, abs=SHORT)
    assert reason(lambda: read_audio(whole[: len(whole) // 2], RATE, 2, 0, 2)) == "truncated"


def test_cover_art_is_no_film_that_sets_the_clock(tmp_path: Path) -> None:
    art = encoded(Image.new("RGB", (16, 16), "red"), "jpeg")
    path = write_sound(tmp_path / "a.mp3", noise(2), RATE, "libmp3lame", cover=art)
    assert np.abs(read_audio(path, RATE, 2, 0.5, 1) - noise(2)[:, RATE // 2 : 3 * RATE // 2]).max() < 0.01


@each_row("wrong", [(0, 1, 0, 1), (8000, 0, 0, 1), (8000, 1, -1, 1), (8000, 1, 0, 0)])
def test_numbers_that_make_no_sense_are_refused(sound: Path, wrong) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        read_audio(sound, *wrong)


def test_cut_and_flipped_files_never_raise_anything_else(sound: Path) -> None:
    data, rng = sound.read_bytes(), np.random.default_rng(3)
    for i in range(40):
        hurt = bytearray(data[: len(data) * i // 40] if i % 2 else data)
        if hurt:
            hurt[rng.integers(min(len(hurt), 4096 if i % 4 else len(hurt)))] ^= 1 << int(rng.integers(8))
        for call in (probe, lambda d: read_audio(d, 16000, 1, 0.5, 1)):
            with contextlib.suppress(BadImage):
                call(bytes(hurt))
