"""A LoRA on layers that answer for several: query, key and value from one product.

Such a layer has one A and a B for all of them, so that in a file each of the several has that A and its rows of B: a
plain LoRA, which any program loads. On the way back the A's have to be equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from darkroom.adapters.targets import ALL_LINEAR
from darkroom.core.errors import ConfigError

SHARED = ".lora_A."
Layers = Mapping[str, Sequence[str]]


def find_fused_layers(model: nn.Module) -> dict[str, list[str]]:
    """The fused layers of a model by name, and the names of those that each answers for."""
    return {
        f"{name}.{fused_name}": [f"{name}.{part}" for part in parts]
        for name, module in model.named_modules()
        for fused_name, parts in getattr(module, "fused_parts", {}).items()
    }


def select_targets(config: LoraConfig, model: nn.Module) -> LoraConfig:
    """The settings with fused layers where all that they answer for are targets.

    Raises ConfigError where only some are.
    """
    fused = find_fused_layers(model)
    if not fused:
        return config
    if config.target_modules == ALL_LINEAR:
        return dataclasses.replace(config)  # peft writes into it what it found, and those names are in no file

    def is_target(name: str) -> bool:
        return bool(check_target_module_exists(config, name))

    concerned = {*fused, *(part for parts in fused.values() for part in parts)}
    names = [name for name, _ in model.named_modules() if name not in concerned and is_target(name)]
    for fused_name, parts in fused.items():
        selected = [part for part in parts if is_target(part)]
        if selected == parts:
            names.append(fused_name)
        elif selected:
            missing = ", ".join(part.rpartition(".")[2] for part in parts if part not in selected)
            raise ConfigError(
                "fuse_qkv_projections", True, "",
                f"{selected[0]} is a target of the LoRA, and it is one product with layers that are none ({missing}).",
                f"Add {missing} to peft_lora_target_modules, or leave fuse_qkv_projections out.",
            )  # fmt: skip
    return dataclasses.replace(config, target_modules=names) if names else config


def split_fused(tensors: Mapping[str, Tensor], fused: Layers) -> dict[str, Tensor]:
    """Adapter tensors by name, those of fused layers as they are for each of the several."""
    separate = dict(tensors)
    for fused_name, parts in fused.items():
        for name in [name for name in tensors if name.startswith(f"{fused_name}.")]:
            tensor, end = separate.pop(name), name.removeprefix(fused_name)
            rows = [tensor.clone() for _ in parts] if SHARED in end else tensor.chunk(len(parts))
            separate |= {part + end: row for part, row in zip(parts, rows, strict=True)}
    return separate


def join_fused(tensors: Mapping[str, Tensor], fused: Layers) -> dict[str, Tensor]:
    """The way back. Raises ValueError where layers that are one now were trained with inputs of their own."""
    joined = dict(tensors)
    for fused_name, parts in fused.items():
        for name in [name for name in tensors if name.startswith(f"{parts[0]}.")]:
            end = name.removeprefix(parts[0])
            if not all(part + end in joined for part in parts):
                continue
            tensors_of_parts = [joined.pop(part + end) for part in parts]
            if SHARED not in end:
                joined[fused_name + end] = torch.cat(tensors_of_parts)
            elif all(torch.equal(tensor, tensors_of_parts[0]) for tensor in tensors_of_parts):
                joined[fused_name + end] = tensors_of_parts[0]
            else:
                raise ValueError(
                    f"{', '.join(parts)} each have an A of their own, which fuse_qkv_projections rules out"
                )
    return joined
