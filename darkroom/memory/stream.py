"""Weights that are offloaded to CPU RAM and streamed to the device when they are used.

Blocks of a denoiser or single layers ("units") take turns in a few buffers on the device; while one computes, the next
one is copied on a side stream, on the way forward and on the way back. A unit leaves by being pointed at its host copy
again; nothing is copied back unless somebody wrote to it on the device. Gradients of weights that are trained go to
CPU RAM one by one, and the optimizer works there, between passes, on weights that are all at home. After the block
swap of kohya-ss/musubi-tuner and SimpleTuner, lodestone-rock/RamTorch, and group offloading in diffusers, whose hooks
leave weights on the device on the way back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from darkroom.core.pinned import empty_pinned
from darkroom.core.transfer import HostGradients, when_gradient_is_complete

# a copy that starts at a multiple of this is as fast as any
ALIGNED = 256


def iterate_plain_tensors(holder: Tensor) -> Iterator[Tensor]:
    """The plain tensors of a tensor: itself, or the components of a quantized tensor."""
    if type(holder) in (Tensor, nn.Parameter) or not hasattr(holder, "__tensor_flatten__"):
        yield holder
        return
    names, _ = holder.__tensor_flatten__()
    for name in names:
        yield from iterate_plain_tensors(getattr(holder, name))


def iterate_tensors(modules: Iterable[nn.Module], trained: bool = False) -> Iterator[Tensor]:
    """The plain tensors of frozen weights in modules, each once; with `trained` those of all weights."""
    yielded: set[int] = set()
    for holder in (t for module in modules for t in (*module.parameters(), *module.buffers())):
        if holder.requires_grad and not trained:
            continue
        for tensor in iterate_plain_tensors(holder):
            if id(tensor) not in yielded and tensor.numel():
                yielded.add(id(tensor))
                yield tensor


@dataclasses.dataclass(frozen=True)
class _Span:
    """The byte range of a tensor in its unit."""

    tensor: Tensor
    begin: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def end(self) -> int:
        return self.begin + self.shape.numel() * self.dtype.itemsize


class Unit:
    """The tensors of modules that are streamed together, packed into one CPU buffer or a memory-mapped file."""

    def __init__(
        self, modules: Sequence[nn.Module], pinned: bool, file: Path | None, trained: HostGradients | None = None
    ):
        self.modules = modules
        self.spans: list[_Span] = []
        # of weights that are trained
        self.gradients = trained
        begin = 0
        for tensor in iterate_tensors(modules, trained is not None):
            span = _Span(tensor, begin, tensor.dtype, tensor.shape)
            self.spans.append(span)
            begin = -(-span.end // ALIGNED) * ALIGNED
        self.size = begin
        if file:
            self.host = torch.from_file(str(file), shared=True, size=self.size, dtype=torch.uint8)
        else:
            self.host = empty_pinned(self.size) if pinned else torch.empty(self.size, dtype=torch.uint8)
        for span in self.spans:
            _view_span(self.host, span).copy_(span.tensor.detach())
        self._point(self.host)
        self.versions = [span.tensor._version for span in self.spans]
        self.to_host()

    def to_device(self, memory: Tensor) -> None:
        """Point the tensors of the modules to `memory`, (size,) bytes on any device. Autograd versions stay valid
        unless the weights were changed on the CPU.
        """
        for number, span in enumerate(self.spans):
            if span.tensor._version != self.versions[number] + 1:
                self.versions[number] = span.tensor._version
            if self.gradients is not None and span.tensor.grad is not None:  # zeros, to be added to
                self.gradients.start_from(span.tensor, span.tensor.grad)
                span.tensor.grad = None
        self._point(memory)
        torch._C._autograd._unsafe_set_version_counter(tuple(p.tensor for p in self.spans), tuple(self.versions))

    def to_host(self) -> None:
        """Point the modules' tensors to the CPU buffer and mark them as changed, so autograd cannot use them."""
        for number, span in enumerate(self.spans):
            if span.tensor._version != self.versions[number]:  # somebody has written to it on the device
                self.versions[number] = span.tensor._version
                _view_span(self.host, span).copy_(span.tensor.detach())
        self._point(self.host)
        for span in self.spans:
            torch.autograd.graph.increment_version(span.tensor)

    def accumulate_grad(self, weight: Tensor) -> None:
        """Move a complete gradient of one pass to CPU RAM and add it to those of earlier passes."""
        assert self.gradients is not None
        assert weight.grad is not None
        new, weight.grad = weight.grad, None
        self.gradients.add(weight, new)

    def _point(self, memory: Tensor) -> None:
        for span in self.spans:
            span.tensor.data = _view_span(memory, span)


def _view_span(memory: Tensor, span: _Span) -> Tensor:
    return memory[span.begin : span.end].view(span.dtype).view(span.shape)


