"""Quantized denoisers on disk, so that a second start neither reads the wide weights nor quantizes them again.

A file holds the tensors of the whole denoiser by name, narrow ones with their scales, and in its header which layers
are narrow. Only eight-bit floats of our own are kept: the other libraries' tensors have no common form in a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from darkroom.core.files import write_atomically
from darkroom.memory.quantize import fp8

VERSION = 1
HEADER = "darkroom"


def is_serializable(preset: str) -> bool:
    """Do a preset's weights have a form for files?"""
    return preset in fp8.PRESETS


def cache_file(folder: Path, identity: Sequence[object]) -> Path:
    """Where a denoiser is kept that is made of what `identity` says."""
    text = json.dumps([VERSION, *identity], sort_keys=True, default=str)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def save(model: nn.Module, file: Path) -> None:
    """Write a quantized model. Raises DiskFullError."""
    layers = [name for name, module in model.named_modules() if isinstance(module, fp8.Float8Linear)]
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    with write_atomically(file) as temporary:
        save_file(tensors, temporary, {"format": "pt", HEADER: json.dumps(layers)})


def load(file: Path, empty: Callable[[], nn.Module]) -> tuple[nn.Module, int]:
    """The model of a file, and how many of its layers are narrow; `empty` makes one that has its shapes.

    Raises OSError, ValueError or SafetensorError if the file is not whole or does not fit.
    """
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = empty()
    with safe_open(file, "pt") as content:
        layers = json.loads(content.metadata()[HEADER])
        for name in layers:
            parent, _, child = name.rpartition(".")
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            setattr(model.get_submodule(parent), child, fp8.Float8Linear.build_empty(layer))
        tensors = {name: content.get_tensor(name) for name in list(content.keys())}
        try:
            model.load_state_dict(tensors, assign=True)
        except RuntimeError as cause:
            raise ValueError(str(cause).splitlines()[0]) from cause
    return model.requires_grad_(False), len(layers)
