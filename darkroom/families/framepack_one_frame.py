"""FramePack for single images: one frame is drawn at a place on the time line, from images at other places.

musubi-tuner's one-frame mode. Its network, text and latents are FramePack's; a reference (B, 16, 1, h, w) of the
sample's own size stands at each of `framepack_clean_indices`, and SigLIP reads the first one together with the caption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.core.errors import DataError
from darkroom.families.framepack import BASE, FramePackNetwork
from darkroom.families.hunyuanvideo_original import HunyuanVideoOriginal
from darkroom.families.shared.spec import Flavour

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image as PILImage
    from torch import Generator, Tensor

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config


class FramePackOneFrame(FramePackNetwork):
    name, title = "framepack_one_frame", "FramePack one-frame"
    pipeline = "OneFramePipeline"
    fps = None
    supports = (HunyuanVideoOriginal.supports | {"references"}) - {"video"}
    flavours = {
        "i2v": Flavour(
            BASE,
            {"pretrained_transformer_model_name_or_path": "lllyasviel/FramePackI2V_HY"},
            note="edits an image as its prompt says",
            image_input="needed",
            multiple_images=True,
            text_images="references",
        )
    }
    defaults = {**FramePackNetwork.defaults, "framepack_clean_indices": [0]}
    tiny = dataclasses.replace(
        FramePackNetwork.tiny, defaults={**FramePackNetwork.tiny.defaults, "framepack_latent_window_size": 1}
    )

    def image_counts(self, options: Config) -> range:
        count = len(options.framepack_clean_indices or ())
        return range(count, count + 1)

    # -- text ------------------------------------------------------------------------------------------------------

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        encoder = configs["image_encoder"]
        image_values = (encoder["image_size"] // encoder["patch_size"]) ** 2 * encoder["hidden_size"]
        return super().count_text_values(configs, options) + int(image_values)

    def encode_text_with_images(
        self, pipe: DiffusionPipeline, caption: str, images: list[PILImage], options: Config
    ) -> Cond:
        """As `encode_text`, and image (1, N, D): what SigLIP sees of the first image."""
        pixels = pipe.video_processor.preprocess(images[0])
        return {**self.encode_text(pipe, [caption], options), "image": pipe.encode_image(pixels)}

    # -- the step --------------------------------------------------------------------------------------------------

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> dict[str, Tensor]:
        """guidance, and where everything stands on the time line."""
        from darkroom.families.modules.one_frame import build_network_inputs

        count = len(options.framepack_clean_indices or ())
        if len(batch.references) != count or any(
            reference.shape != batch.latents.shape for reference in batch.references
        ):
            sizes = ", ".join("x".join(map(str, reference.shape[-2:])) for reference in batch.references) or "none"
            raise DataError(
                f"Samples of dataset '{batch.dataset}' need {count} references of their own size, "
                f"{'x'.join(map(str, batch.latents.shape[-2:]))} in latents, and have: {sizes}.\n"
                "  Use reference_strict, one dataset for each of framepack_clean_indices, and set "
                "conditioning_multidataset_sampling to combined."
            )
        return {
            **super().model_inputs(batch, options, generator),
            **build_network_inputs(batch.references, **places(options)),
        }

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        common = super().pipeline_kwargs(options)
        del common["num_frames"]
        return {**common, **places(options)}


def places(options: Config) -> Kwargs:
    """Where images and frame stand, as the pipeline takes it."""
    window = options.framepack_latent_window_size
    target = options.framepack_target_index
    return {
        "places": list(options.framepack_clean_indices or ()),
        "target": window if target is None else target,
        "window": window,
        "post": not options.framepack_no_post,
    }


FAMILY = FramePackOneFrame
