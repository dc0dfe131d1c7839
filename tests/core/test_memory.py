"""How much memory there is and how much is held."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from darkroom.core.memory import (
    available_bytes,
    import_libraries,
    is_memory_full,
    memory_full_message,
    resident_bytes,
)
from tests.rows import each_row

MB = 2**20
PROGRAM = """
import sys, torch
from darkroom.core.memory import release_freed_memory, resident_bytes
if sys.argv[1] == "yes":
    release_freed_memory()
start = resident_bytes()
for _ in range(2):
    # the second time they come out of what was freed, unless that has gone back
    blocks = [torch.ones(2**20 + 1000 * i) for i in range(50)]
    last = torch.ones(2**19)
    del blocks
print(resident_bytes() - start)
"""


def test_what_is_held_and_what_is_left_are_told():
    before = resident_bytes()
    block = bytearray(64 * MB)
    assert 60 * MB < resident_bytes() - before < 80 * MB
    assert len(block) < available_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_goes_back():
    kept = {
        word: int(subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, check=True).stdout)
        for word in ("yes", "no")
    }
    assert kept["yes"] < 30 * MB
    assert kept["no"] > kept["yes"]


@each_row(
    "said",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.60 GiB",
        "HIP out of memory. Tried to allocate 20.00 MiB",
        "XPU out of memory. Tried to allocate 8.00 GiB",
        "MPS backend out of memory (MPS allocated: 9.02 GB)",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "Triton Error [CUDA]: out of memory",
        "CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY",
        "NCCL error: unhandled cuda error: Cuda failure 2 'out of memory'",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "FIND was unable to find an engine to execute this computation",
        "GET was unable to find an engine to execute this computation",
        "miopenStatusAllocFailed",
        "HIP error: hipErrorOutOfMemory",
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried",
        "[Errno 12] Cannot allocate memory",
    ],
)
def test_a_full_memory_is_known_by_what_libraries_say(said):
    assert is_memory_full(RuntimeError(said))
    assert is_memory_full(OSError(said))
    assert not is_memory_full(ValueError(said))


@each_row(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "Expected all tensors to be on the same device",
        "mat1 and mat2 shapes cannot be multiplied",
    ],
)
def test_other_errors_are_no_full_memory(said):
    assert not is_memory_full(RuntimeError(said))


def test_advice_stands_before_what_is_said_to_everybody():
    said = memory_full_message(MemoryError("no room"), "It fits with gradient_checkpointing to true.")
    assert said.splitlines()[:2] == ["Out of memory: no room", "  It fits with gradient_checkpointing to true."]
    assert memory_full_message(MemoryError("no room")).splitlines()[1].startswith("  What was saved is intact")


def test_libraries_are_imported_without_the_collector_which_leaves_them_alone_afterwards():
    frozen = gc.get_freeze_count()
    with import_libraries():
        assert not gc.isenabled()
        library = [[] for _ in range(1000)]

    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(library)
