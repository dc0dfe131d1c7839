"""Putting a model's weights into a number format, and leaving what has to stay wide."""

from __future__ import annotations

import torch
from torch import nn

# the compute capability from which on NVIDIA's GPUs compute in bfloat16: that of Ampere
BF16_CAPABILITY = (8, 0)


def computes_in_bf16(device: torch.device) -> bool:
    """Does a device compute in bfloat16? Older GPUs imitate it slowly, and not at all in cuDNN's convolutions."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= BF16_CAPABILITY


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model's floating weights in place, as diffusers does while it loads.

    Those of modules that the class keeps in float32 (`_keep_in_fp32_modules`) become that, and buffers, such as tables
    of positions, stay as they are: a pipeline that is loaded from the saved weights has them wide too.
    """
    wide = frozenset(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        wanted = torch.float32 if wide.intersection(name.split(".")) else dtype
        if parameter.is_floating_point() and parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)
