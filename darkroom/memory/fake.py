"""Where weights would be and how many bytes they would have, for models that are shapes alone."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from darkroom.core.device import HOST
from darkroom.core.narrow import find_narrowable_layers
from darkroom.core.transfer import when_gradient_is_complete
from darkroom.memory import attention, quantize, quantized_cache
from darkroom.memory.ledger import ON_DISK, ON_HOST, Ledger
from darkroom.memory.policy import Placement
from darkroom.memory.quantize.fp8 import Float8Linear
from darkroom.memory.stream import ALIGNED, frozen

if TYPE_CHECKING:
    from darkroom.options.config import Config

# the attention kernel that keeps its scores
WITH_SCORES = "native-math"
# bits for each number's share of scales and offsets, of which there is about one for 64 numbers
SCALES = 0.25


class HollowPlacement(Placement):
    """Decides as `Placement` does, for shapes: narrow layers get storages of their size, and the ledger is told which
    weights wait in host memory."""

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
        self.waiting: set[int] = set()
        # bytes when all is loaded, and nothing is narrow or waits yet; bytes of what became narrow
        self.loaded = self.narrowed = 0

    def _straighten(self, model: nn.Module) -> None:
        """Nothing lies anywhere; this is the moment when all is loaded."""
        self.loaded = max(self.loaded, self.ledger.now[ON_HOST])

    def _fuse(self, model: Any) -> Any:
        return self.ledger.hollow(super()._fuse(model), HOST)  # fusing makes new layers

    def _quantise(self, name: str, model: nn.Module, preset: str, blocks: Sequence[str] = ()) -> None:
        if preset == quantize.NONE:
            return
        fits = getattr(quantize.quantisers()[preset], "fits", lambda layer: True)
        at = self.device if self.options.quantize_via == "accelerator" else HOST
        for parent, own, layer in [row for row in quantize.chosen(model, blocks) if fits(row[2])]:
            setattr(parent, own, self._narrow(layer, bits_of(preset), at))

    def _narrow(self, layer: nn.Linear, bits: float, at: torch.device) -> nn.Module:
        rows, columns = layer.weight.shape
        flat = torch.empty(rows, math.ceil(columns * bits / 8), dtype=torch.float8_e4m3fn, device="meta")
        held = self.ledger.empty(flat, at)
        self.narrowed += held.untyped_storage().nbytes()
        # as wide as the layer over a storage as narrow as its bits
        small = held.as_strided((rows, columns), (held.shape[1], 0))
        return self.ledger.hollow(Float8Linear(layer, small, None), HOST)

    def while_loading(self, file: int) -> int:
        """Bytes at the highest moment of loading denoisers from files of so many, which are mapped while they are read.

        What is kept narrow is made out of the mapped file; all else is copied out of it first.
        """
        keeps = self.options.keep_quantised_weights and quantized_cache.can_keep(self.options.base_model_precision)
        return file + (self.narrowed if keeps else self.loaded)

    def _units(self, model: nn.Module) -> list[list[nn.Module]]:
        return super()._units(model) if self.streams_denoiser else []

    def _stream(self, model: nn.Module, groups: list[list[nn.Module]], trained: bool = False) -> Any:
        o = self.options
        slots = self._slots
        with self.ledger.counted_as(ON_DISK if o.enable_group_offload and o.group_offload_to_disk_path else ON_HOST):
            for module in (module for group in groups for module in group):
                module.to(self.device)
        model.to(self.device)
        tensors = [list(frozen(group, trained=True)) for group in groups]
        sizes = [sum(-t.untyped_storage().nbytes() // ALIGNED * -ALIGNED for t in each) for each in tensors]
        self.waiting |= {id(t) for each in tensors for t in each}
        for slot in range(min(slots, len(groups))):
            room = torch.empty(max(sizes[slot::slots]), dtype=torch.uint8, device="meta")
            self.slots.append(self.ledger.empty(room, self.device))
        return None

    def remarks(self) -> list[str]:
        """Nothing: nothing was done."""
        return []

    def describe(self) -> list[str]:
        """Nothing."""
        return []

    def attached(self, model: nn.Module, denoisers: Mapping[str, nn.Module]) -> None:
        """What is trained becomes shapes too, and the gradients of what waits wait with it.

        Of kernels and compilers only the one that keeps every score of attention takes memory of another size.
        """
        self.ledger.hollow(model, self.device)
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) in self.waiting:
                when_gradient_is_complete(parameter, self._waits_too)
        for each in denoisers.values() if self.options.attention_mechanism == WITH_SCORES else ():
            attention.use(each, WITH_SCORES)

    def _waits_too(self, weight: Tensor) -> None:
        assert weight.grad is not None
        self.ledger.move(weight.grad, ON_HOST)


@dataclasses.dataclass(frozen=True)
class BlockWeights:
    """What is frozen in a block: bytes now, how many numbers can be put into fewer bits, and their bytes now."""

    total: int
    numbers: int
    narrow: int

    def size(self, preset: str) -> float:
        """Bytes with those numbers in a preset's bits."""
        return self.total if preset == quantize.NONE else self.total - self.narrow + self.numbers * bits_of(preset) / 8


def weights_of(blocks: Sequence[nn.Module]) -> list[BlockWeights]:
    """The weights of each of a denoiser's blocks, whether some are narrow already or not."""
    found = []
    for block in blocks:
        layers = [layer for _, layer in find_narrowable_layers(block)]
        layers += [layer for layer in block.modules() if isinstance(layer, Float8Linear)]
        narrow = sum(layer.weight.untyped_storage().nbytes() for layer in layers)
        total = sum(tensor.untyped_storage().nbytes() for tensor in frozen([block], trained=True))
        found.append(BlockWeights(total, sum(layer.weight.numel() for layer in layers), narrow))
    return found


def bits_of(preset: str) -> float:
    """Bits that a number takes, with its share of scales.

    >>> bits_of("nf4-bnb"), bits_of("fp8-cast"), bits_of("uint16-sdnq")
    (4.25, 8.25, 16.25)
    """
    found = re.match(r"\D*(\d+)", preset)
    assert found, preset
    return int(found[1]) + SCALES
