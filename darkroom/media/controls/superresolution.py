"""Superresolution: the image made worse, so that a model learns to make it better."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageFilter

from darkroom.media.controls.base import Control, Param, get_count, get_number, get_text
from darkroom.media.controls.pixels import add_noise, compress_jpeg


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

    def __call__(self, image: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        degraded = Image.fromarray(image)
        if get_number(params, "downscale_factor"):
            size = tuple(max(1, round(edge / get_number(params, "downscale_factor"))) for edge in degraded.size)
            small = degraded.resize((size[0], size[1]), Image.Resampling.BILINEAR)
            degraded = small.resize(degraded.size, Image.Resampling.BILINEAR)
        for blur in make_blurs(get_text(params, "blur_type"), get_number(params, "blur_radius")):
            degraded = degraded.filter(blur)
        pixels = np.asarray(degraded)
        if params["add_noise"]:
            pixels = add_noise(pixels, get_number(params, "noise_level"), generator)
        if params["jpeg_quality"] is not None:
            pixels = compress_jpeg(pixels, get_count(params, "jpeg_quality"))
        return pixels


def make_blurs(kind: str, radius: float) -> list[ImageFilter.MultibandFilter]:
    """Pillow's filters for a kind of blur."""
    if radius == 0:
        return []
    if kind == "both":
        return [ImageFilter.GaussianBlur(0.7 * radius), ImageFilter.BoxBlur(0.7 * radius)]
    return [ImageFilter.BoxBlur(radius) if kind == "box" else ImageFilter.GaussianBlur(radius)]
