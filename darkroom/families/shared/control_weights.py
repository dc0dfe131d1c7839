"""Weights of new ControlNets and of new input channels, from those of the denoiser."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from darkroom.families.shared.types import Settings


def build_from_transformer(cls: type[ModelMixin], transformer: ModelMixin, custom: Settings) -> ModelMixin:
    """A ControlNet from a transformer's first blocks: the default number, at most as many as there are."""
    parameters = inspect.signature(cls.from_transformer).parameters
    depths = {
        name: min(transformer.config[name], parameters[name].default)
        for name in ("num_layers", "num_single_layers")
        if name in parameters
    }
    # diffusers writes its changes for the ControlNet into the transformer's config
    copied = copy.copy(transformer)
    copied._internal_dict = type(transformer.config)(transformer.config)
    return cls.from_transformer(copied, **{**depths, **custom})


def double_inputs(layer: nn.Linear) -> nn.Linear:
    """A linear layer with twice the inputs; the new weights are zero."""
    wide = nn.Linear(2 * layer.in_features, layer.out_features, layer.bias is not None)
    wide.to(layer.weight.device, layer.weight.dtype)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : layer.in_features] = layer.weight
        if layer.bias is not None:
            wide.bias.copy_(layer.bias)
    return wide
