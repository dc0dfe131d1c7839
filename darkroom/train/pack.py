"""Nested states of optimizers as safetensors plus JSON: no pickle is written and none is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from darkroom.core.registry import import_path

_TENSOR = "$tensor"
_TUPLE = "$tuple"
_KEYS = "$keys"
_DTYPE = "$dtype"
_KIND = "$kind"
# tensors made of tensors, and what describes such a tensor; a file may name these and nothing else
_KINDS: Mapping[str, str] = {
    "OptimState8bit": "torchao.optim.subclass_8bit.OptimState8bit",
    "OptimState4bit": "torchao.optim.subclass_4bit.OptimState4bit",
    "OptimStateFp8": "torchao.optim.subclass_fp8.OptimStateFp8",
    "SDNQTensor": "sdnq.training.SDNQTensor",
    "SDNQDequantizer": "sdnq.dequantizer.SDNQDequantizer",
}


class _QuantizedTensor(Protocol):
    """The class of a tensor that is made of tensors."""

    def __tensor_unflatten__(self, parts: object, described: object, /) -> Tensor: ...


def flatten(
    value: object, path: str = "", tensors: dict[str, Tensor] | None = None
) -> tuple[object, dict[str, Tensor]]:
    """A nest of dicts, lists, tuples, numbers, texts and tensors as (JSON value, tensors by path).

    Keys that are not text keep their type; quantized tensors of the libraries in the table become their parts. Raises
    TypeError for anything else, naming the path.
    """
    tensors = {} if tensors is None else tensors
    kind = type(value).__name__
    if kind in _KINDS and isinstance(value, Tensor):
        names, described = value.__tensor_flatten__()  # type: ignore[attr-defined]
        parts = {name: getattr(value, name) for name in sorted(names)}
        fields = {"parts": parts, "described": described}
        return {_KIND: kind, **{k: flatten(v, f"{path}/{k}", tensors)[0] for k, v in fields.items()}}, tensors
    if kind in _KINDS:
        return {_KIND: kind, "described": flatten(vars(value), path, tensors)[0]}, tensors
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter):
            raise TypeError(f"{path or 'the state'} holds a {kind}, which cannot be saved")
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
        return {_DTYPE: str(value).removeprefix("torch.")}, tensors
    raise TypeError(f"{path or 'the state'} holds a {kind}, which cannot be saved")


def restore(value: object, tensors: dict[str, Tensor]) -> object:
    """The way back from `flatten`. Raises KeyError for a kind of tensor that is not in the table."""
    if isinstance(value, list):
        return [restore(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(restore(v, tensors) for v in value[_TUPLE])
    if _DTYPE in value:
        return getattr(torch, value[_DTYPE])
    if _KIND in value:
        return _build(value, tensors)
    if _KEYS in value:
        odd = {str(k): k for k in value[_KEYS]}
        return {odd.get(k, k): restore(v, tensors) for k, v in value["value"].items()}
    return {k: restore(v, tensors) for k, v in value.items()}


def _build(value: dict[str, object], tensors: dict[str, Tensor]) -> object:
    """A quantized tensor from its parts, or the description of one."""
    cls = import_path(_KINDS[str(value[_KIND])])
    described = restore(value["described"], tensors)
    if "parts" in value:
        return cast(_QuantizedTensor, cls).__tensor_unflatten__(restore(value["parts"], tensors), described)
    built = object.__new__(cast("type[object]", cls))
    vars(built).update(cast("dict[str, object]", described))
    return built
