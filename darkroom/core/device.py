"""Which device a run is on and what it can do: asked here, so that a plan can assume another one.

torch cannot name a GPU that it cannot use. Tensors that are shapes alone are on `ASSUMED` instead, which torch takes
for a second CPU: it computes what it would on the host, and never mixes the two.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch

from darkroom.core.cards import BF16, FP8, Card

HOST = torch.device("cpu")
ASSUMED = torch.device("cpu", 0)
_assumed: contextvars.ContextVar[Card | None] = contextvars.ContextVar("assumed_card", default=None)


@contextlib.contextmanager
def assume_card(card: Card) -> Iterator[None]:
    """Inside, the answers are those of a machine with this card."""
    token = _assumed.set(card)
    try:
        yield
    finally:
        _assumed.reset(token)


def get_assumed_card() -> Card | None:
    """The card that is assumed; None where this machine is asked."""
    return _assumed.get()


def run_device() -> torch.device:
    """Where a run's models are, or would be."""
    if _assumed.get():
        return ASSUMED
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seed_torch(seed: int) -> None:
    """Seed torch's global generators, those of the CPU and of every device of this machine.

    As `torch.manual_seed`, which also records a stack trace for each kind of device that the machine lacks: a
    millisecond per step.
    """
    torch.default_generator.manual_seed(seed)
    for devices in (torch.cuda, torch.xpu):
        if devices.is_available():
            devices.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def is_host(device: torch.device) -> bool:
    """Is it the host's own processors?"""
    return device.type == HOST.type and device != ASSUMED


def capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of an NVIDIA GPU; None for another device."""
    if device == ASSUMED and (card := _assumed.get()):
        return card.capability
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def has_bf16(device: torch.device) -> bool:
    """Does a device multiply bfloat16 fast? The host does not say, and is taken to."""
    able = capability(device)
    return able is None or able >= BF16


def has_fp8(device: torch.device) -> bool:
    """Does a GPU multiply eight-bit floats?"""
    able = capability(device)
    return able is not None and able >= FP8


def device_name(device: torch.device) -> str:
    """A GPU's name."""
    card = _assumed.get()
    return card.name if card and device == ASSUMED else torch.cuda.get_device_name(device)


def find_run_card() -> Card | None:
    """The card that a run here would use: the assumed one, or this machine's with what is free of it; None without."""
    if card := _assumed.get():
        return card
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    return Card(torch.cuda.get_device_name(), total, free + reserved, torch.cuda.get_device_capability())
