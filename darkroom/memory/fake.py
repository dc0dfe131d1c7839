"""A memory policy for models with fake weights: where weights would be, and their bytes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from darkroom.core.device import HOST
from darkroom.core.narrow import find_narrowable_layers
from darkroom.core.transfer import when_gradient_is_complete
from darkroom.memory import attention, quantize, quantized_cache
from darkroom.memory.ledger import ON_DISK, ON_HOST, Ledger
from darkroom.memory.policy import MemoryPolicy
from darkroom.memory.quantize.fp8 import Float8Linear
from darkroom.memory.stream import ALIGNED, iterate_tensors

if TYPE_CHECKING:
    from torch.nn import Module

    from darkroom.memory.stream import WeightStreamer
    from darkroom.options.config import Config

# the attention kernel that keeps its scores
WITH_SCORES = "native-math"
# bits for each number's share of scales and offsets, of which there is about one for 64 numbers
SCALES = 0.25


class FakeMemoryPolicy(MemoryPolicy):
    """`MemoryPolicy` for fake tensors: quantized layers get storages of their size, and the ledger counts offloaded
    weights in CPU RAM."""

    def __init__(
        self,
        options: Config,
        device: torch.device,
        blocks: Sequence[str],
        ledger: Ledger,
        streams_denoiser: bool = True,
    ):
        super().__init__(options, device, blocks)
        self.ledger, self.streams_denoiser = ledger, streams_denoiser
        self.slots: list[Tensor] = []
        # weights that wait elsewhere, by their address
        self.offloaded: set[int] = set()
        # bytes when all is loaded, and nothing is narrow or waits yet; bytes of what became narrow
        self.loaded = self.quantized_bytes = 0

    def _realign(self, model: nn.Module) -> None:
        """Record the bytes when everything is loaded; fake tensors need no realignment."""
        self.loaded = max(self.loaded, self.ledger.current[ON_HOST])

    def _fuse(self, model: Module) -> Module:
        return self.ledger.make_fake(super()._fuse(model), HOST)  # fusing makes new layers

    def _quantize(self, name: str, model: nn.Module, preset: str, blocks: Sequence[str] = ()) -> None:
        if preset == quantize.NONE:
            return
        supports_layer = getattr(quantize.find_quantizers()[preset], "supports_layer", lambda layer: True)
        at = self.device if self.options.quantize_via == "accelerator" else HOST
        for parent, child, layer in [row for row in quantize.iterate_layers(model, blocks) if supports_layer(row[2])]:
            setattr(parent, child, self._make_quantized(layer, bits_of(preset), at))

    def _make_quantized(self, layer: nn.Linear, bits: float, at: torch.device) -> nn.Module:
        rows, columns = layer.weight.shape
        flat = torch.empty(rows, math.ceil(columns * bits / 8), dtype=torch.float8_e4m3fn, device="meta")
        storage = self.ledger.empty(flat, at)
        self.quantized_bytes += storage.untyped_storage().nbytes()
        # as wide as the layer over a storage as narrow as its bits
        small = storage.as_strided((rows, columns), (storage.shape[1], 0))
        return self.ledger.make_fake(Float8Linear(layer, small, None), HOST)

    def while_loading(self, file: int) -> int:
        """Peak bytes while denoisers are loaded from memory-mapped files of `file` bytes.

        Cached quantized weights are made from the mapped file; everything else is copied out of it first.
        """
        keeps = self.options.keep_quantised_weights and quantized_cache.is_serializable(
            self.options.base_model_precision
        )
        return file + (self.quantized_bytes if keeps else self.loaded)

    def _group_modules(self, model: nn.Module) -> list[list[nn.Module]]:
        return super()._group_modules(model) if self.streams_denoiser else []

    def _make_streamer(self, model: nn.Module, groups: list[list[nn.Module]], trained: bool = False) -> WeightStreamer:
        o = self.options
        slots = self._count_slots
        with self.ledger.count_as(ON_DISK if o.enable_group_offload and o.group_offload_to_disk_path else ON_HOST):
            for module in (module for group in groups for module in group):
                module.to(self.device)
        model.to(self.device)
        tensors = [list(iterate_tensors(group, trained=True)) for group in groups]
        sizes = [
            sum(-t.untyped_storage().nbytes() // ALIGNED * -ALIGNED for t in group_tensors) for group_tensors in tensors
        ]
        self.offloaded |= {id(t) for group_tensors in tensors for t in group_tensors}
        for slot in range(min(slots, len(groups))):
            room = torch.empty(max(sizes[slot::slots]), dtype=torch.uint8, device="meta")
            self.slots.append(self.ledger.empty(room, self.device))
        return cast("WeightStreamer", None)  # nothing moves, so nobody asks it

    def remarks(self) -> list[str]:
        """Nothing: no model was changed."""
        return []

    def describe(self) -> list[str]:
        """Nothing."""
        return []

    def attach_trained(self, model: nn.Module, denoisers: Mapping[str, nn.Module]) -> None:
        """Make trained weights fake too; gradients of offloaded weights are counted as offloaded.

        Only the attention kernel that stores all scores changes memory, so other kernels and compilers are ignored.
        """
        self.ledger.make_fake(model, self.device)
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) in self.offloaded:
                when_gradient_is_complete(parameter, self._offload_grad)
        for denoiser in denoisers.values() if self.options.attention_mechanism == WITH_SCORES else ():
            attention.set_kernel(denoiser, WITH_SCORES)

    def _offload_grad(self, weight: Tensor) -> None:
        assert weight.grad is not None
        self.ledger.move(weight.grad, ON_HOST)


@dataclasses.dataclass(frozen=True)
class BlockWeights:
    """The weights of a block: bytes, how many numbers can be quantized, and the bytes of those."""

    total: int
    numbers: int
    quantized: int

    def size(self, preset: str) -> float:
        """Bytes with those numbers quantized to a preset."""
        return (
            self.total if preset == quantize.NONE else self.total - self.quantized + self.numbers * bits_of(preset) / 8
        )


def weights_of(blocks: Sequence[nn.Module]) -> list[BlockWeights]:
    """The weights of each block of a denoiser, quantized or not."""
    weights = []
    for block in blocks:
        layers = [layer for _, layer in find_narrowable_layers(block)]
        layers += [layer for layer in block.modules() if isinstance(layer, Float8Linear)]
        quantized = sum(layer.weight.untyped_storage().nbytes() for layer in layers)
        total = sum(tensor.untyped_storage().nbytes() for tensor in iterate_tensors([block], trained=True))
        weights.append(BlockWeights(total, sum(layer.weight.numel() for layer in layers), quantized))
    return weights


def bits_of(preset: str) -> float:
    """Bits per number, including scales.

    >>> bits_of("nf4-bnb"), bits_of("fp8-cast"), bits_of("uint16-sdnq")
    (4.25, 8.25, 16.25)
    """
    match = re.match(r"\D*(\d+)", preset)
    assert match, preset
    return int(match[1]) + SCALES
