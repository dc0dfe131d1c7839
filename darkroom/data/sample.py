"""A batch: what a training step receives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Encoded samples of one bucket of one dataset. Sizes are (height, width) in pixels, crops (top, left)."""

    latents: Tensor  # (B, C, h, w)
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
            return value

        return replace(
            self,
            latents=move(self.latents),
            cond={k: move(v) for k, v in self.cond.items()},
            dropped=move(self.dropped),
            original_sizes=move(self.original_sizes),
            target_sizes=move(self.target_sizes),
            crops=move(self.crops),
        )
