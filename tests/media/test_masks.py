"""Loss masks against torch's area interpolation, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.data.cache.encoders import stack_pixels
from darkroom.media.masks import area, loss_mask
from tests.rows import each_row


def by_torch(pixels: np.ndarray, kind: str, height: int, width: int) -> np.ndarray:
    """The reference's words in torch: values in -1..1, a channel, area interpolation, v / 2 + 0.5, and binarised."""
    values = stack_pixels([pixels])[0]
    plane = values[:1] if kind == "mask" else values.mean(0, keepdim=True)
    small = torch.nn.functional.interpolate(plane[None].double(), (height, width), mode="area")[0, 0] / 2 + 0.5
    return (small if kind == "mask" else (small > 1e-6).double()).numpy()


sides = st.integers(1, 40)


@settings(deadline=None)
@given(sides, sides, sides, sides, st.sampled_from(["mask", "segmentation"]), st.integers(0, 9))
def test_masks_are_those_of_torch_at_every_ratio(h: int, w: int, height: int, width: int, kind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (h, w, 3), np.uint8) * (rng.random((h, w, 1)) < 0.2).astype(np.uint8)
    made = loss_mask(pixels, kind, height, width)
    assert (made.shape, made.dtype) == ((height, width), np.float32)
    assert made == pytest.approx(by_torch(pixels, kind, height, width), abs=1e-6)


def test_halving_and_three_to_two_are_worked_by_hand() -> None:
    assert area(np.array([[0, 2], [4, 6]]), 1, 1).tolist() == [[3.0]]
    assert area(np.array([[0, 6, 12]]), 1, 2).tolist() == [[3.0, 9.0]]  # the middle one counts on both sides
    assert area(np.array([[5]]), 2, 2).tolist() == [[5.0, 5.0], [5.0, 5.0]]


def test_a_mask_reads_red_and_a_segmentation_any_colour() -> None:
    blue = np.zeros((8, 8, 3), np.uint8)
    blue[:1, :1, 2] = 1
    assert loss_mask(blue, "mask", 2, 2).tolist() == [[0, 0], [0, 0]]
    assert loss_mask(blue, "segmentation", 2, 2).tolist() == [[1, 0], [0, 0]]
    white = np.full((8, 8, 3), 255, np.uint8)
    assert loss_mask(white, "mask", 3, 3).tolist() == [[1.0] * 3] * 3


@each_row(
    "pixels, kind, height, words",
    [
        (np.zeros((4, 4), np.uint8), "mask", 2, "uint8"),
        (np.zeros((4, 4, 3), np.float32), "mask", 2, "uint8"),
        (np.zeros((0, 4, 3), np.uint8), "mask", 2, "uint8"),
        (np.zeros((4, 4, 3), np.uint8), "masks", 2, "mask or segmentation"),
        (np.zeros((4, 4, 3), np.uint8), "mask", 0, "1 or more"),
    ],
)
def test_what_is_no_mask_is_refused(pixels, kind, height: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        loss_mask(pixels, kind, height, 2)
