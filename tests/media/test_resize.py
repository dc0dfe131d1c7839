"""Sizes of the worked table, by hand, and what must hold for every size."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.media.resize import (
    Sizing,
    choose_aspect,
    crop_offset,
    draw_stable_values,
    pick_weighted,
    plan_sizes,
    snap,
    square_edge,
    within_canvas,
)
from tests.rows import each_row

WORKED = """
64 1920x1080 pixel_area 1024 1344x768 1365x768 1.75
64 1080x1920 pixel_area 1024 768x1344 768x1365 0.57
64 3000x2000 pixel_area 1024 1280x832 1280x853 1.54
64 800x600 pixel_area 1024 1152x896 1194x896 1.29
64 2048x1024 pixel_area 1024 1472x704 1472x736 2.09
64 1024x1024 pixel_area 1024 1024x1024 1024x1024 1.0
64 1920x1080 pixel_area 768 1024x576 1024x576 1.78
64 1920x1080 pixel 1024 1792x1024 1820x1024 1.75
64 1080x1920 pixel 1024 1024x1856 1044x1856 0.55
64 3000x2000 pixel 1024 1536x1024 1536x1024 1.5
32 1920x1080 pixel_area 480 640x352 640x360 1.82
16 3000x2000 pixel_area 1024 1248x832 1248x832 1.5
16 2048x1024 pixel_area 1024 1456x720 1456x728 2.02
8 1920x1080 pixel_area 1024 1368x768 1368x769 1.78
32 1024x1024 area 1.0 1024x1024 1024x1024 1.0
"""


def size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


@each_row("row", WORKED.strip().splitlines())
def test_a_worked_row_comes_out_as_worked(row: str) -> None:
    alignment, original, unit, value, target, intermediary, bucket = row.split()
    number = float(value) ** 2 / 1e6 if unit == "pixel_area" else float(value)
    sizing = Sizing("pixel" if unit == "pixel" else "area", number, int(alignment))
    made = plan_sizes(size(original), sizing)
    assert (made.target, made.intermediary, made.aspect) == (size(target), size(intermediary), float(bucket))


def test_cropping_to_a_chosen_aspect_comes_out_as_worked() -> None:
    made = plan_sizes((3000, 2000), Sizing(crop=True, crop_aspect="closest", aspects=(0.75,)))
    assert (made.target, made.intermediary, made.aspect) == ((896, 1152), (1728, 1152), 0.78)


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 9000),
    height=st.integers(1, 9000),
    kind=st.sampled_from(["area", "pixel"]),
    edge=st.integers(32, 1600),
    alignment=st.sampled_from([8, 16, 32, 64]),
    crop=st.booleans(),
    aspect=st.sampled_from(["square", "preserve", "closest", "random"]),
    draw=st.floats(0, 0.999),
    canvas=st.sampled_from([None, 512 * 512]),
    downsample=st.booleans(),
)
def test_the_intermediary_always_covers_an_aligned_target(
    width, height, kind, edge, alignment, crop, aspect, draw, canvas, downsample
) -> None:
    if not 1 / 20 < width / height < 20:
        return
    unit = float(edge) if kind == "pixel" else edge * edge / 1e6
    sizing = Sizing(
        kind,
        unit,
        alignment,
        2,
        crop,
        aspect,
        aspects=(0.67, 1.0, 1.5),
        canvas=canvas,
        maximum=unit * 1.2 if downsample else None,
        downsample=unit * 1.1 if downsample else None,
    )
    made = plan_sizes((width, height), sizing, draw)
    assert all(t % alignment == 0 and t > 0 for t in made.target)
    assert all(i >= t for i, t in zip(made.intermediary, made.target, strict=True))
    assert made.aspect == round(made.target[0] / made.target[1], 2)
    if canvas:
        assert made.target[0] * made.target[1] <= canvas or max(made.target) == alignment


@each_row(
    "value, edge",
    [(0.25, 512), (0.262144, 512), (0.5, 768), (1.0, 1024), (2.0, 1536), (4.0, 2048), (0.589824, 768)],
)
def test_round_megapixels_mean_the_usual_square(value: float, edge: int) -> None:
    assert square_edge(Sizing(value=value)) == edge


def test_halves_snap_to_the_even_multiple_and_never_to_zero() -> None:
    assert [snap(v, 64) for v in (96, 160, 10)] == [128, 128, 64]


def test_only_pictures_above_the_maximum_are_shrunk_first() -> None:
    sizing = Sizing(crop=True, crop_aspect="square", maximum=4.0, downsample=2.25)
    assert plan_sizes((3000, 3000), sizing).intermediary == (1500, 1500)
    assert plan_sizes((1900, 1900), sizing).intermediary == (1024, 1024)


def test_an_aspect_that_would_enlarge_too_much_is_not_offered() -> None:
    sizing = Sizing("pixel", 512, crop=True, crop_aspect="random", aspects=(1.0, 3.0), max_upscale=0.1)
    assert {choose_aspect((600, 600), sizing, draw / 10) for draw in range(10)} == {1.0}


def test_a_hand_written_map_overrides_the_arithmetic() -> None:
    assert plan_sizes((1920, 1080), Sizing(table={1.75: (1280, 704)})).target == (1280, 704)


def test_weights_decide_and_the_canvas_limits() -> None:
    assert [pick_weighted([1.0, 2.0], [0.25, 0.75], d) for d in (0.2, 0.3)] == [1.0, 2.0]
    assert within_canvas((1024, 1024), Sizing(canvas=512 * 512)) == (512, 512)


def test_crop_offsets_are_top_then_left_and_inside() -> None:
    assert crop_offset("center", (1365, 768), (1344, 768)) == (0, 10)
    assert crop_offset("corner", (1365, 800), (1344, 768)) == (0, 0)
    assert crop_offset("random", (1365, 800), (1344, 768), (0.9999, 0.9999)) == (32, 21)


def test_draws_belong_to_a_picture_and_not_to_its_place() -> None:
    assert (
        draw_stable_values(1, "a", "x.png")
        == draw_stable_values(1, "a", "x.png")
        != draw_stable_values(2, "a", "x.png")
    )
    assert all(0 <= v < 1 for v in draw_stable_values(1, "a", "x.png", 8))
