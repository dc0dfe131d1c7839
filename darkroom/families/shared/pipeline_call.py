"""What a family's diffusers pipeline is given: the part of a family that renders images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image as PILImage
    from torch import Tensor

    from darkroom.families.shared.model_spec import ModelSpec
    from darkroom.families.shared.types import Cond, Kwargs
    from darkroom.options.config import Config

# maximum number of images of a prompt
MAX_IMAGES = 10

Stage = Literal["text", "save", "render"]
"""What a pipeline is built for: to encode text, to be saved whole, or to render."""


class PipelineCall:
    """Arguments of the pipeline's call, and latents in its form."""

    spec: ModelSpec

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        """Pipeline arguments that depend on neither the prompt nor the size."""
        return {"guidance_scale": options.validation_guidance}

    def round_size(self, width: int, height: int, options: Config) -> tuple[int, int]:
        """Width and height rounded to a size that the pipeline can render: some support only a few."""
        return width, height

    def size_kwargs(self, width: int, height: int, options: Config) -> Kwargs:
        """Pipeline arguments for the size in pixels."""
        return {"width": width, "height": height}

    def image_kwargs(self, image: PILImage, width: int, height: int, options: Config) -> Kwargs:
        """Pipeline arguments for the input image of a prompt, a PIL image of any size.

        It is cropped to the shape of the result: the pipelines themselves would stretch it.
        """
        from darkroom.families.shared.images import crop_to_shape

        return {"image": crop_to_shape(image, width, height)}

    def image_counts(self, options: Config) -> range:
        """The allowed number of images of a prompt without a mask."""
        flavour = self.spec.flavour
        if self.spec.control(options):
            return range(1, 2)
        maximum = 0 if flavour.image_input == "none" else MAX_IMAGES if flavour.multiple_images else 1
        return range(1 if flavour.image_input == "needed" else 0, maximum + 1)

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        """Pipeline arguments for a prompt as text."""
        return {"prompt": prompt, "negative_prompt": negative or None}

    def pipeline_kwargs_from_embeds(self, text: Cond, negative: Cond) -> Kwargs:
        """Pipeline arguments for an encoded prompt; both conditions are (1, ...)."""
        return {
            "prompt_embeds": text["text"],
            "pooled_prompt_embeds": text["pooled"],
            "negative_prompt_embeds": negative["text"],
            "negative_pooled_prompt_embeds": negative["pooled"],
        }

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        """Before a call, set what the pipeline takes as attributes of the object and not as arguments."""

    def default_components(self, stage: Stage) -> dict[str, object]:
        """Components that the pipeline requires and no folder has."""
        return {}

    def to_pipeline(self, latents: Tensor) -> Tensor:
        """Normalized latents to the form of the pipeline's `latents` argument and `output_type="latent"`."""
        return latents

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        """The way back; `height` and `width` in latent positions."""
        return latents
