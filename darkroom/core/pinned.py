"""Pinned host memory of the size that is asked for, for what stays there as long as a run.

torch's own allocator of pinned memory rounds blocks up to a power of two and keeps those that are freed, which suits
batches: of FLUX.1's blocks in bfloat16 it makes 38 GiB out of 22. Here ordinary memory is registered with the driver.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref

import torch
from torch import Tensor

from darkroom.core.log import logger
from darkroom.core.units import show_size

log = logger(__name__)
PAGE = mmap.PAGESIZE
# on Windows there is no choice
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def empty_pinned(size: int) -> Tensor:
    """(size,) bytes from which a GPU copies on its own; ordinary ones, with a warning, where the system refuses."""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    pages = -(-size // PAGE) * PAGE
    # pages of its own, as a page is registered once
    room = mmap.mmap(-1, pages, **_PRIVATE)
    memory = torch.frombuffer(room, dtype=torch.uint8, count=size)
    runtime, start = torch.cuda.cudart(), memory.data_ptr()
    if code := int(runtime.cudaHostRegister(start, pages, 0)):
        _forget_error()
        log.warning("%s of host memory cannot be pinned (CUDA error %d): copies take longer.", show_size(size), code)
    else:
        weakref.finalize(room, runtime.cudaHostUnregister, start)
    return memory


def empty_pinned_like(tensor: Tensor) -> Tensor:
    """Pinned memory, as `empty_pinned` gives it, for a copy of a dense tensor."""
    like = torch.empty_like(tensor, device="meta")
    return empty_pinned(like.nbytes).view(like.dtype).as_strided(like.shape, like.stride())


def _forget_error() -> None:
    """Have CUDA forget the last error, which it would raise again at the next kernel."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
