"""JPEG artefacts: the image stored as JPEG, badly and perhaps several times."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageFilter

from darkroom.media.controls.base import Control, Param, get_count, get_counts, get_number, get_text, validate_order
from darkroom.media.controls.pixels import add_noise, compress_jpeg, to_bytes

BLOCK = 8
"""JPEG codes squares of this many pixels."""


class JpegArtifacts(Control):
    """Blur, noise, some rounds of JPEG of falling quality, and noise along the edges of its blocks."""

    name = "jpeg_artifacts"
    aliases = ("jpeg", "compression")
    seeded = True
    params = {
        "quality_mode": Param(
            "fixed",
            "choice",
            "fixed: `quality`; range: any within `quality_range`; random: one of `quality_list`.",
            choices=("fixed", "range", "random"),
        ),
        "quality": Param(25, "whole", "JPEG quality.", low=1, high=100),
        "quality_range": Param((10, 50), "whole", "Lowest and highest quality.", low=1, high=100, many=True, length=2),
        "quality_list": Param((10, 20, 30, 40), "whole", "Qualities to choose from.", low=1, high=100, many=True),
        "compression_rounds": Param(1, "whole", "How often the picture is stored.", low=1, high=50),
        "round_quality_decay": Param(0.9, "number", "Factor on the quality per further round.", above=0, high=1),
        "subsampling": Param(None, "choice", "Resolution of colours.", choices=("4:4:4", "4:2:2", "4:2:0")),
        "optimize": Param(False, "flag", "Smaller files; the picture stays the same."),
        "progressive": Param(False, "flag", "Progressive files; the picture stays the same."),
        "pre_blur": Param(False, "flag", "Whether the picture is blurred first."),
        "pre_blur_radius": Param(0.5, "number", "Radius of that blur in pixels.", low=0, high=200),
        "add_noise": Param(False, "flag", "Whether noise is added before the first round."),
        "noise_level": Param(0.01, "number", "Standard deviation of the noise; white is 1.", low=0, high=1),
        "enhance_blocks": Param(False, "flag", "Whether the blocks' edges get noise in the end."),
        "block_noise_level": Param(0.02, "number", "Standard deviation of that noise; white is 1.", low=0, high=1),
    }

    def validate_together(self, params: Mapping[str, object]) -> None:
        low, high = get_counts(params, "quality_range")
        validate_order({"quality_range[0]": low, "quality_range[1]": high}, "quality_range[0]", "quality_range[1]")

    def __call__(self, image: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        quality = first_quality(params, generator)
        if params["pre_blur"]:
            blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(get_number(params, "pre_blur_radius")))
            image = np.asarray(blurred)
        if params["add_noise"]:
            image = add_noise(image, get_number(params, "noise_level"), generator)
        options = {"optimize": params["optimize"], "progressive": params["progressive"]}
        if params["subsampling"] is not None:
            options["subsampling"] = get_text(params, "subsampling")
        for number in range(get_count(params, "compression_rounds")):
            lowered = int(quality * get_number(params, "round_quality_decay") ** number)
            image = compress_jpeg(image, min(95, max(1, lowered)), **options)
        if params["enhance_blocks"]:
            image = on_block_edges(image, get_number(params, "block_noise_level"), generator)
        return image


def first_quality(params: Mapping[str, object], generator: np.random.Generator) -> int:
    """The quality of the first round."""
    match get_text(params, "quality_mode"):
        case "range":
            low, high = get_counts(params, "quality_range")
            return int(generator.integers(low, high + 1))
        case "random":
            return get_counts(params, "quality_list")[generator.integers(len(get_counts(params, "quality_list")))]
        case _:
            return get_count(params, "quality")


def on_block_edges(image: np.ndarray, level: float, generator: np.random.Generator) -> np.ndarray:
    """Noise on the first row and column of every block."""
    edges = np.zeros(image.shape[:2], bool)
    edges[::BLOCK], edges[:, ::BLOCK] = True, True
    noise = generator.standard_normal(image.shape, np.float32) * np.float32(255 * level)
    return to_bytes(image + noise * edges[..., None])
