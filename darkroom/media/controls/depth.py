"""Depth: how near every point is, near is white, by a depth estimation network (DPT: Ranftl and others, 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from darkroom.media.controls.base import Control, Param, get_text
from darkroom.media.controls.networks import load_pipeline

MODELS = {"DPT": "Intel/dpt-large"}
"""Hub ids by `model_type`."""


class Depth(Control):
    """The network's estimate, stretched to 0..255 by the pipeline, at the size of the image."""

    name = "depth"
    aliases = ("depth_map", "depth_midas")
    needs_model = True
    params = {
        "model_type": Param("DPT", "choice", "Kind of network.", choices=tuple(MODELS)),
        "model": Param(None, "text", "Local folder or hub id; by default the usual one of its kind."),
    }

    def __call__(self, image: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        model = get_text(params, "model") or MODELS[get_text(params, "model_type")]
        estimate = load_pipeline("depth-estimation", model, self.name, "model")(Image.fromarray(image))["depth"]
        if estimate.size != image.shape[1::-1]:
            estimate = estimate.resize(image.shape[1::-1], Image.Resampling.BICUBIC)
        return np.asarray(estimate.convert("RGB"))
