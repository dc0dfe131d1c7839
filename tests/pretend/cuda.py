"""`torch.cuda` of a pretended GPU: the parts that a torch without CUDA does not have."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend  # noqa: F401  (imported before anything is exchanged)

from tests.pretend.device import Card


class Stream(torch.Stream):
    """A stream of the pretended GPU."""

    def __new__(cls, device: Any = None, priority: int = 0, **named: Any) -> Stream:
        return super().__new__(cls, device="cuda:0", priority=priority)


class Event(torch.Event):
    """An event of the pretended GPU."""

    def __new__(cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> Event:
        return super().__new__(cls, device="cuda:0", enable_timing=enable_timing)


@contextlib.contextmanager
def on_stream(stream: torch.Stream | None) -> Iterator[None]:
    """Work goes to this stream."""
    if stream is None:
        yield
        return
    with stream:
        yield


class Runtime:
    """`torch.cuda.cudart()`: what registers memory of the host."""

    def __init__(self, card: Card) -> None:
        self.card = card

    def cudaHostRegister(self, start: int, size: int, flags: int) -> int:  # noqa: N802
        """Pin the memory."""
        self.card.library.pretend_register_host(start, size)
        return 0

    def cudaHostUnregister(self, start: int) -> int:  # noqa: N802
        """Let it go."""
        self.card.library.pretend_unregister_host(start)
        return 0


def exchange(card: Card) -> None:
    """Put the pretended device behind `torch.cuda`."""
    card.library.pretend_hand_out_default()
    default = torch.Generator("cuda")
    runtime = Runtime(card)
    synchronize = lambda *_: torch.accelerator.synchronize()  # noqa: E731
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda *_: None,
        "_exchange_device": lambda _: 0,
        "_maybe_exchange_device": lambda _: 0,
        "synchronize": synchronize,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "mem_get_info": lambda *_: (card.total_memory - card.held, card.total_memory),
        "memory_allocated": lambda *_: card.held,
        "memory_reserved": lambda *_: card.held,
        "max_memory_allocated": lambda *_: card.peak,
        "max_memory_reserved": lambda *_: card.peak,
        "reset_peak_memory_stats": lambda *_: card.library.pretend_reset_peak(),
        "memory_stats": lambda *_: {
            "allocated_bytes.all.current": card.held,
            "allocated_bytes.all.peak": card.peak,
            "reserved_bytes.all.current": card.held,
            "num_alloc_retries": 0,
            "num_ooms": 0,
        },
        "get_device_capability": lambda *_: card.capability,
        "get_device_name": lambda *_: card.name,
        "get_device_properties": lambda *_: card,
        "get_arch_list": lambda: [f"sm_{card.major}{card.minor}"],
        "is_bf16_supported": lambda *_, **__: card.major >= 8,
        "get_rng_state": lambda *_: default.get_state(),
        "set_rng_state": lambda state, *_: default.set_state(state),
        "get_rng_state_all": lambda: [default.get_state()],
        "set_rng_state_all": lambda states: default.set_state(next(iter(states))),
        "manual_seed": default.manual_seed,
        "manual_seed_all": default.manual_seed,
        "seed": default.seed,
        "seed_all": default.seed,
        "initial_seed": default.initial_seed,
        "current_stream": lambda *_: torch.accelerator.current_stream(),
        "default_stream": lambda *_: torch.Stream(stream_id=0, device_index=0, device_type=1),
        "stream": on_stream,
        "is_current_stream_capturing": lambda: False,
        "get_allocator_backend": lambda: "native",
        "can_device_access_peer": lambda *_: False,
        "cudart": lambda: runtime,
        "check_error": lambda _: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.cuda.Stream, torch.cuda.Event = Stream, Event  # type: ignore[misc]
    torch.cuda.default_generators = (default,)
    torch.cuda._initialized = True
    for name in ("_cuda_setDevice", "_cuda_emptyCache", "_cuda_getCurrentRawStream"):
        setattr(torch._C, name, lambda *_: 0)
