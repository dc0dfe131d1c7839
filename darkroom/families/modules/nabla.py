"""Kandinsky 5's sparse attention (NABLA, 2507.13546): flex attention where it can be used, the same mask elsewhere.

diffusers' function names, for each group of 64 queries, the groups of keys that they look at, as a mask for flex
attention. That skips groups only when it is compiled (as it stands it looks at everything), and has no backward pass
on a CPU: there the mask is written out, token by token, for any kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers import transformer_kandinsky
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

GROUP = 64
_mask = transformer_kandinsky.nablaT_v2
_attend = transformer_kandinsky.dispatch_attention_fn


@functools.cache
def use() -> None:
    """From now on diffusers' network asks here for its masks and its attention."""
    transformer_kandinsky.nablaT_v2 = mask_of
    transformer_kandinsky.dispatch_attention_fn = attend


def mask_of(q: Tensor, k: Tensor, sta: Tensor, thr: float = 0.9) -> Any:
    """The mask for queries and keys (B, S, heads, D) as the kernel of their device takes it.

    A block mask for flex attention; on a CPU (B, heads, S, S), true where a token is looked at; in shapes none, as a
    kernel that skips groups holds no more than one that reads all.
    """
    groups = _mask(q, k, sta, thr)
    if isinstance(q, FakeTensor) or q.is_meta:
        return None
    return expand_mask(groups) if q.device.type == "cpu" else groups


def expand_mask(groups: BlockMask) -> Tensor:
    """A mask of groups, token by token."""
    dense = groups.to_dense().bool()
    return dense.repeat_interleave(GROUP, dim=-2).repeat_interleave(GROUP, dim=-1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, backend: Any = None, **kwargs: Any
) -> Tensor:
    """Attention over (B, S, heads, D): flex attention for block masks, else the kernel that was chosen."""
    wants_flex = backend == AttentionBackendName.FLEX and not isinstance(query, FakeTensor) and query.is_cuda
    if not wants_flex and not isinstance(attn_mask, BlockMask):
        usual = None if backend == AttentionBackendName.FLEX else backend
        return _attend(query, key, value, attn_mask=attn_mask, backend=usual, **kwargs)
    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return compile_flex_attention()(*heads_first, block_mask=attn_mask).transpose(1, 2)


@functools.cache
def compile_flex_attention() -> Any:
    """Flex attention that skips what its mask leaves out."""
    return torch.compile(flex_attention)
