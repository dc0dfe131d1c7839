"""Canny: thin white edges on black (J. Canny, A Computational Approach to Edge Detection, 1986), by OpenCV."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from darkroom.core.optional import import_optional
from darkroom.media.controls.base import Control, Param, validate_order
from darkroom.media.controls.pixels import gray_to_rgb


class Canny(Control):
    """Edges of the gray image."""

    name = "canny"
    aliases = ("edges",)
    params = {
        "low_threshold": Param(50, "number", "Slopes below this are no edge.", low=0, high=10000),
        "high_threshold": Param(
            100, "number", "Slopes above this are an edge; those in between, beside one.", low=0, high=10000
        ),
    }

    def validate_together(self, params: Mapping[str, object]) -> None:
        validate_order(params, "low_threshold", "high_threshold")

    def __call__(self, image: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        cv2 = import_optional("cv2", "vision", "The control generator canny")
        gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        return gray_to_rgb(cv2.Canny(gray, params["low_threshold"], params["high_threshold"]))
