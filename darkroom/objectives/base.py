"""What an objective is given and what it returns."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from torch import Generator, Tensor, nn

from darkroom.core.device import seed_torch
from darkroom.diffusion.noise import derive_seed

if TYPE_CHECKING:
    from darkroom.data.batches.batch import Batch


@dataclasses.dataclass
class Generators:
    """The generators of a run in one of its processes, on the host whatever the device is.

    Each step seeds them anew from the run's `seed`, the process's `rank` and its own number. So a checkpoint that knows
    its step can be resumed exactly, on any device and in any process, without the positions of generators.

    structure  noise levels, coin flips
    noise      noise tensors
    step       finished optimizer steps

    torch's global generators, on the host and on devices, are for dropout and for optimizers that round at random.
    """

    seed: int
    rank: int = 0
    structure: Generator = dataclasses.field(init=False, default_factory=Generator)
    noise: Generator = dataclasses.field(init=False, default_factory=Generator)
    step: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        self._seed_own_generators(0)

    def start_step(self, step: int) -> None:
        """Seed all generators, torch's global ones too, for the step after `step` finished ones."""
        self.step = step
        self._seed_own_generators(step)
        seed_torch(derive_seed(self.seed, self.rank, 3, step))

    def start_update(self, step: int) -> None:
        """Seed torch's global generators for an optimizer that rounds at random: alike in every process, whose weights
        must stay the same."""
        seed_torch(derive_seed(self.seed, 4, step))

    def _seed_own_generators(self, step: int) -> None:
        for purpose, generator in enumerate((self.structure, self.noise), 1):
            generator.manual_seed(derive_seed(self.seed, self.rank, purpose, step))


@dataclasses.dataclass(frozen=True)
class LossOutput:
    """What one batch costs.

    losses         by name, scalars whose sum is the loss
    sample_losses  (B,), the error of each sample
    noise_levels   (B,), 0..1
    """

    losses: dict[str, Tensor]
    sample_losses: Tensor
    noise_levels: Tensor


class Objective(Protocol):
    """Turns a batch into losses; `step` is the number of finished optimizer steps."""

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> LossOutput: ...
