"""Images that a run gives its pipeline or its denoiser: to start from, to repaint, to follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from darkroom.families.shared.control_methods import ControlInput
from darkroom.families.shared.images import crop_to_shape

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image as PILImage
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.base import Family
    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config


def control_input_space(family: Family, options: Config) -> str | None:
    """Whether the network takes "latents" or "pixels" of a control image; None without control."""
    method = family.spec.control(options)
    return method.input_space if method else None


def bind_control(family: Family, model: Module, batch: Batch, options: Config) -> Any:
    """The model with the batch's control image bound to every call, if the run has control by a module of its own."""
    method = family.spec.control(options)
    if method is None or isinstance(method, ControlInput):
        return model
    from darkroom.families.shared.controlled import ControlledDenoiser

    return ControlledDenoiser(model, method.network_input(batch.controls[0], family.to_pipeline))


def select_pipeline(
    family: Family, pipe: DiffusionPipeline, starts: bool, options: Config, masks: bool = False
) -> DiffusionPipeline:
    """The pipeline for a prompt, with the components of `pipe`: another class may take images or masks."""
    inpainting = family.spec.active_inpainting(options) if masks else None
    name = inpainting.pipeline if inpainting else family.spec.flavour.image_pipeline
    if not starts or not name or family.spec.control(options):
        return pipe
    from darkroom.families.shared.classes import rebuild_pipeline

    return rebuild_pipeline(pipe, name)


def filter_kwargs(family: Family, call: Settings, options: Config, masks: bool = False) -> Kwargs:
    """The arguments in `call` that the run's control or inpainting pipeline supports."""
    method = family.spec.active_inpainting(options) if masks else family.spec.control(options)
    return {name: value for name, value in call.items() if not method or name not in method.unsupported}


def control_kwargs(family: Family, image: PILImage, width: int, height: int, options: Config) -> Kwargs:
    """Pipeline arguments for a prompt's control image, a PIL image of any size."""
    method = family.spec.control(options)
    assert method is not None
    frames = family.spec.clip_frames(options) if isinstance(method, ControlInput) else 1
    return method.kwargs(image, width, height, frames)


def inpainting_kwargs(
    family: Family, image: PILImage, mask: PILImage, width: int, height: int, options: Config
) -> Kwargs:
    """Pipeline arguments for an image and its mask (white is repainted), PIL images of one size."""
    inpainting = family.spec.active_inpainting(options)
    assert inpainting is not None
    return {
        "image": crop_to_shape(image, width, height),
        "mask_image": crop_to_shape(mask.convert("L"), width, height).convert("L"),
        "strength": 1.0,
        **inpainting.extra_arguments,
    }


def images_kwargs(family: Family, images: list[PILImage], width: int, height: int, options: Config) -> Kwargs:
    """Pipeline arguments for the images of one prompt: `image` is one image or a list, if they have no names."""
    calls = [family.image_kwargs(image, width, height, options) for image in images]
    if names := family.spec.flavour.image_arguments:
        return {name: call["image"] for name, call in zip(names, calls, strict=False)}
    return calls[0] if len(calls) == 1 else {**calls[0], "image": [call["image"] for call in calls]}
