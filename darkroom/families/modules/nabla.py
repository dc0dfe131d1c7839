"""Kandinsky 5's sparse attention (NABLA, 2507.13546) where flex attention cannot be used: on a CPU, and in shapes.

diffusers' function names, for each group of 64 queries, the groups of keys that they look at, as a mask for flex
attention, which has no backward pass on a CPU. There the same mask is written out, token by token, for any kernel.
"""

from __future__ import annotations

import functools
from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers import transformer_kandinsky
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

GROUP = 64
_stock = transformer_kandinsky.nablaT_v2


def mask_of(q: Tensor, k: Tensor, sta: Tensor, thr: float = 0.9) -> Any:
    """The mask for queries and keys (B, S, heads, D) as the kernel of their device takes it.

    A block mask for flex attention; on a CPU (B, heads, S, S), true where a token is looked at; in shapes none, as a
    kernel that skips blocks holds no more than one that reads all.
    """
    blocks = _stock(q, k, sta, thr)
    if isinstance(q, FakeTensor) or q.is_meta:
        return None
    return written_out(blocks) if q.device.type == "cpu" else blocks


def written_out(blocks: Any) -> Tensor:
    """A mask of groups, token by token."""
    seen = blocks.to_dense().bool()
    return seen.repeat_interleave(GROUP, dim=-2).repeat_interleave(GROUP, dim=-1)


@functools.cache
def use_on_any_device() -> None:
    """From now on diffusers' network asks for its mask here."""
    transformer_kandinsky.nablaT_v2 = mask_of


def choose_kernel(model: Any) -> None:
    """Let a network draw with flex attention where it can be used, as `attention_mechanism` does in training."""
    use_on_any_device()
    if model.device.type == "cpu":
        return
    for module in model.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            processor._attention_backend = AttentionBackendName.FLEX
