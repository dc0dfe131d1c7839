"""An image that is looked at while a caption is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ReferenceImage:
    """What names an image, and how to get its pixels: uint8 (H, W, 3) or (F, H, W, 3)."""

    name: str
    pixels: Callable[[], np.ndarray]
