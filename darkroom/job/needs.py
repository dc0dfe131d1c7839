"""What the chosen family and flavour ask of the datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from darkroom.data.requirements import DataRequirements
from darkroom.families.base import Family
from darkroom.media.frames import FrameRule
from darkroom.options.conflicts import refuses_masks
from darkroom.pretrained.repository import Repository

if TYPE_CHECKING:
    from darkroom.options.config import Config

MEDIA = {"images": "image", "video": "video"}


def build_data_requirements(family: Family, config: Config) -> DataRequirements:
    """The family's facts in the words of the data path."""
    supports, latents = family.supports_for(config.model_flavour), family.latents_for(config.model_flavour)
    limits = Repository(family, config, torch.device("cpu"), torch.float32).limits
    return DataRequirements(
        family.name,
        family.title,
        media=frozenset(sample_type for word, sample_type in MEDIA.items() if word in supports),
        frames=FrameRule(family.frame_step(config), family.min_frames(config)),
        fps=config.framerate or family.fps_for(config.model_flavour),
        downscale=latents.downscale,
        temporal=latents.temporal,
        may_start=family.flavour(config.model_flavour).image_pipeline is not None,
        references="references" in supports,
        text_images=family.flavour(config.model_flavour).text_images,
        control=family.control_input_space(config),
        requires_control=family.control(config) is not None,
        audio_format=family.audio,
        layers=latents.layered,
        pixels=limits.pixels,
        edge=limits.edge,
        step=limits.step,
        batch=1 if family.attention_masks == "batches" and refuses_masks(config, "training") else None,
    )
