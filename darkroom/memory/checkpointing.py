"""Gradient checkpointing: save a block's input and recompute the block in backward (1604.06174).

diffusers models call `self._gradient_checkpointing_func(block, *inputs)` for every block. With an interval
n only every n-th call is checkpointed, which trades memory for speed in any family. Saved inputs can be offloaded to
CPU RAM (as in unslothai/unsloth).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from torch.nn import Module

OFFLOADED = "unsloth"


class _OffloadedInput:
    """A saved input of checkpointed blocks, offloaded to CPU RAM unless several blocks share it, such as rotary tables
    or the text, which would be copied for each block. Shared inputs stay on the device.
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
        """Keep the tensor on the device: another block has the same input."""
        self.tensor, self.shared = tensor, True

    def restore(self) -> Tensor:
        """The tensor on its device. Work queued before has filled the CPU copy by then."""
        return self.tensor if self.shared else self.tensor.to(self.device, non_blocking=True)


class OffloadInputs(saved_tensors_hooks):
    """Context that offloads inputs of checkpointed blocks to CPU RAM, each once, without synchronizing."""

    def __init__(self) -> None:
        super().__init__(self._offload, _OffloadedInput.restore)
        # by what tells tensors apart; the graph of a pass holds what is in here
        self.inputs: weakref.WeakValueDictionary[tuple[object, ...], _OffloadedInput] = weakref.WeakValueDictionary()

    def _offload(self, tensor: Tensor) -> _OffloadedInput:
        tensor = tensor.detach()
        address = tensor.untyped_storage()._cdata
        view = tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version
        existing = self.inputs.get((address, *view))
        if existing is None:
            existing = self.inputs[(address, *view)] = _OffloadedInput(tensor)
        else:
            existing.share(tensor)
        return existing


class Checkpoints:
    """Checkpoints every n-th block of a forward pass and runs the others normally.

    With `offloads` saved inputs are offloaded to CPU RAM. With `streams_single_layers` the layers of a block are
    streamed one by one (`memory.stream`): after recomputation most weights are on the CPU again, and each returns
    before its gradient is computed. torch's determinism check would compare their devices in between.
    """

    def __init__(self, interval: int = 1, offloads: bool = False, streams_single_layers: bool = False):
        self.interval, self.count = interval, 0
        self.around = OffloadInputs() if offloads else contextlib.nullcontext()
        self.compared = "none" if streams_single_layers else "default"

    def reset(self, *_: object) -> None:
        """Reset the counter at the start of a forward pass."""
        self.count = 0

    def __call__(self, block: Module, *inputs: object, **named: object) -> object:
        self.count += 1
        if self.count % self.interval:
            return block(*inputs, **named)
        with self.around:
            run: Callable[..., object] = checkpoint  # whose stub takes named inputs for settings
            return run(block, *inputs, use_reentrant=False, determinism_check=self.compared, **named)


def checkpoint_each(block: Module, *inputs: object, **named: object) -> object:
    """Checkpoint a block. diffusers' own takes no named inputs, with which some of its networks call it."""
    run: Callable[..., object] = checkpoint  # whose stub takes named inputs for settings
    return run(block, *inputs, use_reentrant=False, **named)


def enable_checkpointing(
    model: ModelMixin, interval: int | None, backend: str = "torch", streams_single_layers: bool = False
) -> None:
    """Enable checkpointing; an `interval` above 1 checkpoints only every n-th block."""
    if (interval or 1) <= 1 and backend != OFFLOADED and not streams_single_layers:
        model.enable_gradient_checkpointing(checkpoint_each)
        return
    checkpoints = Checkpoints(interval or 1, backend == OFFLOADED, streams_single_layers)
    model.register_forward_pre_hook(checkpoints.reset)
    model.enable_gradient_checkpointing(checkpoints)
