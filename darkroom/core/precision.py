"""Putting a model's weights into a number format, and leaving what has to stay wide."""

from __future__ import annotations

import torch
from torch import nn


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model's floating weights in place, as diffusers does while it loads.

    Those of modules that the class keeps in float32 (`_keep_in_fp32_modules`) become that, and buffers, such as tables
    of positions, stay as they are: a pipeline that is loaded from the saved weights has them wide too.
    """
    wide = frozenset(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        target_dtype = torch.float32 if wide.intersection(name.split(".")) else dtype
        if parameter.is_floating_point() and parameter.dtype != target_dtype:
            parameter.data = parameter.data.to(target_dtype)
