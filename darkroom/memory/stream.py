"""Weights that wait in host memory and come to the device when they are needed.

Blocks of a denoiser or single layers ("units") take turns in a few buffers on the device; while one computes, the next
one is copied on a side stream, on the way forward and on the way back. A unit leaves by being pointed at its host copy
again; nothing is copied back unless somebody wrote to it on the device. Gradients of weights that are trained go to
host memory one by one, and the optimizer works there, between passes, on weights that are all at home. After the block
swap of kohya-ss/musubi-tuner and SimpleTuner, lodestone-rock/RamTorch, and group offloading in diffusers, whose hooks
leave weights on the device on the way back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from darkroom.core.pinned import empty_pinned
from darkroom.core.transfer import HostGradients, when_gradient_is_complete

# a copy that starts at a multiple of this is as fast as any
ALIGNED = 256


def plain_tensors(holder: Any) -> Iterator[Tensor]:
    """The tensors that hold a tensor's numbers: itself, or what a quantised one is made of."""
    if type(holder) in (Tensor, nn.Parameter) or not hasattr(holder, "__tensor_flatten__"):
        yield holder
        return
    names, _ = holder.__tensor_flatten__()
    for name in names:
        yield from plain_tensors(getattr(holder, name))


def frozen(modules: Iterable[nn.Module], trained: bool = False) -> Iterator[Tensor]:
    """The plain tensors of what nobody trains in modules, each once; or all of them, if these are trained as well."""
    seen: set[int] = set()
    for holder in (t for module in modules for t in (*module.parameters(), *module.buffers())):
        if holder.requires_grad and not trained:
            continue
        for tensor in plain_tensors(holder):
            if id(tensor) not in seen and tensor.numel():
                seen.add(id(tensor))
                yield tensor


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are in its unit."""

    tensor: Tensor
    begin: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def end(self) -> int:
        return self.begin + self.shape.numel() * self.dtype.itemsize


class Unit:
    """The tensors of modules that travel together, packed into one piece of host memory, or of a file."""

    def __init__(
        self, modules: Sequence[nn.Module], pinned: bool, file: Path | None, trained: HostGradients | None = None
    ):
        self.modules = modules
        self.places: list[_Place] = []
        # of weights that are trained
        self.gradients = trained
        begin = 0
        for tensor in frozen(modules, trained is not None):
            place = _Place(tensor, begin, tensor.dtype, tensor.shape)
            self.places.append(place)
            begin = -(-place.end // ALIGNED) * ALIGNED
        self.size = begin
        if file:
            self.host = torch.from_file(str(file), shared=True, size=self.size, dtype=torch.uint8)
        else:
            self.host = empty_pinned(self.size) if pinned else torch.empty(self.size, dtype=torch.uint8)
        for place in self.places:
            _part(self.host, place).copy_(place.tensor.detach())
        self._point(self.host)
        self.versions = [place.tensor._version for place in self.places]
        self.leave()

    def enter(self, memory: Tensor) -> None:
        """Let the modules' tensors be those in `memory`, (size,) bytes on any device, as good as they ever were, unless
        somebody has changed them at home.
        """
        for number, place in enumerate(self.places):
            if place.tensor._version != self.versions[number] + 1:
                self.versions[number] = place.tensor._version
            if self.gradients is not None and place.tensor.grad is not None:  # zeros, to be added to
                self.gradients.start_from(place.tensor, place.tensor.grad)
                place.tensor.grad = None
        self._point(memory)
        torch._C._autograd._unsafe_set_version_counter(tuple(p.tensor for p in self.places), tuple(self.versions))

    def leave(self) -> None:
        """Let the modules' tensors be those on the host, which no gradient is computed from."""
        for number, place in enumerate(self.places):
            if place.tensor._version != self.versions[number]:  # somebody has written to it on the device
                self.versions[number] = place.tensor._version
                _part(self.host, place).copy_(place.tensor.detach())
        self._point(self.host)
        for place in self.places:
            torch.autograd.graph.increment_version(place.tensor)

    def take(self, weight: Tensor) -> None:
        """Send a gradient that is now complete for one pass to host memory, to be added to those of earlier passes."""
        assert self.gradients is not None
        assert weight.grad is not None
        new, weight.grad = weight.grad, None
        self.gradients.add(weight, new)

    def _point(self, memory: Tensor) -> None:
        for place in self.places:
            place.tensor.data = _part(memory, place)


def _part(memory: Tensor, place: _Place) -> Tensor:
    return memory[place.begin : place.end].view(place.dtype).view(place.shape)


