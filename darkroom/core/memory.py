"""Running out of memory, said in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from darkroom.core.errors import DarkroomError, MemoryFullError

_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
# M_MMAP_THRESHOLD of malloc.h: larger blocks come from the system, and go back to it
_MMAP_THRESHOLD = -3
LARGE_BLOCK = 1 << 20


def is_memory_full(cause: BaseException) -> bool:
    """Does `cause` say that memory ran out? torch says it by a type of its own on a GPU, by a text on a CPU."""
    return isinstance(cause, MemoryError) or (
        isinstance(cause, (RuntimeError, OSError)) and any(sign in str(cause) for sign in _SIGNS)
    )


@contextlib.contextmanager
def memory_full_says() -> Iterator[None]:
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
    found = f"  {advice}\n" if advice else ""
    return (
        f"Out of memory: {first[:300]}\n{found}"
        "  What was saved is intact; with resume_from_checkpoint latest (the default) the run goes on from its last "
        "checkpoint. While training, lower "
        "train_batch_size (and raise gradient_accumulation_steps) or resolution, set gradient_checkpointing to true, "
        "base_model_precision to fp8-block or int8-quanto, or musubi_blocks_to_swap. While caching, lower "
        "vae_batch_size or set vae_enable_tiling to true. While rendering, lower validation_resolution. Other programs "
        "may hold memory too."
    )


def held() -> int:
    """Bytes of memory that this process holds, mapped files with them: its resident size."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def available() -> int:
    """Bytes that a program could still take on this machine, or in this container if that has a limit of its own."""
    import psutil

    free = int(psutil.virtual_memory().available)
    most, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):
        free = min(free, int(most.read_text()) - int(used.read_text()))
    return free


def give_back_freed() -> None:
    """Have glibc give large blocks back as soon as they are freed. It keeps them otherwise, and the more of them the
    more sizes there are, so that a process holds up to twice what it uses. Elsewhere it does nothing."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, LARGE_BLOCK)
