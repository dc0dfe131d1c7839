"""Recipes inside pictures, and the geometry of sheets."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from darkroom.validate.recipe import Recipe
from darkroom.validate.sheet import GAP, SEPARATOR, SMALL, grid, stitch

RECIPE = Recipe(
    prompt="a cat, “quoted” 猫", negative="", width=64, height=48, steps=4, seed=7, seed_device="cpu",
    call={"guidance_scale": 3.0}, scheduler={"_class": "DDIMScheduler"}, strength=0.5, step=12, weights="ema",
)  # fmt: skip


def plain(width: int, height: int, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_a_recipe_goes_through_a_picture(tmp_path):
    RECIPE.save(plain(64, 48), tmp_path / "deep" / "x.png")

    assert Recipe.read(tmp_path / "deep" / "x.png") == RECIPE
    assert Image.open(tmp_path / "deep" / "x.png").size == (64, 48)


def test_a_picture_without_a_recipe_is_refused(tmp_path):
    plain(4, 4).save(tmp_path / "x.png")

    with pytest.raises(ValueError, match="holds no recipe"):
        Recipe.read(tmp_path / "x.png")


def test_panels_stand_side_by_side_with_a_separator():
    sheet = stitch([("", plain(200, 180, "red")), ("", plain(300, 180, "blue"))])

    assert sheet.size == (200 + GAP + 300, 180)
    assert sheet.getpixel((0, 90)) == (255, 0, 0)
    assert {sheet.getpixel((200 + i, y)) for i in range(GAP) for y in (0, 179)} == {SEPARATOR}
    assert sheet.getpixel((200 + GAP, 90)) == (0, 0, 255)


def test_lower_panels_are_centred_on_white():
    sheet = stitch([("", plain(200, 300)), ("", plain(200, 200, "blue"))])

    column = [sheet.getpixel((300, y)) for y in (49, 50, 249, 250)]
    assert column == [(255, 255, 255), (0, 0, 255), (0, 0, 255), (255, 255, 255)]


@pytest.mark.parametrize(("edge", "shown"), [(64, 192), (159, 318), (160, 160), (1, SMALL)])
def test_small_panels_are_enlarged_by_a_whole_factor(edge, shown):
    assert stitch([("", plain(edge, edge))]).size == (shown, shown)


def test_enlarging_does_not_smooth():
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]] * 2, np.uint8))

    assert len(stitch([("", image)]).getcolors()) == 2


def test_labels_appear_only_beside_another_panel():
    alone = stitch([("base model", plain(200, 200))])
    both = stitch([("base model", plain(200, 200)), ("checkpoint", plain(200, 200))])

    assert len(alone.getcolors()) == 1
    assert len(both.crop((0, 0, 200, 200)).getcolors()) > 1


def test_the_prompt_stands_in_a_margin_below():
    sheet = stitch([("", plain(300, 200))], "a cat")

    assert sheet.size == (300, 200 + 18 + 10)
    assert sheet.getpixel((150, 199)) == (255, 0, 0)
    assert len(sheet.crop((0, 200, 300, 228)).getcolors()) > 1


def test_a_long_prompt_takes_at_most_four_lines():
    assert stitch([("", plain(300, 200))], "word " * 500).size == (300, 200 + 4 * 18 + 10)


@pytest.mark.parametrize(("labels", "line"), [((), 0), (("before", "after"), 22)])
def test_a_grid_has_equal_cells(labels, line):
    sheet = grid([[plain(8, 8)] * 3, [plain(8, 8)] * 2], labels, scale=2)

    assert sheet.size == (3 * (16 + GAP) + GAP, 2 * (16 + GAP + line) + GAP)


def test_what_is_transparent_shows_squares_and_what_is_opaque_does_not():
    half = Image.new("RGBA", (200, 200), (255, 0, 0, 255))
    half.paste((255, 0, 0, 0), (0, 0, 100, 200))

    sheet = stitch([("", half)])

    assert {sheet.getpixel((x, 0)) for x in range(100)} == {(255, 255, 255), SEPARATOR}
    assert {sheet.getpixel((x, y)) for x in range(100, 200) for y in range(200)} == {(255, 0, 0)}
