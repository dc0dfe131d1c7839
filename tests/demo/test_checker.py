"""The renderer draws what a scene says, and the checker sees it: on right pictures, and not on wrong ones."""

import numpy as np
import pytest

from darkroom.demo import pictures
from darkroom.demo.checker import check, find_object, is_grumbo, largest_patch
from darkroom.demo.pictures import ATTRIBUTES, EDGE, SHAPES, Scene, draw
from tests.rows import each_row

COUNT = 100


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def scenes(rng) -> list[Scene]:
    return [pictures.random_scene(rng) for _ in range(COUNT)]


def mint(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The scene's shape in the grumbo's colour."""
    x, y, r = pictures._place(scene, rng)
    canvas = pictures._canvas(scene.background, rng)
    return pictures.to_uint8(pictures.paint(canvas, pictures.distance(scene.shape, x, y, r), pictures.MINT))


# ---------------------------------------------------------------- renderer


def test_a_picture_is_64_pixels_of_uint8(rng, scenes):
    picture = draw(scenes[0], rng)
    assert picture.shape == (EDGE, EDGE, 3)
    assert picture.dtype == np.uint8


def test_the_same_seed_draws_the_same_picture(scenes):
    first, second = (draw(scenes[0], np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)


@each_row("shape", SHAPES)
def test_every_shape_fills_its_box(shape):
    y, x = np.mgrid[-20:20, -20:20] + 0.5
    inside = pictures.distance(shape, x, y, 10.0) < 0
    ys, xs = np.nonzero(inside)
    assert (np.ptp(xs) + 1, np.ptp(ys) + 1) == pytest.approx((20, 20), abs=2)


def test_an_unknown_shape_is_named_in_the_error():
    with pytest.raises(ValueError, match="hexagon"):
        pictures.distance("hexagon", np.zeros(1), np.zeros(1), 1.0)


def test_held_out_scenes_are_never_trained_on():
    training, held_out = pictures.split_scenes()
    assert not set(training) & set(held_out)
    assert len(training) + len(held_out) == len(pictures.every_scene()) == 9072


def test_a_full_caption_names_everything():
    assert pictures.full_caption(Scene("ring", "red", "orange", "large", "left", "top")) == (
        "a large red ring on an orange background, top left"
    )
    assert pictures.full_caption(Scene("grumbo", "mint", "blue", "small", "center", "center")) == (
        "a small grumbo on a blue background, center"
    )


def test_a_caption_reports_what_it_names(rng, scenes):
    for scene in scenes:
        text, named = pictures.caption(scene, rng)
        assert (scene.size in text) == named["size"]
        assert all(word in text for word in (scene.shape, scene.colour, scene.background))


def test_no_invented_noun_is_the_grumbo(rng):
    assert "grumbo" not in {pictures.invent_noun(rng) for _ in range(3000)}


# ---------------------------------------------------------------- checker


def test_drawn_scenes_are_found_right(rng, scenes):
    verdicts = [check(draw(scene, rng), scene) for scene in scenes]
    for attribute in ATTRIBUTES:
        assert np.mean([verdict[attribute] for verdict in verdicts]) >= 0.98


def test_other_scenes_are_found_wrong(rng, scenes):
    wrong = {attribute: [] for attribute in ATTRIBUTES}
    for scene in scenes:
        other = pictures.random_scene(rng)
        verdict = check(draw(other, rng), scene)
        for attribute in ATTRIBUTES:
            if getattr(other, attribute) != getattr(scene, attribute):
                wrong[attribute].append(verdict[attribute])
    for attribute in ATTRIBUTES:
        assert np.mean(wrong[attribute]) <= 0.05


def test_an_empty_picture_has_only_a_background():
    scene = Scene("circle", "red", "white", "small", "left", "top")
    picture = np.full((EDGE, EDGE, 3), 245, np.uint8)
    assert check(picture, scene) == dict.fromkeys(ATTRIBUTES, False) | {"background": True}
    assert find_object(picture) is None


def test_drawn_grumbos_are_recognised(rng):
    scenes = [pictures.grumbo_scene(rng) for _ in range(40)]
    assert np.mean([is_grumbo(draw(scene, rng), scene) for scene in scenes]) >= 0.98


def test_shapes_are_no_grumbos_not_even_mint_ones(rng, scenes):
    pairs = [(draw(scene, rng), mint(scene, rng), scene) for scene in scenes]
    assert np.mean([is_grumbo(plain, scene) for plain, _, scene in pairs]) <= 0.02
    assert np.mean([is_grumbo(tinted, scene) for _, tinted, scene in pairs]) <= 0.02


def test_the_largest_patch_wins():
    mask = np.zeros((EDGE, EDGE), bool)
    mask[2:5, 2:5] = mask[20:40, 20] = mask[40, 20:50] = True
    patch = largest_patch(mask)
    assert patch.sum() == 50
    assert not patch[3, 3]