class Stream:
    """Groups of modules in the order in which a forward pass uses them, and `slots` buffers for them on the device.

    Two slots are enough: one computes while the other is filled. Without gradients a pass is followed by another one
    from the beginning, so that the first unit is fetched while the last one computes.

    A unit is always fetched into the same slot: what autograd has kept of a weight, such as its transpose, points there
    and cannot be told of another place. While a unit is away, its tensors count as changed, so that a gradient that
    would be computed from another unit's weights is an error. So is one from weights that were changed since.

    With `trained` the units hold weights that are trained, too: `catch` says which, and `settle` comes between the last
    pass of a step and its update.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[nn.Module]],
        device: torch.device,
        slots: int = 2,
        pinned: bool = True,
        folder: Path | None = None,
        trained: bool = False,
    ):
        on_gpu = device.type == "cuda"
        self.device, self.trained = device, trained
        self.gradients = HostGradients()
        self.units = []
        for number, modules in enumerate(groups):
            file = folder / f"group_{number}.bin" if folder else None
            on_device = [module.to(device) for module in modules]
            self.units.append(
                Unit(on_device, pinned and on_gpu and not folder, file, self.gradients if trained else None)
            )
        sizes = [max(unit.size for unit in self.units[slot::slots]) for slot in range(min(slots, len(groups)))]
        self.slots = [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]
        # of each slot: the unit in it, and what to wait for until it is
        self.holds = [-1] * len(sizes)
        self.ready: list[Any] = [None] * len(sizes)
        self.side = torch.cuda.Stream(device) if on_gpu else None
        self.last, self.way = -1, 1
        for number, unit in enumerate(self.units):
            for module in unit.modules:
                module.register_forward_pre_hook(self._before(number))
                module.register_forward_hook(self._after(number))

    def catch(self) -> int:
        """Have gradients of what requires them now go to host memory. Returns of how many weights that is."""
        count = 0
        for unit in self.units:
            for place in unit.places:
                if place.tensor.requires_grad:
                    when_gradient_is_complete(place.tensor, unit.take)
                    count += 1
        return count

    def settle(self) -> None:
        """Have all weights at home, where they may be changed, with their gradients."""
        if self.side is not None:  # nothing may be read from the host while it changes
            if self.gradients.arrivals.underway:  # for which the host waits anyway
                torch.cuda.current_stream(self.device).wait_stream(self.side)
            else:
                self.side.synchronize()
        gradients = self.gradients.collect()
        for slot, number in enumerate(self.holds):
            if number >= 0:
                self.units[number].leave()
            self.holds[slot], self.ready[slot] = -1, None
        for weight, gradient in gradients.items():
            weight.grad = gradient
        self.last, self.way = -1, 1

    @property
    def bytes_on_device(self) -> int:
        """What the slots take."""
        return sum(slot.numel() for slot in self.slots)

    @property
    def bytes_on_host(self) -> int:
        """What waits."""
        return sum(unit.size for unit in self.units)

    def _before(self, number: int) -> Any:
        return lambda module, args: self.use(number)

    def _after(self, number: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # fires just before gradients pass into the unit from behind
            for tensor in pytree.tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda grad: self.use(number, back=True))

        return hook

    def use(self, number: int, back: bool = False) -> None:
        """Have a unit's weights on the device, and let those of the one that is likely to follow be fetched."""
        self._fetch(number)
        slot = number % len(self.slots)
        if self.ready[slot] is not None:
            torch.cuda.current_stream(self.device).wait_event(self.ready[slot])
            self.ready[slot] = None
        self.way = self._direction(number, back)
        self.last = number
        following = number + self.way
        # not so with weights that are trained: one that is on its way after the last pass could not be written to
        if not torch.is_grad_enabled() and not back and not self.trained:
            following %= len(self.units)
        if 0 <= following < len(self.units) and following % len(self.slots) != slot:
            self._fetch(following)

    def _direction(self, number: int, back: bool) -> int:
        """1 for the way forward, -1 for the way back, on which checkpointing enters units forwards again."""
        if back:
            return -1
        if not torch.is_grad_enabled() or number == 0:
            return 1
        return self.way if number == self.last else -1 if number == self.last - 1 else 1

    def _fetch(self, number: int) -> None:
        slot = number % len(self.slots)
        if self.holds[slot] == number:
            return
        if self.holds[slot] >= 0:
            self.units[self.holds[slot]].leave()
        unit, memory = self.units[number], self.slots[slot]
        self.holds[slot], self.ready[slot] = number, self._copy(unit, memory)
        unit.enter(memory)

    def _copy(self, unit: Unit, memory: Tensor) -> Any:
        if self.side is None:
            memory[: unit.size].copy_(unit.host)
            return None
        # what computed with this memory was queued before now
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            memory[: unit.size].copy_(unit.host, non_blocking=True)
            return self.side.record_event()


def leaves(
    modules: Iterable[nn.Module], only: tuple[type[nn.Module], ...] = (nn.Module,), patterns: str | None = None
) -> list[nn.Module]:
    """The layers in modules that hold weights and no further layers, quantised ones too, once each.

    `patterns` are globs behind commas, for a layer's name, its end, or that of something around it; none: all layers.
    """
    wanted = [pattern.strip() for pattern in (patterns or "*").split(",") if pattern.strip()]
    ways = [way for each in wanted for way in (each, f"*.{each}", f"{each}.*", f"*.{each}.*")]
    return [
        layer
        for module in modules
        for name, layer in module.named_modules()
        if isinstance(layer, only)
        and next(layer.parameters(), None) is not None
        and next(layer.children(), None) is None
        and any(fnmatch(name, way) for way in ways)
    ]
