"""Pinned memory of the size that is asked for."""

from __future__ import annotations

import gc
import logging
import mmap

import pytest
import torch

from darkroom.core import pinned
from darkroom.core.pinned import empty_pinned

PAGE = mmap.PAGESIZE


class Runtime:
    """CUDA's runtime, which registers memory, or refuses to."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.registered = code, {}  # type: ignore[var-annotated]

    def cudaHostRegister(self, start: int, size: int, flags: int) -> int:  # noqa: N802
        if not self.code:
            self.registered[start] = size
        return self.code

    def cudaHostUnregister(self, start: int) -> int:  # noqa: N802
        del self.registered[start]
        return 0


def test_memory_is_pinned_to_the_page_and_let_go_with_its_last_tensor(monkeypatch):
    runtime = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    memory = empty_pinned(5 * PAGE + 1)
    part = memory[7:].fill_(3)

    assert len(memory) == 5 * PAGE + 1
    assert runtime.registered == {memory.untyped_storage().data_ptr(): 6 * PAGE}

    del memory
    gc.collect()
    assert runtime.registered
    assert part[-1] == 3

    del part
    gc.collect()
    assert runtime.registered == {}


def test_memory_that_cannot_be_pinned_is_ordinary_memory_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Runtime(code=2))
    monkeypatch.setattr(pinned, "_forget_error", lambda: None)
    with caplog.at_level(logging.WARNING, logger="darkroom"):
        memory = empty_pinned(2 * PAGE)

    assert memory.fill_(1).sum() == 2 * PAGE
    assert "cannot be pinned (CUDA error 2)" in caplog.text


@pytest.mark.parametrize("size", [0, 1])
def test_the_smallest_sizes_are_sizes(size, monkeypatch):
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Runtime())
    assert empty_pinned(size).shape == (size,)
