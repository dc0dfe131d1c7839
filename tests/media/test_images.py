"""Every kind of file that turns up in a folder of pictures."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom.data.encoders import pixels_of
from darkroom.media.images import BadPicture, frames_of, load_rgb, prepare, prepare_layers, read_header, read_size
from darkroom.media.resize import Sizes


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (9, 5), (200, 100, 50))
    image = Image.fromarray(np.full((5, 9), 40000, np.uint16)) if mode == "I;16" else image.convert(mode)
    made = load_rgb(encoded(image))
    assert (made.mode, made.size) == ("RGB", (9, 5))


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpeg_modes_become_rgb(mode: str) -> None:
    assert load_rgb(encoded(Image.new("RGB", (9, 5)).convert(mode), "jpeg")).mode == "RGB"


def test_sixteen_bits_keep_their_range() -> None:
    made = load_rgb(encoded(Image.fromarray(np.array([[0, 65535, 32896]], np.uint16))))
    assert np.asarray(made)[0, :, 0].tolist() == [0, 255, 128]


def test_alpha_is_dropped_and_the_colour_below_is_kept() -> None:
    assert load_rgb(encoded(Image.new("RGBA", (2, 2), (10, 20, 30, 0)))).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_applied_to_size_and_pixels_alike(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(Image.new("RGB", (9, 5)), "jpeg", exif=exif)
    assert read_size(io.BytesIO(data)) == load_rgb(data).size == ((5, 9) if turn > 4 else (9, 5))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16"])
def test_every_mode_is_a_picture_with_layers_and_only_some_are_layers(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 9), 40000, np.uint16))
    elif mode == "PA":
        image = Image.new("RGBA", (9, 5), (10, 20, 30, 0)).quantize()
    else:
        image = Image.new("RGB", (9, 5), "white").convert(mode)
    data, sizes = encoded(image), Sizes((9, 5), (9, 5), (9, 5), 1.8)
    alpha = mode in ("LA", "PA", "RGBA")

    assert read_header(io.BytesIO(data)) == ((9, 5), alpha)
    assert prepare_layers(data, [], sizes, (0, 0)).shape == (1, 5, 9, 4)
    assert (prepare_layers(data, [], sizes, (0, 0))[..., 3] == (0 if mode == "PA" else 255)).all()
    if alpha:
        assert prepare_layers(data, [data], sizes, (0, 0)).shape == (2, 5, 9, 4)
    else:
        with pytest.raises(BadPicture, match="layer without alpha"):
            prepare_layers(data, [data], sizes, (0, 0))


def test_resizing_lets_no_colour_shine_through_from_transparent_pixels() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (255, 0, 0, 255)
    pixels[:, :4] = (0, 255, 0, 0)
    data = encoded(Image.fromarray(pixels))
    made = prepare_layers(data, [data], Sizes((8, 8), (4, 4), (4, 4), 1.0), (0, 0))
    assert (made[..., 1][made[..., 3] > 0] == 0).all()


def test_orientation_of_a_palette_png_survives_the_conversion() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (9, 5), "red").convert("P"), exif=exif)
    assert read_size(io.BytesIO(data)) == load_rgb(data).size == (5, 9)


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert frames_of(data) == 2
    assert load_rgb(data).getpixel((0, 0)) == (255, 0, 0)


def test_unusable_bytes_say_why() -> None:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "jpeg")
    reasons = {"empty file": b"", "not a picture": b"GIF? no", "truncated": whole[: len(whole) // 2]}
    for reason, data in reasons.items():
        with pytest.raises(BadPicture) as caught:
            load_rgb(data)
        assert caught.value.reason == reason


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    for read in (lambda: read_size(io.BytesIO(bomb)), lambda: load_rgb(bomb)):
        with pytest.raises(BadPicture, match="too many pixels"):
            read()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_cut_of_a_file_is_a_picture_or_a_bad_one() -> None:
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp"):
        data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8)), kind)
        for end in range(0, len(data), max(1, len(data) // 40)):
            for read in (load_rgb, lambda d: read_size(io.BytesIO(d))):
                with contextlib.suppress(BadPicture):
                    read(data[:end])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(2)
    for kind in ("png", "jpeg", "gif", "tiff", "webp"):
        data = bytearray(encoded(Image.new("RGB", (16, 16), "green"), kind))
        for _ in range(60):
            damaged = bytearray(data)
            damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            with contextlib.suppress(BadPicture):
                load_rgb(bytes(damaged))


def test_a_vanished_file_is_named_so(tmp_path: Path) -> None:
    with pytest.raises(BadPicture, match="vanished"):
        read_size(tmp_path / "gone.png")


def test_prepare_resizes_then_crops_at_top_and_left() -> None:
    ramp = np.zeros((4, 8, 3), np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(8) * 10, np.arange(4)[:, None] * 10
    made = prepare(encoded(Image.fromarray(ramp)), Sizes((8, 4), (4, 2), (8, 4), 2.0), (1, 3))
    assert made.shape == (2, 4, 3)
    assert made[0, 0].tolist() == [30, 10, 0]


def test_prepare_refuses_a_picture_of_another_size() -> None:
    with pytest.raises(BadPicture, match="size differs"):
        prepare(encoded(Image.new("RGB", (8, 8))), Sizes((8, 4), (4, 2), (8, 4), 2.0), (0, 0))


def test_tensors_run_from_minus_one_to_one() -> None:
    made = pixels_of([np.array([[[0, 127, 255]]], np.uint8)])[0]
    assert made.shape == (3, 1, 1)
    assert made.flatten().tolist() == pytest.approx([-1.0, -0.0039, 1.0], abs=1e-4)
