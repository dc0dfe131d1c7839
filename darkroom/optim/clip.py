"""Limit gradients before an update, by value or by norm, and say how large they were."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def clip(parameters: Sequence[Tensor], method: str, limit: float) -> Tensor:
    """Clip in place and return the size before: the largest |g| for `value`, the global norm for `norm`.

    A limit of 0 only measures.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    if method == "norm":
        return torch.nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf"))
    # those of weights that wait in host memory are there
    largest = torch.stack([size.to(grads[0].device) for size in torch._foreach_norm(grads, float("inf"))]).max()
    if limit > 0:
        torch._foreach_clamp_min_(grads, -limit)
        torch._foreach_clamp_max_(grads, limit)
    return largest
