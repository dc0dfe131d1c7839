"""Gradient checkpointing: keep a block's input, compute the block again on the way back (1604.06174).

diffusers models call `self._gradient_checkpointing_func(block, *inputs)` for every block. An interval n leaves all but
every n-th of those calls alone, which trades memory for speed on any family without touching its model.
"""

from __future__ import annotations

from typing import Any

from torch.utils.checkpoint import checkpoint


class EveryNth:
    """Checkpoints every n-th block of a forward pass, runs the others plainly."""

    def __init__(self, interval: int):
        self.interval, self.count = interval, 0

    def reset(self, *_: Any) -> None:
        """A forward pass begins."""
        self.count = 0

    def __call__(self, block: Any, *inputs: Any) -> Any:
        self.count += 1
        if self.count % self.interval:
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False)


def enable(model: Any, interval: int | None) -> None:
    """Switch checkpointing on; `interval` above 1 checkpoints only every n-th block."""
    if not interval or interval <= 1:
        model.enable_gradient_checkpointing()
        return
    every = EveryNth(interval)
    model.register_forward_pre_hook(every.reset)
    model.enable_gradient_checkpointing(every)
