"""Frames: from what pipelines return, and side by side as one picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.validate.clip import Rendered, from_output, from_pixels, tile_frames


def numbered(count: int, height: int = 2, width: int = 3) -> np.ndarray:
    """Frames that hold their own number."""
    return np.stack([np.full((height, width, 3), i, np.uint8) for i in range(count)])


def test_one_frame_is_a_picture():
    image = tile_frames(numbered(1, 4, 6))

    assert image.size == (6, 4)


def test_a_short_clip_is_shown_whole_row_by_row():
    sheet = np.asarray(tile_frames(numbered(5)))

    assert sheet.shape == (2 * 2, 3 * 3, 3)
    assert sheet[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 255]]


def test_a_long_clip_is_shown_from_end_to_end():
    sheet = np.asarray(tile_frames(numbered(81), maximum=5))

    assert sheet[::2, ::3, 0].tolist() == [[0, 20, 40], [60, 80, 255]]


@pytest.mark.parametrize(
    "output",
    [
        np.array([0.0, 0.5, 1.0])[None, None, None, None].repeat(2, 1),
        [[Image.fromarray(np.array([[[0, 128, 255]]], np.uint8))] * 2],
    ],
    ids=["array", "pictures"],
)
def test_a_pipelines_clip_becomes_bytes(output):
    assert from_output(output).tolist() == [[[[0, 128, 255]]]] * 2


def test_a_pipelines_picture_is_one_frame():
    assert from_output([Image.new("RGB", (3, 2), "red")]).shape == (1, 2, 3, 3)


@pytest.mark.parametrize("shape", [(1, 3, 2, 4), (1, 3, 5, 2, 4)])
def test_pixels_are_rounded_as_the_stock_processors_round(shape):
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.video_processor import VideoProcessor

    pixels = torch.randn(*shape, generator=torch.Generator().manual_seed(0))

    stock = (
        [VaeImageProcessor().postprocess(pixels)]
        if pixels.ndim == 4
        else VideoProcessor().postprocess_video(pixels, output_type="pil")
    )
    theirs = np.stack([np.asarray(image) for image in stock[0]])

    assert np.array_equal(from_pixels(pixels), theirs)


def test_layers_are_written_one_by_one_with_their_alpha(tmp_path):
    layers = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 4), np.uint8)
    made = Rendered(layers)

    written = made.write_extra_files(tmp_path / "cat.png", 0.0)

    assert [path.relative_to(tmp_path).as_posix() for path in written] == [f"cat/layer_{i}.png" for i in range(3)]
    assert [np.asarray(Image.open(path)).tolist() for path in written] == layers.tolist()
    assert made.image.mode == "RGBA"
    assert not made.is_clip


def test_beside_a_picture_nothing_is_written(tmp_path):
    assert Rendered(numbered(1)).write_extra_files(tmp_path / "cat.png", 0.0) == []


def test_pictures_of_a_pipeline_keep_their_alpha():
    assert from_output([[Image.new("RGBA", (3, 2), (1, 2, 3, 4))] * 2])[1, 0, 0].tolist() == [1, 2, 3, 4]
