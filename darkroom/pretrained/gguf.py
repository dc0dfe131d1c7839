"""Denoisers out of GGUF files, whose linear layers keep the file's few bits; ggml-org/ggml's docs/gguf.md.

Names and shapes are fitted as those of any single file; diffusers' quantiser then puts the layers in place. Of what a
file holds in fewer bits only weights of linear layers stay so: nothing else can compute with them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from darkroom.core.optional import import_optional
from darkroom.pretrained.weight_files import Misfit, State

SUFFIX = ".gguf"
# its number in the format
BFLOAT16 = 30
PURPOSE = "A base in a GGUF file"


def is_gguf(source: str | Path) -> bool:
    """Does `source` name a GGUF file?"""
    return Path(source).suffix == SUFFIX


def header(path: Path) -> State:
    """The tensors of a file with their shapes and without data. Raises Misfit and MissingPackage."""
    return {row.name: torch.empty(tuple(map(int, row.shape[::-1])), device="meta") for row in _rows(path)}


def _rows(path: Path) -> list[Any]:
    """The file's table of tensors; the numbers themselves are only mapped. Raises Misfit and MissingPackage."""
    reader = import_optional("gguf", "quant", PURPOSE).GGUFReader
    try:
        return list(reader(path).tensors)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as cause:
        problem = f"It is no GGUF file, or is not whole: {str(cause).splitlines()[0]}"
        raise Misfit(path, f"{problem.rstrip('.')}.", "Copy or download it again.") from cause


def read(path: Path, names: Mapping[str, str]) -> State:
    """The tensors of some keys under other names, packed ones as diffusers' GGUFParameter. Raises Misfit."""
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    try:
        found = load_gguf_checkpoint(path)
    except ValueError as cause:
        problem = f"diffusers cannot unpack it: {str(cause).splitlines()[0].rstrip('.')}."
        raise Misfit(path, problem, "Take the file in another kind, such as Q8_0 or Q4_K.") from cause
    return {names[key]: _plain(tensor) for key, tensor in found.items() if key in names}


def fill(model: Any, state: State, dtype: torch.dtype) -> Any:
    """A model without data, filled from tensors in its own names; layers with packed weights compute in `dtype`."""
    from diffusers import GGUFQuantizationConfig
    from diffusers.models.model_loading_utils import load_model_dict_into_meta
    from diffusers.quantizers import DiffusersAutoQuantizer
    from diffusers.quantizers.gguf.utils import GGUFLinear

    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    state = {key: tensor if key in linear else _whole(tensor) for key, tensor in state.items()}
    precise = list(getattr(model, "_keep_in_fp32_modules", None) or [])
    quantiser = DiffusersAutoQuantizer.from_config(GGUFQuantizationConfig(compute_dtype=dtype))
    quantiser.preprocess_model(model, device_map=None, state_dict=state, keep_in_fp32_modules=precise)
    load_model_dict_into_meta(
        model, state, dtype, hf_quantizer=quantiser, keep_in_fp32_modules=precise, device_map={"": torch.device("cpu")}
    )
    for layer in model.modules():
        if isinstance(layer, GGUFLinear):
            layer.forward_native = functools.partial(_product, layer)
    return model


def _plain(tensor: Tensor) -> Tensor:
    """bfloat16 comes as bytes like what is packed, and is none."""
    return _whole(tensor).to(torch.bfloat16) if getattr(tensor, "quant_type", None) == BFLOAT16 else tensor


def _whole(tensor: Tensor) -> Tensor:
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    return dequantize_gguf_tensor(tensor)


class _Product(torch.autograd.Function):
    """x W^T + b of a packed weight that is unpacked on both ways, so that no wide copy is kept between them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(packed)
        return F.linear(x, _whole(packed).to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (packed,), (grad,) = ctx.saved_tensors, grads
        return grad @ _whole(packed).to(grad.dtype), None, None, None


def _product(layer: Any, x: Tensor) -> Tensor:
    """What diffusers' layer answers, also under autocast."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else layer.compute_dtype
    answer = _Product.apply(x.to(dtype), layer.weight, layer.bias, dtype)
    assert isinstance(answer, Tensor)
    return answer
