"""Gradient checkpointing: keep a block's input, compute the block again on the way back (1604.06174).

diffusers models call `self._gradient_checkpointing_func(block, *inputs)` for every block. An interval n leaves all but
every n-th of those calls alone, which trades memory for speed on any family without touching its model. The inputs that
are kept can wait in host memory (as unslothai/unsloth does it).
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

OFFLOADED = "unsloth"


class Checkpoints:
    """Checkpoints every n-th block of a forward pass, runs the others plainly."""

    def __init__(self, interval: int = 1, offloads: bool = False):
        self.interval, self.offloads, self.count = interval, offloads, 0

    def reset(self, *_: Any) -> None:
        """A forward pass begins."""
        self.count = 0

    def __call__(self, block: Any, *inputs: Any) -> Any:
        self.count += 1
        if self.count % self.interval:
            return block(*inputs)
        with save_on_cpu(pin_memory=torch.cuda.is_available()) if self.offloads else contextlib.nullcontext():
            return checkpoint(block, *inputs, use_reentrant=False)


def enable(model: Any, interval: int | None, backend: str = "torch") -> None:
    """Switch checkpointing on; `interval` above 1 checkpoints only every n-th block."""
    if (interval or 1) <= 1 and backend != OFFLOADED:
        model.enable_gradient_checkpointing()
        return
    each = Checkpoints(interval or 1, backend == OFFLOADED)
    model.register_forward_pre_hook(each.reset)
    model.enable_gradient_checkpointing(each)
