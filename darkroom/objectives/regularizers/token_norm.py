"""A penalty on how far the lengths of a block's tokens are from one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from darkroom.families.base import Family
from darkroom.objectives.streams import Prediction
from darkroom.objectives.taps import Recorded, list_image_blocks, tap_block

if TYPE_CHECKING:
    from darkroom.options.config import Config


class TokenNorm:
    """Variance of the tokens' lengths after the last block."""

    name = "token_norm"

    def __init__(self, family: Family, options: Config, denoisers: Sequence[nn.Module]) -> None:
        last = min(len(list_image_blocks(family, denoiser)) for denoiser in denoisers) - 1
        self.weight = options.token_norm_lambda
        self.taps = {"tokens": tap_block(family, denoisers, last)}

    @staticmethod
    def is_enabled(options: Config) -> bool:
        """Do the options ask for it?"""
        return options.token_norm_lambda > 0

    def __call__(self, recorded: Recorded, predictions: Sequence[Prediction]) -> Tensor:
        """Weighted mean of the variance over tokens (B, N, D), a scalar."""
        variances = [tokens.float().norm(dim=-1).var(dim=-1) for tokens in recorded["tokens"]]
        return self.weight * torch.cat(variances).mean()


REGULARIZER = TokenNorm
