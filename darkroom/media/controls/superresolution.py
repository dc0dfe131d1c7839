"""Superresolution: the picture made worse, so that a model learns to make it better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from darkroom.media.controls.base import Control, Param
from darkroom.media.controls.pixels import through_jpeg, with_noise


class Superresolution(Control):
    """Fewer pixels, then blur, then noise, then JPEG, each only where asked for."""

    name = "superresolution"
    aliases = ("super_resolution", "lowres")
    seeded = True
    params = {
        "downscale_factor": Param(None, "number", "Scale down by this and up again, both bilinear.", low=1, high=64),
        "blur_radius": Param(2.0, "number", "Radius of the blur in pixels; 0 for none.", low=0, high=200),
        "blur_type": Param(
            "gaussian",
            "choice",
            "Shape of the blur; both: one after the other, each with 0.7 of the radius.",
            choices=("gaussian", "box", "both"),
        ),
        "add_noise": Param(True, "flag", "Whether noise is added."),
        "noise_level": Param(0.02, "number", "Standard deviation of the noise; white is 1.", low=0, high=1),
        "jpeg_quality": Param(None, "whole", "Store as JPEG of this quality.", low=1, high=100),
    }

    def __call__(self, picture: np.ndarray, params: Mapping[str, Any], generator: np.random.Generator) -> np.ndarray:
        image = Image.fromarray(picture)
        if params["downscale_factor"]:
            size = tuple(max(1, round(edge / params["downscale_factor"])) for edge in image.size)
            small = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
            image = small.resize(image.size, Image.Resampling.BILINEAR)
        for blur in blurs(params["blur_type"], params["blur_radius"]):
            image = image.filter(blur)
        made = np.asarray(image)
        if params["add_noise"]:
            made = with_noise(made, params["noise_level"], generator)
        if params["jpeg_quality"] is not None:
            made = through_jpeg(made, params["jpeg_quality"])
        return made


def blurs(kind: str, radius: float) -> list[ImageFilter.MultibandFilter]:
    """Pillow's filters for a kind of blur."""
    if radius == 0:
        return []
    if kind == "both":
        return [ImageFilter.GaussianBlur(0.7 * radius), ImageFilter.BoxBlur(0.7 * radius)]
    return [ImageFilter.BoxBlur(radius) if kind == "box" else ImageFilter.GaussianBlur(radius)]
