"""What the chosen family and flavour ask of the datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from darkroom.data.requirements import DataRequirements
from darkroom.families.base import Family
from darkroom.families.shared.conditioning import control_input_space
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.media.frames import FrameRule
from darkroom.options.conflicts import refuses_masks
from darkroom.options.tiny import TINY
from darkroom.pretrained.repository import Repository

if TYPE_CHECKING:
    from darkroom.options.config import Config

MEDIA = {"images": "image", "video": "video"}


def build_data_requirements(family: Family, config: Config) -> DataRequirements:
    """The family's facts in the words of the data path."""
    supports, latents = family.spec.supports, family.spec.latents
    limits = Repository(family, config, torch.device("cpu"), torch.float32).limits
    return DataRequirements(
        family.name,
        family.title,
        media=frozenset(sample_type for word, sample_type in MEDIA.items() if word in supports),
        frames=FrameRule(family.spec.frame_step(config), family.spec.min_frames(config)),
        fps=config.framerate or family.spec.fps,
        downscale=latents.downscale,
        temporal=latents.temporal,
        may_start=family.spec.flavour.image_pipeline is not None,
        references="references" in supports,
        text_images=family.spec.flavour.text_images,
        control=control_input_space(family, config),
        requires_control=family.spec.control(config) is not None,
        audio_format=family.audio.format if family.audio else None,
        layers=latents.layered,
        pixels=limits.pixels,
        edge=limits.edge,
        step=limits.step,
        substitutes=config.model_flavour == TINY and takes_references(family),
        batch=1 if family.attention_masks == "batches" and refuses_masks(config, "training") else None,
    )


def takes_references(family: Family) -> bool:
    """Does any flavour of the family take reference images?"""
    return any("references" in resolve_flavour(family, flavour).supports for flavour in family.flavours)
