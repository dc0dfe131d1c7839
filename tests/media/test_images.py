"""Every kind of file that turns up in a folder of pictures."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from darkroom.data.cache.encoders import stack_pixels
from darkroom.media import quality
from darkroom.media.images import (
    READERS,
    BadImage,
    Traits,
    load_rgb,
    load_rgba,
    prepare_image,
    prepare_layers,
    read_header,
    read_size,
    resize,
)
from darkroom.media.resize import Sizes
from tests.media.profiles import cmyk_profile, gray_profile, rgb_profile
from tests.rows import each_row


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@each_row("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
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


@each_row(
    "data",
    [np.uint16([[0, 255, 256, 3000]]), np.uint16([[65535, 32896]]), np.int32([[0, 65535]]), np.float32([[0, 0.2, 1]])],
)
def test_wide_gray_has_a_scale_that_does_not_depend_on_the_image(data: np.ndarray) -> None:
    seen = np.asarray(load_rgb(encoded(Image.fromarray(data), "tiff")))[..., 0]
    right = data * 255.0 if data.dtype == np.float32 else data / 257.0
    assert np.abs(seen - right).max() <= 0.5


@pytest.mark.parametrize("data", [np.int32([[0, 70000]]), np.int32([[-1, 5]]), np.float32([[0, 128, 255]])])
def test_pixel_values_on_another_scale_are_not_guessed_at(data: np.ndarray) -> None:
    with pytest.raises(BadImage, match="pixel values out of range"):
        load_rgb(encoded(Image.fromarray(data), "tiff"))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp", "avif", "heif", "jxl"])
def test_an_image_is_turned_once_as_its_header_says_whatever_holds_it(kind: str, turn: int) -> None:
    if kind in ("heif", "jxl"):
        reader = next(r for r in READERS if kind in r.module)
        pytest.importorskip(reader.module)
        reader.register()
    exif = Image.Exif()
    exif[0x0112] = turn
    ramp = np.zeros((32, 48, 3), np.uint8)
    ramp[:16, :24, 0], ramp[16:, :24, 1], ramp[:16, 24:, 2] = 255, 255, 255
    data = encoded(Image.fromarray(ramp), kind, exif=exif.tobytes())

    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    seen = load_rgb(data)

    assert seen.size == shown.size == read_size(io.BytesIO(data)) == ((32, 48) if turn > 4 else (48, 32))
    assert np.array_equal(np.asarray(seen), np.asarray(shown))
    assert np.array_equal(np.asarray(quality.load_small(data, 8)), np.asarray(shown)) or kind == "jpeg"


PROFILES = {"RGB": rgb_profile(), "RGBA": rgb_profile(), "P": rgb_profile(), "L": gray_profile(), "LA": gray_profile(),
            "1": gray_profile(), "I;16": gray_profile(), "CMYK": cmyk_profile()}  # fmt: skip


def painted(mode: str) -> Image.Image:
    """An image of many colors in a mode."""
    colors = np.random.default_rng(3).integers(0, 256, (8, 12, 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(colors[..., 0].astype(np.uint16) * 257)
    if mode == "P":
        return Image.fromarray(colors).quantize(32)
    return Image.fromarray(colors).convert(mode)


@each_row("mode", PROFILES)
def test_colors_are_brought_to_srgb_by_the_profile_of_the_file(mode: str) -> None:
    image, profile = painted(mode), PROFILES[mode]
    data = encoded(image, "tiff" if mode == "CMYK" else "png", icc_profile=profile)
    base = {"RGBA": "RGB", "P": "RGB", "LA": "L", "1": "L", "I;16": "L"}.get(mode, mode)
    eight = Image.fromarray((np.asarray(image) // 257).astype(np.uint8)) if mode == "I;16" else image.convert(base)
    shown = ImageCms.profileToProfile(
        eight, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )

    assert read_header(io.BytesIO(data)).traits == Traits.PROFILE
    assert np.array_equal(np.asarray(load_rgb(data)), np.asarray(shown))
    assert np.array_equal(np.asarray(load_rgba(data))[..., :3], np.asarray(shown))
    stored = np.asarray(load_rgb(data, convert=False))
    assert np.array_equal(stored, np.asarray(eight.convert("RGB")))
    assert mode == "1" or not np.array_equal(stored, np.asarray(shown))


def test_lab_pixels_become_the_colors_that_they_mean() -> None:
    image = painted("RGB")
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    for convert in (True, False):
        seen = load_rgb(encoded(lab, "tiff"), convert)
        assert np.abs(np.asarray(seen).astype(int) - np.asarray(image)).mean() < 3


@each_row(
    "profile, traits",
    [
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), Traits.NONE),
        (b"no profile at all", Traits.ODD_PROFILE),
        (cmyk_profile(), Traits.ODD_PROFILE),
        (rgb_profile()[:200], Traits.ODD_PROFILE),
    ],
)
def test_srgb_and_profiles_that_do_not_fit_leave_pixels_alone(profile: bytes, traits: Traits) -> None:
    image = painted("RGB")
    data = encoded(image, icc_profile=profile)
    assert read_header(io.BytesIO(data)).traits == traits
    assert np.array_equal(np.asarray(load_rgb(data)), np.asarray(image))


@pytest.mark.parametrize("kind", ["HEIF", "JXL"])
def test_heic_and_jxl_are_read_by_packages_that_are_named_when_they_lack(kind: str, monkeypatch) -> None:
    reader = READERS[0] if kind == "HEIF" else READERS[1]
    pytest.importorskip(reader.module)
    reader.register()
    flat = Image.new("RGB", (64, 32), (200, 100, 50))
    data = encoded(flat, kind)
    assert read_size(io.BytesIO(data)) == load_rgb(data).size == (64, 32)
    assert np.abs(np.asarray(load_rgb(data)).astype(int) - (200, 100, 50)).max() < 12
    with pytest.raises(BadImage) as caught:
        load_rgb(data[:16] + bytes(100))
    assert caught.value.reason in (reader.failing, "damaged")

    Image.init()  # the plug-ins that it knows must not be added to lists that are thrown away
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k not in ("HEIF", "JXL")})
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name not in ("HEIF", "JXL")])
    monkeypatch.setitem(__import__("sys").modules, reader.module, None)
    with pytest.raises(BadImage, match=r"is not installed: pip install 'darkroom-trainer\[images\]'") as caught:
        load_rgb(data)
    assert caught.value.reason == reader.missing


def test_shrinking_by_areas_is_that_of_opencv_within_one_level_on_forty_sizes() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for i in range(40):
        width, height = rng.integers(2, 300, 2)
        scale = rng.uniform(0.05, 1)
        size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        pixels = (pixels > 127).astype(np.uint8) * 255 if i % 2 else pixels
        seen = np.asarray(resize(Image.fromarray(pixels), size, area_down=True)).astype(int)
        assert np.abs(seen - cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)).max() <= 1


@each_row("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16"])
def test_every_mode_is_a_picture_with_layers_and_only_some_are_layers(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 9), 40000, np.uint16))
    elif mode == "PA":
        image = Image.new("RGBA", (9, 5), (10, 20, 30, 0)).quantize()
    else:
        image = Image.new("RGB", (9, 5), "white").convert(mode)
    data, sizes = encoded(image), Sizes((9, 5), (9, 5), (9, 5), 1.8)
    alpha = mode in ("LA", "PA", "RGBA")

    assert read_header(io.BytesIO(data)) == ((9, 5), alpha, Traits.NONE)
    assert prepare_layers(data, [], sizes, (0, 0)).shape == (1, 5, 9, 4)
    assert (prepare_layers(data, [], sizes, (0, 0))[..., 3] == (0 if mode == "PA" else 255)).all()
    if alpha:
        assert prepare_layers(data, [data], sizes, (0, 0)).shape == (2, 5, 9, 4)
    else:
        with pytest.raises(BadImage, match="layer without alpha"):
            prepare_layers(data, [data], sizes, (0, 0))


@pytest.mark.parametrize("area_down", [False, True])
def test_resizing_lets_no_colour_shine_through_from_transparent_pixels(area_down) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (255, 0, 0, 255)
    pixels[:, :4] = (0, 255, 0, 0)
    data = encoded(Image.fromarray(pixels))
    made = prepare_layers(data, [data], Sizes((8, 8), (4, 4), (4, 4), 1.0, area_down), (0, 0))
    assert (made[..., 1][made[..., 3] > 0] == 0).all()


def test_orientation_of_a_palette_png_survives_the_conversion() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (9, 5), "red").convert("P"), exif=exif)
    assert read_size(io.BytesIO(data)) == load_rgb(data).size == (5, 9)


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert read_header(io.BytesIO(data)).traits == Traits.ANIMATED
    assert load_rgb(data).getpixel((0, 0)) == (255, 0, 0)


def test_an_image_that_no_reader_knows_is_not_called_damaged_alone() -> None:
    floats = encoded(Image.fromarray(np.float32(np.eye(4))), "tiff").replace(
        struct.pack("<HHII", 258, 3, 1, 32)[:10], struct.pack("<HHII", 258, 3, 1, 64)[:10]
    )
    with pytest.raises(BadImage) as caught:
        load_rgb(floats)
    assert caught.value.reason == "damaged or of an unknown kind"


def test_unusable_bytes_say_why() -> None:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "jpeg")
    reasons = {"empty file": b"", "not a picture": b"GIF? no", "truncated": whole[: len(whole) // 2]}
    for reason, data in reasons.items():
        with pytest.raises(BadImage) as caught:
            load_rgb(data)
        assert caught.value.reason == reason


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    for read in (lambda: read_size(io.BytesIO(bomb)), lambda: load_rgb(bomb)):
        with pytest.raises(BadImage, match="too many pixels"):
            read()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_cut_of_a_file_is_a_picture_or_a_bad_one() -> None:
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp"):
        data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8)), kind)
        for end in range(0, len(data), max(1, len(data) // 40)):
            for read in (load_rgb, lambda d: read_size(io.BytesIO(d))):
                with contextlib.suppress(BadImage):
                    read(data[:end])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(2)
    for kind in ("png", "jpeg", "gif", "tiff", "webp"):
        data = bytearray(encoded(Image.new("RGB", (16, 16), "green"), kind))
        for _ in range(60):
            damaged = bytearray(data)
            damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            with contextlib.suppress(BadImage):
                load_rgb(bytes(damaged))


def test_a_vanished_file_is_named_so(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="vanished"):
        read_size(tmp_path / "gone.png")


def test_prepare_resizes_then_crops_at_top_and_left() -> None:
    ramp = np.zeros((4, 8, 3), np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(8) * 10, np.arange(4)[:, None] * 10
    made = prepare_image(encoded(Image.fromarray(ramp)), Sizes((8, 4), (4, 2), (8, 4), 2.0), (1, 3))
    assert made.shape == (2, 4, 3)
    assert made[0, 0].tolist() == [30, 10, 0]


def test_prepare_refuses_a_picture_of_another_size() -> None:
    with pytest.raises(BadImage, match="size differs"):
        prepare_image(encoded(Image.new("RGB", (8, 8))), Sizes((8, 4), (4, 2), (8, 4), 2.0), (0, 0))


def test_tensors_run_from_minus_one_to_one() -> None:
    made = stack_pixels([np.array([[[0, 127, 255]]], np.uint8)])[0]
    assert made.shape == (3, 1, 1)
    assert made.flatten().tolist() == pytest.approx([-1.0, -0.0039, 1.0], abs=1e-4)
