"""Limit gradients before an update, by value or by norm, and say how large they were."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from darkroom.core.transfer import to_device


def clip(parameters: Sequence[Tensor], method: str, limit: float) -> Tensor:
    """Clip in place and return the size before: the largest |g| for `value`, the global norm for `norm`.

    A limit of 0 only measures.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    if method == "norm":
        bound = limit if limit > 0 else float("inf")
        if len({grad.device for grad in grads}) == 1:
            return torch.nn.utils.clip_grad_norm_(parameters, bound)
        length = torch.linalg.vector_norm(_sizes(grads, 2.0))
        if limit > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, bound, length)
        return length
    largest = _sizes(grads, float("inf")).max()
    if limit > 0:
        torch._foreach_clamp_min_(grads, -limit)
        torch._foreach_clamp_max_(grads, limit)
    return largest


def _sizes(grads: Sequence[Tensor], order: float) -> Tensor:
    """The norm of each gradient, on the GPU if some are there: those of offloaded weights are on the host."""
    devices = sorted({grad.device for grad in grads}, key=lambda device: device.type == "cpu")
    groups = ([grad for grad in grads if grad.device == device] for device in devices)
    return torch.cat([to_device(torch.stack(torch._foreach_norm(some, order)), devices[0]) for some in groups])
