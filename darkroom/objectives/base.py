"""What an objective is handed and what it gives back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Generator, Tensor

from darkroom.diffusion.noise import derive_seed, make_generator

if TYPE_CHECKING:
    from darkroom.data.batches.batch import Batch


@dataclasses.dataclass
class Draws:
    """The generators of a run in one of its processes, on the host whatever the device is.

    Each step seeds them anew from the run's `seed`, the process's `rank` and its own number. So a checkpoint that knows
    its step can be resumed exactly, on any device and in any process, without the positions of generators.

    structure  noise levels, coin flips
    noise      noise tensors

    torch's global generators, on the host and on devices, are for dropout and for optimizers that round at random.
    """

    seed: int
    rank: int = 0
    structure: Generator = dataclasses.field(init=False)
    noise: Generator = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self._seed_own(0)

    def start_step(self, step: int) -> None:
        """Seed all generators, torch's global ones too, for the step after `step` finished ones."""
        self._seed_own(step)
        torch.manual_seed(derive_seed(self.seed, self.rank, 3, step))

    def start_update(self, step: int) -> None:
        """Seed torch's global generators for an optimizer that rounds at random: alike in every process, whose weights
        must stay the same."""
        torch.manual_seed(derive_seed(self.seed, 4, step))

    def _seed_own(self, step: int) -> None:
        self.structure, self.noise = (make_generator(self.seed, self.rank, purpose, step) for purpose in (1, 2))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one batch says: named scalar terms to be summed, and per sample the error and the noise level (B,)."""

    terms: dict[str, Tensor]
    errors: Tensor
    levels: Tensor


class Objective(Protocol):
    """Turns a batch into an outcome; `step` is the number of finished optimizer steps."""

    def __call__(self, model: Any, batch: Batch, step: int) -> Outcome: ...
