"""Mistakes made on purpose: with each of them a run on the pretended GPU has to fail or to learn something else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch

from darkroom.data.batches.batch import Batch
from darkroom.diffusion import noise
from tests.pretend.device import Card


def no_wait(card: Card) -> AbstractContextManager[Any]:
    """What a stream copies is used without waiting for it."""
    return card.deaf()


def tensor_on_the_host(card: Card) -> AbstractContextManager[Any]:
    """The captions' tensors of a batch stay on the host."""
    moved = Batch.to

    def to(self: Batch, *given: Any) -> Batch:
        return dataclasses.replace(moved(self, *given), cond=self.cond)

    return patch.object(Batch, "to", to)


def generator_of_the_host(card: Card) -> AbstractContextManager[Any]:
    """Noise on the device is drawn from a generator of the host."""

    def gaussian_like(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(x.shape, generator=torch.Generator(), device=x.device)

    return patch.object(noise, "gaussian_like", gaussian_like)


FAULTS: dict[str, Callable[[Card], AbstractContextManager[Any]]] = {
    "no wait": no_wait,
    "tensor on the host": tensor_on_the_host,
    "generator of the host": generator_of_the_host,
}
