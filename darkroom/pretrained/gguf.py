"""Load denoisers from GGUF files. Linear layers stay quantized as in the file (ggml-org/ggml, docs/gguf.md).

Names and shapes are checked as for any single file; diffusers' quantizer then replaces the layers. Only the weights of
linear layers stay quantized: nothing else can compute with packed weights.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from darkroom.core.optional import import_optional
from darkroom.pretrained.weight_files import Misfit, State

if TYPE_CHECKING:
    from torch.nn import Module

SUFFIX = ".gguf"
# type number of the format
BFLOAT16 = 30
PURPOSE = "A base in a GGUF file"


def is_gguf(source: str | Path) -> bool:
    """Does `source` name a GGUF file?"""
    return Path(source).suffix == SUFFIX


def read_header(path: Path) -> State:
    """The tensors of a file on the meta device, by name. Raises Misfit and MissingPackage."""
    return {row.name: torch.empty(tuple(map(int, row.shape[::-1])), device="meta") for row in _rows(path)}


def _rows(path: Path) -> list[Any]:
    """The file's table of tensors; the data is only memory-mapped. Raises Misfit and MissingPackage."""
    reader = import_optional("gguf", "quant", PURPOSE).GGUFReader
    try:
        return list(reader(path).tensors)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as cause:
        problem = f"It is no GGUF file, or is not whole: {str(cause).splitlines()[0]}"
        raise Misfit(path, f"{problem.rstrip('.')}.", "Copy or download it again.") from cause


def read(path: Path, names: Mapping[str, str]) -> State:
    """Tensors by new name (`names`: key to name), packed ones as diffusers' GGUFParameter. Raises Misfit."""
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    try:
        tensors = load_gguf_checkpoint(path)
    except ValueError as cause:
        problem = f"diffusers cannot unpack it: {str(cause).splitlines()[0].rstrip('.')}."
        raise Misfit(path, problem, "Take the file in another kind, such as Q8_0 or Q4_K.") from cause
    return {names[key]: _restore_bfloat16(tensor) for key, tensor in tensors.items() if key in names}


def fill(model: Module, state: State, dtype: torch.dtype) -> Module:
    """Fill a model on the meta device from tensors by name; layers with packed weights compute in `dtype`."""
    from diffusers import GGUFQuantizationConfig
    from diffusers.models.model_loading_utils import load_model_dict_into_meta
    from diffusers.quantizers import DiffusersAutoQuantizer
    from diffusers.quantizers.gguf.utils import GGUFLinear

    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    state = {key: tensor if key in linear else _dequantize(tensor) for key, tensor in state.items()}
    precise = list(getattr(model, "_keep_in_fp32_modules", None) or [])
    quantizer = DiffusersAutoQuantizer.from_config(GGUFQuantizationConfig(compute_dtype=dtype))
    quantizer.preprocess_model(model, device_map=None, state_dict=state, keep_in_fp32_modules=precise)
    load_model_dict_into_meta(
        model, state, dtype, hf_quantizer=quantizer, keep_in_fp32_modules=precise, device_map={"": torch.device("cpu")}
    )
    for layer in model.modules():
        if isinstance(layer, GGUFLinear):
            layer.forward_native = functools.partial(_forward, layer)
    return model


def _restore_bfloat16(tensor: Tensor) -> Tensor:
    """diffusers returns bfloat16 as bytes, as if it were packed: convert it to a bfloat16 tensor."""
    return _dequantize(tensor).to(torch.bfloat16) if getattr(tensor, "quant_type", None) == BFLOAT16 else tensor


def _dequantize(tensor: Tensor) -> Tensor:
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    return dequantize_gguf_tensor(tensor)


class _Product(torch.autograd.Function):
    """x W^T + b with a packed weight, dequantized in forward and again in backward: no dequantized copy is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(packed)
        return F.linear(x, _dequantize(packed).to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (packed,), (grad,) = ctx.saved_tensors, grads
        return grad @ _dequantize(packed).to(grad.dtype), None, None, None


def _forward(layer: Any, x: Tensor) -> Tensor:
    """The forward of diffusers' GGUF layer, which also respects autocast."""
    device_type = x.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else layer.compute_dtype
    answer = _Product.apply(x.to(dtype), layer.weight, layer.bias, dtype)
    assert isinstance(answer, Tensor)
    return answer
