"""Running out of memory, said in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from darkroom.core.errors import DarkroomError, MemoryFullError

_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


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


def memory_full_message(cause: BaseException) -> str:
    """The words for a full memory, with what the library said."""
    first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    return (
        f"Out of memory: {first[:300]}\n"
        "  What was saved is intact; the same command goes on from the last checkpoint. While training, lower "
        "train_batch_size (and raise gradient_accumulation_steps) or resolution, or set gradient_checkpointing to "
        "true. While caching, lower vae_batch_size or set vae_enable_tiling to true. While rendering, lower "
        "validation_resolution. Other programs may hold memory too."
    )
