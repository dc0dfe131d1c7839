"""Numbers for what an eye sees: sharpness, sameness, and what sizing does to a picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from darkroom.media import quality
from darkroom.media.images import BadImage
from darkroom.media.resize import Sizes


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    from skimage import data

    names = ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "moon", "page", "grass", "gravel", "brick")
    return [Image.fromarray(getattr(data, name)()).convert("RGB") for name in names]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def scores(images) -> np.ndarray:
    return np.array([quality.sharpness(quality.to_gray(image, 768)) for image in images])


# ---------------------------------------------------------------------- sharpness


def test_no_photograph_is_called_blurred(photographs):
    assert not quality.soft(scores(photographs)).any()


def test_a_blurred_copy_of_each_photograph_is_found(photographs):
    for image in photographs:
        blurred = image.filter(ImageFilter.GaussianBlur(4))
        assert quality.soft(scores([*photographs, blurred])).tolist() == [False] * len(photographs) + [True]


def test_a_sharp_subject_before_a_soft_background_is_sharp(photographs):
    portrait = photographs[0].filter(ImageFilter.GaussianBlur(8))
    portrait.paste(photographs[0].crop((150, 50, 350, 250)), (150, 50))

    assert not quality.soft(scores([*photographs, portrait]))[-1]


def test_a_laplacian_worked_by_hand():
    """Stripes of 0 and 10 along rows: |L| is 4 * 10 - 2 * 10 either way, +20 and -20, whose variance is 400."""
    stripes = np.tile(np.array([[0.0], [10.0]], np.float32), (40, 80))

    assert quality.sharpness(stripes[:, :80]) == pytest.approx(400, rel=0.02)


def test_a_picture_of_a_few_pixels_has_no_sharpness():
    assert quality.sharpness(np.zeros((4, 400), np.float32)) == 0.0
    assert quality.soft(np.zeros(0)).tolist() == []


# ---------------------------------------------------------------------- sameness


def groups(images) -> list[list[int]]:
    outlines = np.array([quality.outline(image) for image in images], np.uint64)
    return quality.group_similar(outlines, np.stack([quality.miniature(image) for image in images]))


def test_different_photographs_are_not_alike(photographs):
    assert groups(photographs) == []


def test_the_same_photograph_saved_otherwise_is_found(photographs):
    for image in photographs:
        small = image.resize((image.width // 2, image.height // 2))
        again = Image.open(io.BytesIO(encoded(small, "JPEG", quality=50)))
        assert groups([*photographs, again]) == [[photographs.index(image), len(photographs)]]


def test_one_composition_in_other_colours_is_another_picture(photographs):
    red, green, blue = photographs[1].split()

    assert groups([photographs[1], Image.merge("RGB", (blue, green, red))]) == []


def test_a_group_is_around_its_first_picture_and_takes_each_once():
    outlines = np.array([0, 0, 2**64 - 1, 0, 2**64 - 1], np.uint64)

    assert quality.group_similar(outlines, np.zeros((5, 16, 16, 3), np.uint8)) == [[0, 1, 3], [2, 4]]


# ---------------------------------------------------------------------- reading


def test_a_large_jpeg_is_read_smaller_and_upright(photographs):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photographs[3].resize((2560, 1708)), "JPEG", exif=exif)

    image = quality.load_small(data, 300)

    assert image.mode == "RGB"
    assert min(image.size) >= 300
    assert image.width < 1708 / 2
    assert image.height > image.width


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty file"), (b"words", "not a picture")])
def test_what_cannot_be_read_is_named(data, reason):
    with pytest.raises(BadImage) as caught:
        quality.load_small(data, 300)

    assert caught.value.reason == reason


def test_a_large_truncated_jpeg_is_named(photographs):
    data = encoded(photographs[3].resize((2560, 1708)), "JPEG")

    with pytest.raises(BadImage) as caught:
        quality.load_small(data[:20000], 300)

    assert caught.value.reason == "truncated"


def test_transparency_counts_only_where_it_is_used(photographs):
    whole = photographs[2].convert("RGBA")
    clear = whole.copy()
    clear.putpixel((5, 5), (0, 0, 0, 0))

    assert not quality.is_see_through(encoded(whole, "PNG"))
    assert quality.is_see_through(encoded(clear, "PNG"))
    assert not quality.is_see_through(encoded(photographs[2], "JPEG"))


# ---------------------------------------------------------------------- sizing


def test_what_a_crop_keeps():
    """400x200 to 200x100, of which 100x100 from column 60 on: the middle half of the width, half of the area."""
    sizes = Sizes((400, 200), (100, 100), (200, 100), 1.0)

    assert quality.crop_region(sizes, (0, 60)) == (0.3, 0.0, 0.5, 1.0)
