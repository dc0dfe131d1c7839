"""What autocast widens on a GPU, for tensors that torch takes to be on a CPU.

On a CPU autocast leaves norms, powers and sums in sixteen bits; on a GPU it computes and keeps them in float32. The
lists are torch's own (ATen/autocast_mode.h).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    pass


# AT_FORALL_FP32, but for what autocast widens on a CPU too
FLOAT32 = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
    "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm", "native_layer_norm",
    "rms_norm", "group_norm", "cosine_similarity", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss",
    "binary_cross_entropy_with_logits", "dist", "logsumexp", "upsample_nearest1d", "_upsample_nearest_exact1d",
    "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_nearest3d", "_upsample_nearest_exact3d",
    "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_trilinear3d",
    "upsample_bicubic2d", "_upsample_bicubic2d_aa",
)  # fmt: skip
# AT_FORALL_FP32_SET_OPT_DTYPE: they are told to answer in float32
FLOAT32_OUTPUT = (
    "prod",
    "prod.dim_int",
    "softmax.int",
    "log_softmax.int",
    "cumprod",
    "cumsum",
    "sum",
    "sum.dim_IntList",
)
_KEY = torch._C.DispatchKey.AutocastCPU
_HALF_TYPES = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def use_gpu_autocast_rules() -> Iterator[None]:
    """Inside, autocast on the CPU widens what it widens on a GPU."""
    library = torch.library.Library("aten", "IMPL")
    try:
        for names, kernel in ((FLOAT32, _run_in_float32), (FLOAT32_OUTPUT, _run_with_float32_output)):
            for name in names:
                packet, _, overload = name.partition(".")
                func = getattr(getattr(torch.ops.aten, packet), overload or "default")
                if not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "AutocastCPU"):
                    library.impl(name, functools.partial(kernel, func), _KEY.name)
        yield
    finally:
        library._destroy()


def _run_in_float32(func: Callable[..., object], *args: object, **kwargs: object) -> object:
    def wide(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype in _HALF_TYPES else tensor

    with _skip_autocast():
        return func(*pytree.tree_map_only(Tensor, wide, args), **pytree.tree_map_only(Tensor, wide, kwargs))


def _run_with_float32_output(func: Callable[..., object], first: Tensor, *args: object, **kwargs: object) -> object:
    positions = {argument.name: number for number, argument in enumerate(func._schema.arguments)}  # type: ignore[attr-defined]
    dtype = kwargs.get("dtype") or (args[positions["dtype"] - 1] if len(args) >= positions["dtype"] else None)
    if dtype is None and first.dtype in _HALF_TYPES:
        args, kwargs = args[: positions["dtype"] - 1], {**kwargs, "dtype": torch.float32}
    with _skip_autocast():
        return func(first, *args, **kwargs)


def _skip_autocast() -> contextlib.AbstractContextManager[object]:
    guard: contextlib.AbstractContextManager[object] = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY))
    return guard
