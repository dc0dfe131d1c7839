"""Images while they are made: latents of single sampling steps through a tiny decoder (madebyollin/taesd)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darkroom.core.errors import ConfigError
from darkroom.families.base import Family
from darkroom.validate.clip import Rendered, from_pixels

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, DiffusionPipeline

    from darkroom.options.config import Config

OPTION = "validation_preview"
HOOK = "callback_on_step_end"


def validate_preview_options(family: Family, options: Config) -> None:
    """Raises ConfigError where previews are wanted and cannot be had."""
    if not options.validation_preview:
        return
    if not family.previews:
        problem = f"There is no tiny decoder for the latents of {family.title} that diffusers has a class for."
        raise ConfigError(OPTION, True, "", problem, "Leave it out.")
    if family.spec.pipeline_decodes:
        problem = f"The pipeline of {family.title} does not hand over latents on its way."
        raise ConfigError(OPTION, True, "", problem, "Leave it out.")


def preview_arguments(
    pipe: DiffusionPipeline,
    family: Family,
    decoder: AutoencoderTiny,
    size: tuple[int, int],
    options: Config,
    show: Callable[[int, Rendered], None],
) -> Mapping[str, object]:
    """An argument for a diffusers pipeline's call that has `show` see every so many steps, counted from 1.

    The latents are as noisy as they are by then. `size` is (height, width) of the latent.
    """

    def see(index: int, latents: Tensor) -> None:
        if (index + 1) % options.validation_preview_steps == 0:
            with torch.no_grad():
                pixels = decoder.decode(family.from_pipeline(latents, *size).to(decoder.dtype)).sample
            show(index + 1, Rendered(from_pixels(pixels.float())))

    def after(_: DiffusionPipeline, index: int, __: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        see(index, inputs["latents"])
        return {}

    if HOOK in inspect.signature(pipe.__call__).parameters:
        return {HOOK: after}
    # as pipelines had it before
    return {"callback": lambda index, _, latents: see(index, latents), "callback_steps": 1}
