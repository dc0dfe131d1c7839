"""Taps: what modules inside the network return, recorded during one forward pass, with its gradients.

A forward hook is on a module for the length of the pass alone. So nothing is held between steps, and blocks that
gradient checkpointing computes again during the backward pass are not recorded again; the tensor of the first pass is
the one whose gradient checkpointing computes. Offloaded blocks return their output on the device. A block that is
compiled by itself keeps its hooks outside the compiled code; a network that is compiled as a whole does not, which
`regularizers.build` refuses.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from darkroom.families.base import Family

Recorded = dict[str, list[Tensor]]
"""By the name of a tap: a tensor for each call of its modules, in the order of the calls. Most networks are called once
for a batch; some for each sample, and experts for the samples that are theirs."""


@dataclasses.dataclass(frozen=True)
class Tap:
    """Modules, of which each call's output is recorded, and which tensor of an output that is."""

    modules: Sequence[nn.Module]
    read: Callable[[object], Tensor]


@contextlib.contextmanager
def record(taps: Mapping[str, Tap]) -> Iterator[Recorded]:
    """Inside, what the taps' modules return is recorded."""
    recorded: Recorded = {name: [] for name in taps}
    hooks = [
        module.register_forward_hook(_make_hook(tap.read, recorded[name]))
        for name, tap in taps.items()
        for module in tap.modules
    ]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def _make_hook(read: Callable[[object], Tensor], into: list[Tensor]) -> Callable[[nn.Module, object, object], None]:
    return lambda module, inputs, output: into.append(read(output))


def list_image_blocks(family: Family, denoiser: nn.Module) -> list[nn.Module]:
    """The blocks of a denoiser that images pass through, in their order, all lists counted on."""
    lists = family.hidden_states.lists or family.blocks
    return [block for name in lists for block in getattr(denoiser, name, ())]


def tap_block(family: Family, denoisers: Sequence[nn.Module], index: int) -> Tap:
    """The hidden states behind block `index` of each denoiser, from 0, or from -1 for the last block.

    They are (B, N, D) tokens. In blocks where text and image are one sequence, N counts both. Those of a U-Net are
    feature maps (B, C, H, W). Raises IndexError.
    """
    facts = family.hidden_states

    def read(output: object) -> Tensor:
        hidden = cast(Tensor, output[facts.output] if isinstance(output, tuple) else output)
        return hidden.transpose(0, 1) if facts.sequence_first else hidden

    return Tap([_find_called_module(list_image_blocks(family, denoiser)[index]) for denoiser in denoisers], read)


def _find_called_module(block: nn.Module) -> nn.Module:
    """The module whose output is a block's: a block that is a list of layers is never called, and its last layer is."""
    return _find_called_module(block[-1]) if isinstance(block, nn.ModuleList) else block
