"""Copies between the host and a GPU that are queued and not waited for, and one wait for many of them.

A host that waits lets the GPU run out of work. It waits for every copy that is not `non_blocking`, and may wait for one
that is if the host's side is not pinned memory.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from darkroom.core.device import HOST
from darkroom.core.pinned import empty_pinned_like

Value = TypeVar("Value")

# bytes that may be underway before they are waited for: more would only pin more of the host's memory
MAX_PENDING_BYTES = 256 << 20


def map_tensors(change: Callable[[Tensor], Tensor], value: Value) -> Value:
    """A value with its tensors changed: itself, or those in dicts, lists and tuples; anything else stays as it is."""
    if isinstance(value, Tensor):
        return cast(Value, change(value))
    # pytree would do these too, ten times as slowly
    if isinstance(value, dict) and type(value) is dict:
        return cast(Value, {name: map_tensors(change, part) for name, part in value.items()})
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return cast(Value, type(value)(map_tensors(change, part) for part in value))
    return cast(Value, pytree.tree_map_only(Tensor, change, value))


def pin(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, where a tensor of the host is not there yet; any other tensor as it is."""
    # one without numbers has nothing to copy
    return tensor.pin_memory() if type(tensor) is Tensor and tensor.device == HOST else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor on a device, by a copy that the host does not wait for."""
    return (pin(tensor) if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Arrivals:
    """Tensors on their way to the host. `land` waits once for all of them, and hands each one over, in their order."""

    def __init__(self, max_pending_bytes: int = MAX_PENDING_BYTES):
        self.max_pending_bytes, self.bytes = max_pending_bytes, 0
        self.underway: list[tuple[Tensor, Callable[[Tensor], object]]] = []
        self.device = HOST

    def send(self, tensor: Tensor, take: Callable[[Tensor], object], room: Tensor | None = None) -> None:
        """Queue a copy for `take`, which is called at once for a tensor that is on the host already.

        `room` is pinned memory of the caller's for it, which nobody may read before `land`. Without it the copy is put
        where torch pins memory for a while.
        """
        if tensor.device.type != "cuda":
            take(tensor.to(HOST))
            return
        if room is None:
            if self.bytes + tensor.nbytes > self.max_pending_bytes:
                self.land()
            room = torch.empty_like(tensor, device=HOST, pin_memory=True, requires_grad=False)
            self.bytes += tensor.nbytes
        room.copy_(tensor.detach(), non_blocking=True)
        self.device = tensor.device
        self.underway.append((room, take))

    def land(self) -> None:
        """Wait for what is underway, if anything is."""
        if self.underway:
            torch.cuda.current_stream(self.device).synchronize()
        underway, self.underway, self.bytes = self.underway, [], 0
        for copy, take in underway:
            take(copy)


def when_gradient_is_complete(weight: Tensor, method: Callable[[Tensor], None]) -> None:
    """Have a bound method called with a weight after each pass through it, for as long as the method's object lives.

    torch holds such hooks where Python's garbage collector does not look: one that led back to its weight would keep
    that forever.
    """
    earlier = weakref.WeakMethod(method)

    def hook(weight: Tensor) -> None:
        if call := earlier():
            call(weight)

    weight.register_post_accumulate_grad_hook(hook)


class HostGradients:
    """The gradients of weights in host memory, where those of several passes add up.

    The first of a step is copied to pinned memory that its weight keeps for as long as a run, so that all gradients of
    a step are waited for at once; the next one passes through memory that is pinned for a while, and is added to it.
    """

    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self.sums: dict[Tensor, Tensor] = {}
        self.sent: set[Tensor] = set()
        self.rooms: dict[Tensor, Tensor] = {}

    def start_from(self, weight: Tensor, gradient: Tensor) -> None:
        """Let a step's gradients be added to one that is on the host, such as zeros."""
        self.sums[weight] = gradient

    def add(self, weight: Tensor, gradient: Tensor) -> None:
        """Queue a copy of a gradient."""
        is_first = weight not in self.sums and weight not in self.sent
        self.sent.add(weight)
        room = self._room(weight, gradient) if is_first and gradient.device.type == "cuda" else None
        self.arrivals.send(gradient, functools.partial(self._add, weight), room)

    def collect(self) -> dict[Tensor, Tensor]:
        """Wait for what is underway. Returns the sums by weight, which begin anew."""
        self.arrivals.land()
        sums, self.sums = self.sums, {}
        self.sent.clear()
        return sums

    def _room(self, weight: Tensor, gradient: Tensor) -> Tensor:
        if weight not in self.rooms:
            self.rooms[weight] = empty_pinned_like(gradient)
        return self.rooms[weight]

    def _add(self, weight: Tensor, gradient: Tensor) -> None:
        earlier = self.sums.get(weight)
        self.sums[weight] = gradient if earlier is None else earlier.add_(gradient)