class WeightStreamer:
    """Streams groups of modules, in the order of a forward pass, through `slots` buffers on the device.

    Two slots are enough: one computes while the other is filled. Without gradients a pass is followed by another one
    from the beginning, so that the first unit is fetched while the last one computes.

    A unit is always fetched into the same slot: what autograd has kept of a weight, such as its transpose, points there
    and cannot be told of another place. While a unit is away, its tensors count as changed, so that a gradient that
    would be computed from another unit's weights is an error. So is one from weights that were changed since.

    With `trained` the units also hold trained weights: call `hook_gradients` once they require gradients, and
    `collect_offloaded_grads` between the last pass of a step and its update.
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
        self.ready: list[torch.cuda.Event | None] = [None] * len(sizes)
        self.side = torch.cuda.Stream(device) if on_gpu else None
        self.last, self.direction = -1, 1
        for number, unit in enumerate(self.units):
            for module in unit.modules:
                module.register_forward_pre_hook(self._before(number))
                module.register_forward_hook(self._after(number))

    def hook_gradients(self) -> int:
        """Offload gradients of the weights that require them now. Returns the number of weights."""
        count = 0
        for unit in self.units:
            for span in unit.spans:
                if span.tensor.requires_grad:
                    when_gradient_is_complete(span.tensor, unit.accumulate_grad)
                    count += 1
        return count

    def collect_offloaded_grads(self) -> None:
        """Move all weights and gradients to CPU RAM, where the optimizer may change them."""
        if self.side is not None:  # nothing may be read from the host while it changes
            if self.gradients.arrivals.underway:  # for which the host waits anyway
                torch.cuda.current_stream(self.device).wait_stream(self.side)
            else:
                self.side.synchronize()
        gradients = self.gradients.collect()
        for slot, number in enumerate(self.holds):
            if number >= 0:
                self.units[number].to_host()
            self.holds[slot], self.ready[slot] = -1, None
        for weight, gradient in gradients.items():
            weight.grad = gradient
        self.last, self.direction = -1, 1

    @property
    def bytes_on_device(self) -> int:
        """Bytes of the slots on the device."""
        return sum(slot.numel() for slot in self.slots)

    @property
    def bytes_on_host(self) -> int:
        """Bytes of offloaded weights."""
        return sum(unit.size for unit in self.units)

    def _before(self, number: int) -> Callable[..., None]:
        return lambda module, args: self.use(number)

    def _after(self, number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            # fires just before gradients pass into the unit from behind
            for tensor in pytree.tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda grad: self.use(number, back=True))

        return hook

    def use(self, number: int, back: bool = False) -> None:
        """Bring a unit to the device, and prefetch the unit that is likely to follow."""
        self._fetch(number)
        slot = number % len(self.slots)
        if (ready := self.ready[slot]) is not None:
            torch.cuda.current_stream(self.device).wait_event(ready)
            self.ready[slot] = None
        self.direction = self._direction(number, back)
        self.last = number
        following = number + self.direction
        # not so with weights that are trained: one that is on its way after the last pass could not be written to
        if not torch.is_grad_enabled() and not back and not self.trained:
            following %= len(self.units)
        if 0 <= following < len(self.units) and following % len(self.slots) != slot:
            self._fetch(following)

    def _direction(self, number: int, back: bool) -> int:
        """1 for forward, -1 for backward, during which checkpointing runs units forward again."""
        if back:
            return -1
        if not torch.is_grad_enabled() or number == 0:
            return 1
        return self.direction if number == self.last else -1 if number == self.last - 1 else 1

    def _fetch(self, number: int) -> None:
        slot = number % len(self.slots)
        if self.holds[slot] == number:
            return
        if self.holds[slot] >= 0:
            self.units[self.holds[slot]].to_host()
        unit, memory = self.units[number], self.slots[slot]
        self.holds[slot], self.ready[slot] = number, self._copy(unit, memory)
        unit.to_device(memory)

    def _copy(self, unit: Unit, memory: Tensor) -> torch.cuda.Event | None:
        if self.side is None:
            memory[: unit.size].copy_(unit.host)
            return None
        # what computed with this memory was queued before now
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            memory[: unit.size].copy_(unit.host, non_blocking=True)
            return self.side.record_event()


def find_leaf_layers(
    modules: Iterable[nn.Module], only: tuple[type[nn.Module], ...] = (nn.Module,), patterns: str | None = None
) -> list[nn.Module]:
    """The leaf layers of modules that have weights, quantized ones too.

    `patterns` are comma-separated globs for a layer's name, its ending or a module around it; None: all layers.
    """
    names = [pattern.strip() for pattern in (patterns or "*").split(",") if pattern.strip()]
    globs = [
        glob
        for name_pattern in names
        for glob in (name_pattern, f"*.{name_pattern}", f"{name_pattern}.*", f"*.{name_pattern}.*")
    ]
    return [
        layer
        for module in modules
        for name, layer in module.named_modules()
        if isinstance(layer, only)
        and next(layer.parameters(), None) is not None
        and next(layer.children(), None) is None
        and any(fnmatch(name, glob) for glob in globs)
    ]
