"""Weights as eight-bit floats, each with a scale of its own, for blocks of columns, for rows, or for the whole weight.

After kohya-ss/musubi-tuner's scaled fp8; formats 2209.05433. A weight w becomes round(w / scale) with scale = largest
|w| / largest number of the format, and is made whole again where it is used; what is computed is not eight bits wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

    from darkroom.options.config import Config

FORMATS: Mapping[str, torch.dtype] = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
BLOCK = 64
MIN_SCALE = 1e-8
# by preset: how scales are shared; none at all is a plain cast
PRESETS: Mapping[str, str | None] = {
    "fp8-cast": None, "fp8-block": "block", "fp8-channel": "channel", "fp8-tensor": "tensor",
}  # fmt: skip


def scale_mode(weight: Tensor, mode: str, block: int = BLOCK) -> str:
    """What `mode` becomes for a weight: block needs whole blocks of columns, block and channel a matrix."""
    if weight.ndim != 2:
        return "tensor"
    return "channel" if mode == "block" and weight.shape[1] % block else mode


def compute_scales(weight: Tensor, mode: str, largest: float, block: int = BLOCK) -> Tensor:
    """float32 scales of a weight (out, in): block (out, in / block, 1), channel (out, 1), tensor (1,)."""
    size = weight.detach().float().abs()
    if mode == "block":
        maximum = size.unflatten(1, (-1, block)).amax(-1, keepdim=True)
    elif mode == "channel":
        maximum = size.amax(1, keepdim=True)
    else:
        maximum = size.amax().view(1)
    return (maximum / largest).clamp(min=MIN_SCALE)


def quantize_weight(weight: Tensor, mode: str, format: torch.dtype, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """A weight (out, in) in eight bits, and its scales in the weight's own precision.

    Scales are rounded before anything is divided by them, so that they undo exactly what they did.
    """
    mode = scale_mode(weight, mode, block)
    largest = torch.finfo(format).max
    scale = compute_scales(weight, mode, largest, block).to(weight.dtype)
    wide = weight.detach().float()
    spread = wide.unflatten(1, (-1, block)) if mode == "block" else wide
    small = (spread / scale.float()).nan_to_num(0.0).clamp(-largest, largest).reshape(weight.shape)
    return small.to(format), scale


def dequantize_weight(small: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight again, (out, in) in `dtype`. The scale's shape says what shares one."""
    if scale is None:
        return small.to(dtype)
    wide = small.to(scale.dtype)
    if scale.ndim == 3:
        return (wide.unflatten(1, (scale.shape[1], -1)) * scale).flatten(1).to(dtype)
    return (wide * scale).to(dtype)


class _Product(torch.autograd.Function):
    """x W^T + b of a frozen weight that is made whole on both ways, so that no wide copy is kept between them."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, small: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(small, scale)  # type: ignore[arg-type]
        return F.linear(x, dequantize_weight(small, scale, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        small, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        (grad,) = grads
        return grad @ dequantize_weight(small, scale, grad.dtype), None, None, None


class Float8Linear(nn.Linear):
    """A frozen linear layer with an eight-bit weight."""

    scale_weight: Tensor | None
    # what peft makes adapters of, which would else be as narrow as the weight
    compute_dtype = torch.float32

    def __init__(self, layer: nn.Linear, small: Tensor, scale: Tensor | None):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(small, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        self.register_buffer("scale_weight", scale)

    @classmethod
    def from_linear(cls, layer: nn.Linear, mode: str | None, format: torch.dtype) -> Float8Linear:
        """A layer narrowed; without a mode it is only cast."""
        weight = layer.weight.detach()
        return cls(layer, *((weight.to(format), None) if mode is None else quantize_weight(weight, mode, format)))

    @classmethod
    def build_empty(cls, layer: nn.Linear) -> Float8Linear:
        """One of a layer's shape that waits for tensors of any format and scales of any shape."""
        empty = cls(layer, layer.weight.detach(), layer.weight.new_empty(0))
        empty.register_load_state_dict_pre_hook(_match_scales)
        return empty

    def forward(self, x: Tensor) -> Tensor:
        device_type = x.device.type
        if torch.is_autocast_enabled(device_type):
            x = x.to(torch.get_autocast_dtype(device_type))
        answer = _Product.apply(x, self.weight, self.scale_weight, self.bias)
        assert isinstance(answer, Tensor)
        return answer


def _match_scales(layer: nn.Linear, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Have a buffer of the shape that the state's scales have, or none where it has none."""
    scale = state.get(f"{prefix}scale_weight")
    layer.register_buffer("scale_weight", None if scale is None else torch.empty_like(scale, device="meta"))


def quantize_layer(layer: nn.Linear, preset: str, options: Config) -> nn.Module:
    """The layer with an eight-bit weight."""
    return Float8Linear.from_linear(layer, PRESETS[preset], FORMATS[options.fp8_format])
