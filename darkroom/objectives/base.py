"""What an objective is handed and what it gives back."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch
from torch import Generator, Tensor


@dataclasses.dataclass
class Draws:
    """The generators of a run. A checkpoint holds their positions; nothing else draws.

    structure  on the CPU: noise levels, coin flips
    noise      on the training device: noise tensors
    """

    structure: Generator
    noise: Generator

    def state(self) -> dict[str, Tensor]:
        """Positions as byte tensors, torch's global generators (dropout) included."""
        cuda = (
            {f"cuda_{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())} if torch.cuda.is_available() else {}
        )
        own = {"structure": self.structure.get_state(), "noise": self.noise.get_state(), "torch": torch.get_rng_state()}
        return own | cuda

    def load(self, state: dict[str, Tensor]) -> None:
        """Put positions back."""
        self.structure.set_state(state["structure"])
        self.noise.set_state(state["noise"])
        torch.set_rng_state(state["torch"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all([state[name] for name in sorted(state) if name.startswith("cuda_")])


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one batch says: named scalar terms to be summed, and per sample the error and the noise level (B,)."""

    terms: dict[str, Tensor]
    errors: Tensor
    levels: Tensor


class Objective(Protocol):
    """Turns a batch into an outcome; `step` is the number of finished optimizer steps."""

    def __call__(self, model: Any, batch: Any, step: int) -> Outcome: ...
