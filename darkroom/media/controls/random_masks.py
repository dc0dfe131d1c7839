"""Random masks for inpainting: rectangles, circles, brush strokes and irregular shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from darkroom.media.controls.base import (
    Control,
    Param,
    get_count,
    get_number,
    get_numbers,
    get_text,
    get_texts,
    validate_order,
)
from darkroom.media.controls.pixels import gray_to_rgb, to_bytes

SHAPES = ("rectangle", "circle", "brush", "irregular")
_TRIES = 40
"""Shapes that are drawn before one rectangle of the right area is taken instead."""

_Values = Mapping[str, object]


class RandomMasks(Control):
    """White shapes on black that cover a share of the image between two bounds; or the image with them cut out."""

    name = "random_masks"
    aliases = ("masks", "inpainting")
    seeded = True
    params = {
        "mask_types": Param(SHAPES, "choice", "Shapes to choose from.", choices=SHAPES, many=True),
        "mask_type_weights": Param(None, "number", "How often each of them is chosen.", low=0, high=1e6, many=True),
        "min_coverage": Param(0.1, "number", "Least share of the picture that is masked.", low=0, high=1),
        "max_coverage": Param(0.5, "number", "Largest share of the picture that is masked.", low=0, high=1),
        "min_masks": Param(1, "whole", "Fewest shapes.", low=1, high=1000),
        "max_masks": Param(5, "whole", "Most shapes, unless the coverage needs more.", low=1, high=1000),
        "rect_min_size": Param(0.1, "number", "Shortest edge of rectangles, in those of the picture.", above=0, high=1),
        "rect_max_size": Param(0.4, "number", "Longest edge of rectangles, in those of the picture.", above=0, high=1),
        "circle_min_radius": Param(0.05, "number", "Least radius, in the picture's shorter edge.", above=0, high=1),
        "circle_max_radius": Param(0.2, "number", "Largest radius, in the picture's shorter edge.", above=0, high=1),
        "brush_min_width": Param(5, "whole", "Thinnest stroke in pixels.", low=1, high=10000),
        "brush_max_width": Param(40, "whole", "Thickest stroke in pixels.", low=1, high=10000),
        "brush_min_length": Param(0.1, "number", "Shortest stroke, in the picture's shorter edge.", above=0, high=10),
        "brush_max_length": Param(0.5, "number", "Longest stroke, in the picture's shorter edge.", above=0, high=10),
        "irregular_min_points": Param(5, "whole", "Fewest corners of an irregular shape.", low=3, high=1000),
        "irregular_max_points": Param(20, "whole", "Most corners of an irregular shape.", low=3, high=1000),
        "edge_blur": Param(True, "flag", "Whether outlines are blurred."),
        "edge_blur_radius": Param(2.0, "number", "Radius of that blur in pixels.", low=0, high=200),
        "edge_feather": Param(True, "flag", "Keep blurred outlines soft; without, they are only rounded."),
        "output_mode": Param(
            "mask",
            "choice",
            "mask: the shapes; masked_image: the picture with the shapes filled with white.",
            choices=("mask", "masked_image"),
        ),
        "mask_value": Param(255, "whole", "Level of the shapes in a mask.", low=0, high=255),
        "invert_mask": Param(False, "flag", "Mask what lies around the shapes."),
    }

    def validate_together(self, params: _Values) -> None:
        for low, high in (
            ("min_coverage", "max_coverage"),
            ("min_masks", "max_masks"),
            ("rect_min_size", "rect_max_size"),
            ("circle_min_radius", "circle_max_radius"),
            ("brush_min_width", "brush_max_width"),
            ("brush_min_length", "brush_max_length"),
            ("irregular_min_points", "irregular_max_points"),
        ):
            validate_order(params, low, high)
        weights, types = get_numbers(params, "mask_type_weights"), get_texts(params, "mask_types")
        if weights is not None and (len(weights) != len(types) or sum(weights) == 0):
            raise ValueError(
                f"mask_type_weights = {list(weights)} does not suit mask_types = {list(types)}; give as many numbers, "
                "at least one of them above 0"
            )

    def __call__(self, image: np.ndarray, params: _Values, generator: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        return _render(image, _outline(width, height, params, generator), params)

    def clip(self, frames: np.ndarray, params: _Values, generator: np.random.Generator) -> np.ndarray:
        """One mask for all frames: a mask that jumps about hides nothing for long."""
        height, width = frames.shape[1:3]
        mask = _outline(width, height, params, generator)
        return np.stack([_render(frame, mask, params) for frame in frames])


def _outline(width: int, height: int, params: _Values, generator: np.random.Generator) -> np.ndarray:
    """The mask as share 0..1, float32 (H, W)."""
    mask: np.ndarray = draw_shapes(width, height, params, generator).astype(np.float32)
    if params["edge_blur"] and get_number(params, "edge_blur_radius"):
        soft = Image.fromarray(to_bytes(255 * mask)).filter(
            ImageFilter.GaussianBlur(get_number(params, "edge_blur_radius"))
        )
        mask = np.asarray(soft, np.float32) / 255
        if not params["edge_feather"]:
            mask = (mask >= 0.5).astype(np.float32)
    return 1 - mask if params["invert_mask"] else mask


def _render(image: np.ndarray, mask: np.ndarray, params: _Values) -> np.ndarray:
    if get_text(params, "output_mode") == "mask":
        return gray_to_rgb(to_bytes(get_count(params, "mask_value") * mask))
    share = mask[..., None]
    return to_bytes(image * (1 - share) + 255 * share)


def draw_shapes(width: int, height: int, params: _Values, generator: np.random.Generator) -> np.ndarray:
    """bool (H, W) whose share of True lies between `min_coverage` and `max_coverage`, as near as whole pixels allow."""
    weights = get_numbers(params, "mask_type_weights")
    chances = None if weights is None else np.asarray(weights, float) / sum(weights)
    target_count = _draw_count(params, "min_masks", "max_masks", generator)
    mask, count = np.zeros((height, width), bool), 0
    for _ in range(max(_TRIES, 3 * target_count)):
        if count >= target_count and mask.mean() >= get_number(params, "min_coverage"):
            return mask
        kind = get_texts(params, "mask_types")[generator.choice(len(get_texts(params, "mask_types")), p=chances)]
        image = Image.new("1", (width, height))
        _DRAW[kind](ImageDraw.Draw(image), width, height, params, generator)
        combined = mask | np.asarray(image)
        if combined.mean() <= get_number(params, "max_coverage"):
            mask, count = combined, count + 1
    return (
        mask if mask.mean() >= get_number(params, "min_coverage") else _draw_rectangle(width, height, params, generator)
    )


def _draw_between(params: _Values, low: str, high: str, generator: np.random.Generator) -> float:
    """A number between two parameters."""
    return generator.uniform(get_number(params, low), get_number(params, high))


def _draw_count(params: _Values, low: str, high: str, generator: np.random.Generator) -> int:
    """A whole number from one parameter to another."""
    return int(generator.integers(get_count(params, low), get_count(params, high) + 1))


def _draw_rectangle(width: int, height: int, params: _Values, generator: np.random.Generator) -> np.ndarray:
    """A rectangle of an area between the bounds, or of the nearest area that whole pixels allow."""
    share = _draw_between(params, "min_coverage", "max_coverage", generator)
    rows = min(height, max(1, round(height * share**0.5)))
    columns = min(width, max(0, round(share * width * height / rows)))
    top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
    mask = np.zeros((height, width), bool)
    mask[top : top + rows, left : left + columns] = True
    return mask


def _rectangle(
    draw: ImageDraw.ImageDraw, width: int, height: int, params: _Values, generator: np.random.Generator
) -> None:
    w, h = (
        max(1, round(edge * _draw_between(params, "rect_min_size", "rect_max_size", generator)))
        for edge in (width, height)
    )
    left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
    draw.rectangle((left, top, left + w - 1, top + h - 1), fill=1)


def _circle(
    draw: ImageDraw.ImageDraw, width: int, height: int, params: _Values, generator: np.random.Generator
) -> None:
    radius = min(width, height) * _draw_between(params, "circle_min_radius", "circle_max_radius", generator)
    x, y = generator.uniform(0, width), generator.uniform(0, height)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)


def _brush(draw: ImageDraw.ImageDraw, width: int, height: int, params: _Values, generator: np.random.Generator) -> None:
    """A stroke of eight pieces whose direction wanders, with round ends."""
    thick = _draw_count(params, "brush_min_width", "brush_max_width", generator)
    length = min(width, height) * _draw_between(params, "brush_min_length", "brush_max_length", generator)
    angles = generator.uniform(0, 2 * np.pi) + np.cumsum(generator.normal(0, 0.4, 8))
    steps = np.stack([np.cos(angles), np.sin(angles)], 1) * length / 8
    points = generator.uniform(0, (width, height)) + np.vstack([np.zeros((1, 2)), np.cumsum(steps, 0)])
    draw.line([tuple(p) for p in points.tolist()], fill=1, width=thick)
    for x, y in points.tolist():  # Pillow leaves gaps at bends
        draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=1)


def _irregular(
    draw: ImageDraw.ImageDraw, width: int, height: int, params: _Values, generator: np.random.Generator
) -> None:
    """A polygon around a point, its corners at random distances; as large as circles and rectangles are."""
    corners = _draw_count(params, "irregular_min_points", "irregular_max_points", generator)
    angles = np.sort(generator.uniform(0, 2 * np.pi, corners))
    distances = min(width, height) * generator.uniform(0.05, 0.25, corners)
    points = generator.uniform(0, (width, height)) + distances[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    draw.polygon([tuple(p) for p in points.tolist()], fill=1)


_DRAW: dict[str, Callable[[ImageDraw.ImageDraw, int, int, _Values, np.random.Generator], None]] = {
    "rectangle": _rectangle,
    "circle": _circle,
    "brush": _brush,
    "irregular": _irregular,
}
