"""The first frame of a clip, for models that continue an image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from darkroom.media.controls.base import Control


class FirstFrame(Control):
    """A clip becomes a clip of one frame, its first. An image is its own first frame."""

    name = "i2v_first_frame"

    def __call__(self, image: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        return image.copy()

    def clip(self, frames: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        return frames[:1].copy()
