"""Gradient checkpointing: keep a block's input, compute the block again on the way back (1604.06174).

diffusers models call `self._gradient_checkpointing_func(block, *inputs)` for every block. An interval n leaves all but
every n-th of those calls alone, which trades memory for speed on any family without touching its model. The inputs that
are kept can wait in host memory (as unslothai/unsloth does it).
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

OFFLOADED = "unsloth"


class _Kept:
    """An input of checkpointed blocks. It waits in host memory, unless several blocks are given it: such as a table of
    rotations or the text, which would be copied there and back for each of them. Those stay where they are.
    """

    def __init__(self, tensor: Tensor):
        self.device, self.shared = tensor.device, False
        # while this is alive no other storage has the same address
        self.storage = StorageWeakRef(tensor.untyped_storage())
        # torch rounds what it pins up to a power of two, and uses it again for batches of other shapes
        pinned = tensor.is_cuda and torch.cuda.is_available()
        self.tensor = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        self.tensor.copy_(tensor, non_blocking=pinned)

    def share(self, tensor: Tensor) -> None:
        """Another block is given the same."""
        self.tensor, self.shared = tensor, True

    def back(self) -> Tensor:
        """The tensor on its device. What was queued there before has filled the host's copy by then."""
        return self.tensor if self.shared else self.tensor.to(self.device, non_blocking=True)


class Offloads(saved_tensors_hooks):
    """Inside, inputs of checkpointed blocks wait in host memory: each is copied there once, and none is waited for."""

    def __init__(self) -> None:
        super().__init__(self._keep, _Kept.back)
        # by what tells tensors apart; the graph of a pass holds what is in here
        self.kept: weakref.WeakValueDictionary[tuple[Any, ...], _Kept] = weakref.WeakValueDictionary()

    def _keep(self, tensor: Tensor) -> _Kept:
        tensor = tensor.detach()
        address = tensor.untyped_storage()._cdata
        view = tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version
        known = self.kept.get((address, *view))
        if known is None:
            known = self.kept[(address, *view)] = _Kept(tensor)
        else:
            known.share(tensor)
        return known


class Checkpoints:
    """Checkpoints every n-th block of a forward pass, runs the others plainly.

    With `offloads` the inputs that are kept wait in host memory. With `layers_move` the layers of a block come and go
    one by one (`memory.stream`): when the block has been computed again, the weights of most of them have left, and
    each comes back before its gradient is computed. torch would compare where they are in between.
    """

    def __init__(self, interval: int = 1, offloads: bool = False, layers_move: bool = False):
        self.interval, self.count = interval, 0
        self.around = Offloads() if offloads else contextlib.nullcontext()
        self.compared = "none" if layers_move else "default"

    def reset(self, *_: Any) -> None:
        """A forward pass begins."""
        self.count = 0

    def __call__(self, block: Any, *inputs: Any, **named: Any) -> Any:
        self.count += 1
        if self.count % self.interval:
            return block(*inputs, **named)
        with self.around:
            return checkpoint(block, *inputs, use_reentrant=False, determinism_check=self.compared, **named)


def checkpoint_each(block: Any, *inputs: Any, **named: Any) -> Any:
    """Checkpoint a block. diffusers' own takes no named inputs, with which some of its networks call it."""
    return checkpoint(block, *inputs, use_reentrant=False, **named)


def enable(model: Any, interval: int | None, backend: str = "torch", layers_move: bool = False) -> None:
    """Switch checkpointing on; `interval` above 1 checkpoints only every n-th block."""
    if (interval or 1) <= 1 and backend != OFFLOADED and not layers_move:
        model.enable_gradient_checkpointing(checkpoint_each)
        return
    each = Checkpoints(interval or 1, backend == OFFLOADED, layers_move)
    model.register_forward_pre_hook(each.reset)
    model.enable_gradient_checkpointing(each)
