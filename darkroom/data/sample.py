"""A batch: what a training step receives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Encoded samples of one bucket of one dataset. Sizes are (height, width) in pixels, crops (top, left)."""

    latents: Tensor  # (B, C, h, w), or (B, C, f, h, w) of clips
    cond: dict[str, Any]  # the stacked text condition
    captions: list[str]  # B; "" where the caption was dropped
    paths: list[str]  # B, relative to the dataset's folder
    original_sizes: Tensor  # (B, 2) long
    target_sizes: Tensor  # (B, 2) long
    crops: Tensor  # (B, 2) long
    dropped: Tensor  # (B,) bool
    dataset: str
    is_regularisation: bool = False
    slider_strength: float | None = None
    timestep_offset: float = 0.0
    is_i2v: bool | None = None  # its clips start from their own first frame; None: as the family does it
    extras: dict[str, Tensor] = field(default_factory=dict)  # (B, ...) what the family keeps beside the latents
    references: tuple[Tensor, ...] = ()  # latents (B, C, h, w) each; zeros where they were left out
    controls: tuple[Tensor, ...] = ()  # latents, or pixels (B, 3, H, W) in -1..1; zeros where they were left out
    unconditioned: Tensor | None = None  # (B,) bool: where they were; None: nowhere
    mask: Tensor | None = None  # (B, 1, h, w) or (B, 1, f, h, w), 0..1: where the loss counts
    epoch: int = 1
    position: int = 0  # of this micro-batch inside the epoch; the next one is position + 1

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The batch on another device; floating tensors also in another type."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
            if isinstance(value, (list, tuple)):
                return type(value)(move(item) for item in value)
            if isinstance(value, dict):
                return {name: move(item) for name, item in value.items()}
            return value

        return replace(
            self,
            latents=move(self.latents),
            cond=move(self.cond),
            extras=move(self.extras),
            references=move(self.references),
            controls=move(self.controls),
            mask=move(self.mask),
            dropped=move(self.dropped),
            unconditioned=move(self.unconditioned),
            original_sizes=move(self.original_sizes),
            target_sizes=move(self.target_sizes),
            crops=move(self.crops),
        )
