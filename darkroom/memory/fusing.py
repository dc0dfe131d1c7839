"""Query, key and value of an attention from one product, by diffusers' own fusing.

diffusers keeps the separate layers beside the fused ones, and fuses attentions whose processors never look at it. Here
the former go, so that no weight is held twice, and the latter stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import TYPE_CHECKING, cast

from torch import nn

from darkroom.core.errors import ConfigError

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


OPTION = "fuse_qkv_projections"
# a fused layer, and those that it answers for, in the order of its output's equal parts
PARTS: dict[str, tuple[str, ...]] = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
SEPARATE = {part for parts in PARTS.values() for part in parts}
JOINT = "to_added_qkv"


class FusedAway(nn.Module):
    """Stands where a layer was that another one answers for now."""

    def forward(self, *_: object) -> object:
        """Raises RuntimeError: nobody may ask here."""
        raise RuntimeError("this layer is a part of a fused one")


def fuse(model: nn.Module) -> None:
    """Fuse what a denoiser's processors can use fused, once.

    Each attention then says in `fused_parts` which layers a fused one stands for. Raises ConfigError if there is none.
    """
    if any(hasattr(module, "fused_parts") for module in model.modules()):
        return
    name = type(model).__name__
    if not hasattr(model, "fuse_qkv_projections"):
        raise _config_error(f"{name} has no fused projections in diffusers.")
    before = {module: module.processor for module in model.modules() if hasattr(module, "processor")}
    try:
        model.fuse_qkv_projections()  # type: ignore[operator]
    except (ValueError, AttributeError, RuntimeError) as cause:  # each class has its own way to say so
        raise _config_error(f"{name} cannot be fused in diffusers: {str(cause).rstrip('.')}.") from cause
    results = [
        _keep_or_revert(module, before[module]) for module in before if getattr(module, "fused_projections", False)
    ]
    if not any(results):
        raise _config_error(f"diffusers has no attention of {name} that answers the same from one product.")


def _keep_or_revert(attention: Attention, before: object) -> bool:
    """Drop the separate layers of a fused attention, or the fused ones if its processor cannot use them."""
    fused = {fused_name: parts for fused_name, parts in PARTS.items() if fused_name in attention._modules}
    used, used_before = (set(_find_names(type(processor).__call__)) for processor in (attention.processor, before))
    submodules = {name for name, module in attention._modules.items() if module is not None} - SEPARATE
    # some processors that diffusers puts in forget norms, or do not look whether there is text beside the image
    is_worse = attention.processor is not before and (submodules & used_before - used or JOINT in used - fused.keys())
    if is_worse or not used & fused.keys():
        for fused_name in fused:
            delattr(attention, fused_name)
        attention.fused_projections = False
        attention.set_processor(before)
        return False
    for part in (part for parts in fused.values() for part in parts):
        setattr(attention, part, FusedAway())
    attention.fused_parts = fused
    return True


def _find_names(function: object, visited: frozenset[object] = frozenset()) -> Iterator[str]:
    """Attributes and globals that a function's code asks for, and the functions of its module that it calls."""
    plain = inspect.unwrap(cast("FunctionType", function))
    for name in plain.__code__.co_names:
        yield name
        inner = plain.__globals__.get(name)
        if inspect.isfunction(inner) and inner.__module__ == plain.__module__ and inner not in visited:
            yield from _find_names(inner, visited | {inner})


def _config_error(problem: str) -> ConfigError:
    return ConfigError(OPTION, True, "", problem, "Leave it out.")
