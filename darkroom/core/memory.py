"""Running out of memory, said in words."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.core.errors import DarkroomError, MemoryFullError

if TYPE_CHECKING:
    import psutil

# in small letters, what a text of a full memory has, of torch and of the libraries below it
_SIGNS = (
    "out of memory",  # torch on CUDA, HIP, XPU and MPS; the CUDA driver and triton; NCCL
    "out_of_memory",  # CUDA_ERROR_OUT_OF_MEMORY
    "out_of_device_memory",  # UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY, of Intel's runtime
    "out_of_host_memory",
    "outofmemory",  # hipErrorOutOfMemory
    "memoryallocation",  # cudaErrorMemoryAllocation
    "allocate memory",  # torch on a CPU: can't allocate memory; the operating system: Cannot allocate memory
    "not enough memory",  # torch on a CPU under Windows
    "alloc_failed",  # CUBLAS_, CUDNN_, CUSPARSE_, CUSOLVER_, CUFFT_ and HIPBLAS_STATUS_ALLOC_FAILED
    "allocation_failed",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED; cuRAND
    "allocfailed",  # miopenStatusAllocFailed
    "rocblas_status_memory_error",
    # cuDNN tries one algorithm after the other, and none found room to work in
    "unable to find an engine to execute this computation",
    "unable to find a valid cudnn algorithm",
)
# of malloc.h: blocks above M_MMAP_THRESHOLD come from the system and go back to it; so does free memory at the end of
# the heap above M_TRIM_THRESHOLD
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
LARGE_BLOCK = 1 << 20
LARGEST_THRESHOLD = 32 << 20  # glibc takes no more
MALLOPT_MAX = (1 << 31) - 1


def is_memory_full(cause: BaseException) -> bool:
    """Does `cause` say that memory ran out? By its type if it is a MemoryError, else by what it says."""
    if isinstance(cause, MemoryError):
        return True
    message = str(cause).lower()
    return isinstance(cause, (RuntimeError, OSError)) and any(sign in message for sign in _SIGNS)


@contextlib.contextmanager
def explain_memory_full() -> Iterator[None]:
    """Turn running out of memory into advice. Raises MemoryFullError."""
    try:
        yield
    except DarkroomError:
        raise
    except Exception as cause:
        if not is_memory_full(cause):
            raise
        raise MemoryFullError(memory_full_message(cause)) from cause


def memory_full_message(cause: BaseException, advice: str = "") -> str:
    """The words for a full memory, with what the library said, and what was found out for this very run."""
    first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    hint = f"  {advice}\n" if advice else ""
    return (
        f"Out of memory: {first[:300]}\n{hint}"
        "  What was saved is intact; with resume_from_checkpoint latest (the default) the run goes on from its last "
        "checkpoint. While training, lower "
        "train_batch_size (and raise gradient_accumulation_steps) or resolution, set gradient_checkpointing to true, "
        "base_model_precision to fp8-block or int8-quanto, or musubi_blocks_to_swap. While caching, lower "
        "vae_batch_size or set vae_enable_tiling to true. While rendering, lower validation_resolution. Other programs "
        "may hold memory too."
    )


def resident_bytes() -> int:
    """Bytes of memory that this process holds, mapped files with them: its resident size."""
    return int(_process(os.getpid()).memory_info().rss)


@functools.cache
def _process(pid: int) -> psutil.Process:
    """The process of this number, looked up once: that takes longer than asking it."""
    import psutil

    return psutil.Process(pid)


def available_bytes() -> int:
    """Bytes that a program could still take on this machine, or in this container if that has a limit of its own."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def release_freed_memory() -> None:
    """Have glibc give large blocks back as soon as they are freed. It keeps them otherwise, and the more of them the
    more sizes there are, so that a process holds up to twice what it uses. Elsewhere it does nothing."""
    _set_thresholds(LARGE_BLOCK, LARGE_BLOCK)


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Inside, freed blocks up to 32 MiB stay with the process: what every step frees, the next one wants again, and the
    system would fill each page with zeros anew. They are given back at the end."""
    _set_thresholds(LARGEST_THRESHOLD, MALLOPT_MAX)
    try:
        yield
    finally:
        release_freed_memory()


@contextlib.contextmanager
def import_libraries() -> Iterator[None]:
    """Inside, large libraries are imported in four fifths of the time: Python's collector does not run.

    Nor does it look at them afterwards, or at anything else that is there by then, until `freeze_garbage` ends. So this
    is for moments when no model is in memory.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def freeze_garbage() -> Iterator[None]:
    """Inside, Python's collector does not look again and again through all that was imported and built before."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _set_thresholds(block: int, trim: int) -> None:
    """Which blocks come from the system, and how much free memory the heap may keep at its end."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, block)
        library.mallopt(_TRIM_THRESHOLD, trim)
        library.malloc_trim(0)
