"""Copies between the host and a GPU that are queued and not waited for, and one wait for many of them.

A host that waits lets the GPU run out of work. It waits for every copy that is not `non_blocking`, and may wait for one
that is if the host's side is not pinned memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HOST = torch.device("cpu")
# bytes that may be underway before they are waited for: more would only pin more of the host's memory
MOST_UNDERWAY = 256 << 20


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A value with its tensors changed: itself, or those in dicts, lists and tuples; anything else stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: map_tensors(change, item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(change, item) for item in value)
    return value


def pin(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, where a tensor of the host is not there yet; any other tensor as it is."""
    # one without numbers has nothing to copy
    return tensor.pin_memory() if type(tensor) is Tensor and tensor.device == HOST else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor on a device, by a copy that the host does not wait for."""
    return (pin(tensor) if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Arrivals:
    """Tensors on their way to the host. `land` waits once for all of them, and hands each one over, in their order."""

    def __init__(self, most: int = MOST_UNDERWAY):
        self.most, self.bytes = most, 0
        self.underway: list[tuple[Tensor, Callable[[Tensor], Any]]] = []
        self.device = HOST

    def send(self, tensor: Tensor, take: Callable[[Tensor], Any]) -> None:
        """Queue a copy for `take`, which is called at once for a tensor that is on the host already."""
        if tensor.device.type != "cuda":
            take(tensor.to(HOST))
            return
        if self.bytes + tensor.nbytes > self.most:
            self.land()
        copy = torch.empty_like(tensor, device=HOST, pin_memory=True, requires_grad=False)
        copy.copy_(tensor.detach(), non_blocking=True)
        self.device, self.bytes = tensor.device, self.bytes + tensor.nbytes
        self.underway.append((copy, take))

    def land(self) -> None:
        """Wait for what is underway, if anything is."""
        if self.underway:
            torch.cuda.current_stream(self.device).synchronize()
        underway, self.underway, self.bytes = self.underway, [], 0
        for copy, take in underway:
            take(copy)
