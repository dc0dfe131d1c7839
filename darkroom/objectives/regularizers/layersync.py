"""LayerSync (2510.12581): an early block of a network learns from a later one. Nothing else has to be loaded.

The loss is -lambda * cos(student, teacher), averaged over all tokens of all samples; no gradient reaches the teacher.
Upstream: vita-epfl/LayerSync, whose weight is 0.2 and whose blocks count from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from darkroom.core.errors import ConfigError
from darkroom.families.base import Family
from darkroom.objectives.streams import Prediction
from darkroom.objectives.taps import Recorded, list_image_blocks, tap_block

if TYPE_CHECKING:
    from darkroom.options.config import Config

STUDENT, TEACHER = "layersync_student_block", "layersync_teacher_block"


class LayerSync:
    """The loss of LayerSync on a run's denoisers; each has its own student and teacher."""

    name = "layersync"

    def __init__(self, family: Family, options: Config, denoisers: Sequence[nn.Module]) -> None:
        refuse_feature_maps(family)
        refuse_frozen_blocks(options)
        count = min(len(list_image_blocks(family, denoiser)) for denoiser in denoisers)
        student = find_block_index(STUDENT, options.layersync_student_block, count)
        teacher = student
        if options.layersync_teacher_block is not None:
            teacher = find_block_index(TEACHER, options.layersync_teacher_block, count)
        self.weight = options.layersync_lambda
        self.image = family.hidden_states.image
        self.taps = {
            "student": tap_block(family, denoisers, student),
            "teacher": tap_block(family, denoisers, teacher),
        }

    @staticmethod
    def is_enabled(options: Config) -> bool:
        """Do the options ask for it?"""
        return options.layersync_enabled

    def __call__(self, recorded: Recorded, predictions: Sequence[Prediction]) -> Tensor:
        """Weighted negative mean of the cosine of each student's token (B, N, D) with the teacher's, a scalar."""
        pairs = zip(recorded["student"], recorded["teacher"], strict=True)
        cosines = [compare_tokens(student, teacher, self.image) for student, teacher in pairs]
        return -self.weight * torch.cat([cosine.flatten() for cosine in cosines]).mean()


def compare_tokens(student: Tensor, teacher: Tensor, image: Literal["first", "last"]) -> Tensor:
    """Cosines (B, N) of tokens (B, N, D), in float32. Where one has text beside the image, the image alone counts."""
    count = min(student.shape[1], teacher.shape[1])
    image_tokens = slice(0, count) if image == "first" else slice(-count, None)
    return cosine_similarity(student[:, image_tokens].float(), teacher[:, image_tokens].detach().float(), dim=-1)


def find_block_index(option: str, number: int | None, count: int) -> int:
    """The index, from 0, of block `number`, which counts from 1; 0 is the first block too. Raises ConfigError."""
    if number is not None and number <= count:
        return max(number - 1, 0)
    missing = "LayerSync has no block to train." if number is None else f"The network has {count} blocks."
    raise ConfigError(option, number, "", missing, f"Set it to a number from 1 to {count}.")


def refuse_feature_maps(family: Family) -> None:
    """Raises ConfigError for a U-Net."""
    if family.hidden_states.are_maps:
        problem = f"The blocks of {family.title} have feature maps of several sizes, and LayerSync compares tokens."
        raise ConfigError("layersync_enabled", True, "", problem, "Take it out, or train a family with a transformer.")


def refuse_frozen_blocks(options: Config) -> None:
    """Raises ConfigError where the denoiser's blocks learn nothing."""
    if options.controlnet:
        problem = "A ControlNet is trained beside a frozen denoiser, whose blocks cannot learn from each other."
        raise ConfigError("layersync_enabled", True, "", problem, "Take layersync_enabled or controlnet out.")


REGULARIZER = LayerSync
