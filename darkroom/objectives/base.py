"""What an objective is handed and what it gives back."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Generator, Tensor

from darkroom.diffusion.noise import derive_seed

if TYPE_CHECKING:
    from darkroom.data.batches.batch import Batch


@dataclasses.dataclass
class Draws:
    """The generators of a run, on the host whatever the device is. A checkpoint holds their positions.

    structure  noise levels, coin flips
    noise      noise tensors
    seed       for torch's global generators, on the host and on devices: dropout, optimizers that round at random.
               Each step seeds them anew, so that nothing of a device has to be kept
    """

    structure: Generator
    noise: Generator
    seed: int = 0

    def start_step(self, step: int) -> None:
        """Seed torch's global generators for a step."""
        torch.manual_seed(derive_seed(self.seed, step))

    def state(self) -> dict[str, Tensor]:
        """Positions as byte tensors."""
        return {"structure": self.structure.get_state(), "noise": self.noise.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put positions back."""
        self.structure.set_state(state["structure"])
        set_position(self.noise, state["noise"])


def set_position(generator: Generator, position: Tensor) -> None:
    """Put a generator's position back; that of another kind of generator, a GPU's, seeds it instead."""
    if len(position) == len(generator.get_state()):
        generator.set_state(position)
    else:
        generator.manual_seed(zlib.crc32(position.numpy().tobytes()))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one batch says: named scalar terms to be summed, and per sample the error and the noise level (B,)."""

    terms: dict[str, Tensor]
    errors: Tensor
    levels: Tensor


class Objective(Protocol):
    """Turns a batch into an outcome; `step` is the number of finished optimizer steps."""

    def __call__(self, model: Any, batch: Batch, step: int) -> Outcome: ...
