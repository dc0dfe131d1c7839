"""A batch: what a training step receives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from darkroom.core.transfer import map_tensors, pin

Cond = dict[str, Tensor]
"""The condition of several captions, (B, ...) each."""

# the parts of a batch that hold tensors
OF_TENSORS = (
    "latents", "cond", "extras", "references", "controls", "mask", "dropped", "unconditioned", "original_sizes",
    "target_sizes", "crops",
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Encoded samples of one bucket of one dataset. Sizes are (height, width) in pixels, crops (top, left)."""

    latents: Tensor  # (B, C, h, w), or (B, C, f, h, w) of clips
    cond: Cond  # the stacked text condition
    captions: list[str]  # B; "" where the caption was dropped
    paths: list[str]  # B, relative to the dataset's folder
    original_sizes: Tensor  # (B, 2) long
    target_sizes: Tensor  # (B, 2) long
    crops: Tensor  # (B, 2) long
    dropped: Tensor  # (B,) bool
    dataset: str
    is_regularization: bool = False
    slider_strength: float | None = None
    timestep_offset: float = 0.0
    is_i2v: bool | None = None  # its clips start from their own first frame; None: as the family does it
    extras: dict[str, Tensor] = field(default_factory=dict)  # (B, ...) what the family keeps beside the latents
    references: tuple[Tensor, ...] = ()  # latents (B, C, h, w) each; zeros where they were left out
    controls: tuple[Tensor, ...] = ()  # latents, or pixels (B, 3, H, W) in -1..1; zeros where they were left out
    unconditioned: Tensor | None = None  # (B,) bool: where they were; None: nowhere
    mask: Tensor | None = None  # (B, 1, h, w) or (B, 1, f, h, w), 0..1: where the loss counts
    cond_on_host: Cond = field(default_factory=dict)  # of a batch that was sent to a device
    epoch: int = 1
    position: int = 0  # of this micro-batch inside the epoch; the next one is position + 1

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The batch on another device, where its tensors go together; floating tensors also in another type."""
        on_host = self.cond_on_host or self.cond
        if dtype is None and self.latents.device == torch.device(device):
            return replace(self, cond_on_host=on_host)

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)

        return replace(self._with(move), cond_on_host=on_host)

    def pin_memory(self) -> Batch:
        """The batch in pinned memory, from where copies to a device need not be waited for."""
        return self._with(pin)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, **{name: map_tensors(change, getattr(self, name)) for name in OF_TENSORS})
