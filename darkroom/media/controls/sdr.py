"""Scene light to a display's range: values proportional to light are scaled and put through a transfer curve.

The values of the image are taken as light: 255 stands for `input_scale`. Curves: Rec. 709 (ITU-R BT.709, 1.2), sRGB
(IEC 61966-2-1), and ARRI LogC3 at exposure index 800 (ALEXA Log C Curve, 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from darkroom.media.controls.base import Control, Param, get_number, get_text
from darkroom.media.controls.pixels import to_bytes


def rec709(light: np.ndarray) -> np.ndarray:
    """Light 0..1 to signal 0..1; more is cut off."""
    x = np.clip(light, 0, 1)
    return np.where(x < 0.018, 4.5 * x, 1.099 * x**0.45 - 0.099)


def srgb(light: np.ndarray) -> np.ndarray:
    """Light 0..1 to signal 0..1; more is cut off."""
    x = np.clip(light, 0, 1)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


def logc3(light: np.ndarray) -> np.ndarray:
    """Light from 0, 0.18 is mid-gray, to signal; 1 is reached at light 55."""
    x = np.maximum(light, 0)
    bent = 0.247190 * np.log10(5.555556 * x + 0.052272) + 0.385537
    return np.where(x > 0.010591, bent, 5.367655 * x + 0.092809)


CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"rec709": rec709, "srgb": srgb, "logc3": logc3}


class Sdr(Control):
    """The image, read as light, as a display shows it."""

    name = "sdr"
    aliases: ClassVar[tuple[str, ...]] = ("sdr_downsample", "hdr_to_sdr")
    params = {
        "transform": Param("rec709", "choice", "Transfer curve.", choices=tuple(CURVES)),
        "input_scale": Param(1.0, "number", "Light of the value 255.", above=0, high=1e6),
        "exposure": Param(0.0, "number", "Stops: the light is multiplied by 2 to this power.", low=-30, high=30),
    }

    def __call__(self, image: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        levels = np.arange(256) / 255 * get_number(params, "input_scale") * 2.0 ** get_number(params, "exposure")
        return to_bytes(255 * CURVES[get_text(params, "transform")](levels))[image]


class LogC3(Sdr):
    """The same with LogC3 unless told otherwise."""

    name = "logc3_sdr"
    aliases = ()
    params = {**Sdr.params, "transform": Param("logc3", "choice", "Transfer curve.", choices=tuple(CURVES))}
