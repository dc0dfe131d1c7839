"""What several steps of the recipe share: device, gradient averaging, weight averaging, schedule, sheets."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn


def device_and_rank() -> tuple[str, int, int]:
    """The device, this process's rank and the number of processes (more than one under torchrun)."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        return "cuda", rank, world
    # One thread per process: on busy cores two threads in one process were slower than one.
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo")
    return "cpu", rank, world


def average_gradients(model: nn.Module, world: int) -> None:
    """Replace every gradient by its mean over all processes, in one message."""
    if world == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    parts = torch.split(flat / world, [g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def cosine(step: int, steps: int, warmup: int, flat: float, floor: float = 0.01) -> float:
    """Learning-rate factor: linear warm-up, constant for the `flat` share of all steps, cosine down to `floor`."""
    progress = max(0.0, (step / steps - flat) / (1 - flat))
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Ema:
    """A running average of a model's weights; what is saved and judged is the average."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.weights]
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now; early on the average follows faster."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 15))
        torch._foreach_lerp_(self.average, [p.data for p in self.weights], 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the model holds the average, after it its own weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self.weights, self.average, strict=True):
            kept = weight.data.clone()
            weight.data.copy_(average)
            average.copy_(kept)


def save_sheet(pictures: Sequence[np.ndarray], path: Path, columns: int = 8, zoom: int = 2) -> None:
    """Write uint8 (64, 64, 3) pictures as one PNG, row by row, enlarged without smoothing."""
    blank = np.zeros_like(pictures[0])
    padded = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [np.concatenate(padded[i : i + columns], axis=1) for i in range(0, len(padded), columns)]
    sheet = np.concatenate(rows).repeat(zoom, 0).repeat(zoom, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
