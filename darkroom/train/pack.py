"""Nested states of optimizers as safetensors plus JSON: no pickle is written and none is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_TENSOR = "$tensor"
_TUPLE = "$tuple"
_KEYS = "$keys"


def flatten(value: Any, path: str = "", tensors: dict[str, Tensor] | None = None) -> tuple[Any, dict[str, Tensor]]:
    """A nest of dicts, lists, tuples, numbers, texts and tensors as (JSON value, tensors by path).

    Keys that are not text keep their type. Raises TypeError for anything else, naming the path.
    """
    tensors = {} if tensors is None else tensors
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: path}, tensors
    if isinstance(value, dict):
        inner = {str(k): flatten(v, f"{path}/{k}", tensors)[0] for k, v in value.items()}
        odd = sorted(k for k in value if not isinstance(k, str))
        return ({_KEYS: odd, "value": inner} if odd else inner), tensors
    if isinstance(value, tuple):
        return {_TUPLE: [flatten(v, f"{path}/{i}", tensors)[0] for i, v in enumerate(value)]}, tensors
    if isinstance(value, (list, set)):
        return [flatten(v, f"{path}/{i}", tensors)[0] for i, v in enumerate(value)], tensors
    if value is None or isinstance(value, (bool, int, float, str)):
        return value, tensors
    if hasattr(value, "item"):
        return value.item(), tensors
    if isinstance(value, torch.dtype):
        return str(value), tensors
    raise TypeError(f"{path or 'the state'} holds a {type(value).__name__}, which cannot be saved")


def restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The way back from `flatten`."""
    if isinstance(value, list):
        return [restore(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(restore(v, tensors) for v in value[_TUPLE])
    if _KEYS in value:
        odd = {str(k): k for k in value[_KEYS]}
        return {odd.get(k, k): restore(v, tensors) for k, v in value["value"].items()}
    return {k: restore(v, tensors) for k, v in value.items()}
