"""Segmentation: a level of gray for every class that a network tells apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image

from darkroom.media.controls.base import Control, Param, get_text
from darkroom.media.controls.networks import load_pipeline
from darkroom.media.controls.pixels import gray_to_rgb

if TYPE_CHECKING:
    from transformers import Mask2FormerImageProcessor


class Segmentation(Control):
    """Class i of n becomes the level int(i / n * 255): equal things have equal levels in all images."""

    name = "segmentation"
    aliases = ("semantic_segmentation",)
    needs_model = True
    params = {
        "model_name": Param(
            "facebook/mask2former-swin-large-cityscapes-semantic", "text", "Local folder or hub id of the network."
        ),
    }

    def __call__(self, image: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        import torch

        network = load_pipeline("image-segmentation", get_text(params, "model_name"), self.name, "model_name")
        processor = cast("Mask2FormerImageProcessor", network.image_processor)  # or that of a like network
        inputs = processor(images=[Image.fromarray(image)], return_tensors="pt").to(network.device)
        with torch.inference_mode():
            outputs = network.model(**inputs)
        classes = processor.post_process_semantic_segmentation(outputs)[0].cpu().numpy()  # (h, w)
        levels = (classes / network.model.config.num_labels * 255).clip(0, 255).astype(np.uint8)
        resized = Image.fromarray(levels).resize(image.shape[1::-1], Image.Resampling.NEAREST)
        return gray_to_rgb(np.asarray(resized))
