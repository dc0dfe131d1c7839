"""Tiny random models, an adapter on a copy of them, and inputs to compare outputs with."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom import adapters, families
from darkroom.adapters.base import Adapter
from darkroom.families import tiny
from darkroom.families.base import Family
from darkroom.options.config import Config


@functools.cache
def pipeline(name: str) -> Any:
    return tiny.build(families.get(name))


@dataclasses.dataclass
class Bench:
    """A copy of a tiny denoiser with an adapter on it."""

    family: Family
    adapter: Adapter

    @property
    def model(self) -> Any:
        return self.adapter.model

    def answer(self, model: Any = None) -> Tensor:
        """The model's answer for fixed inputs."""
        return answer(self.family, model or self.model)

    def train(self, steps: int = 3) -> None:
        """Move the weights by a few real updates."""
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(self.adapter.trainable_parameters.values(), lr=0.02)
        for _ in range(steps):
            optimizer.zero_grad()
            ((answer(self.family, self.model, grad=True) - 1) ** 2).mean().backward()
            optimizer.step()

    def stock(self) -> Any:
        """The stock pipeline around an untouched copy of the base."""
        pipe, part = pipeline(self.family.name), self.family.denoiser_component
        return type(pipe)(**{**pipe.components, part: copy.deepcopy(pipe.components[part])})

    def loaded(self, folder: Path) -> Any:
        """The denoiser of a stock pipeline that has read the adapter in `folder`."""
        pipe = self.stock()
        pipe.load_lora_weights(str(folder))
        return getattr(pipe, self.family.denoiser_component)


def answer(family: Family, model: Any, grad: bool = False) -> Tensor:
    numbers = torch.Generator().manual_seed(5)
    is_flux = family.name == "flux"
    cond = {
        "text": torch.randn(2, 8, 32 if is_flux else 64, generator=numbers),
        "pooled": torch.randn(2, 32, generator=numbers),
        "guidance": torch.ones(2),
        "time_ids": torch.full((2, 6), 64.0),
    }
    x_t = torch.randn(2, family.latents.channels, 8, 8, generator=numbers)
    t = torch.tensor([0.3, 0.7]) if is_flux else torch.tensor([300, 700])
    with torch.set_grad_enabled(grad):
        return family.predict(model, x_t, t, cond)


@pytest.fixture
def attach() -> Callable[..., Bench]:
    """Put an adapter on a fresh copy of a tiny model: `attach("flux", lora_rank=4)`."""

    def put(name: str = "flux", seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
        family = families.get(name)
        model = copy.deepcopy(getattr(pipeline(name), family.denoiser_component))
        config = Config(model_family=name, **{"lora_rank": 4, **options})
        adapter = adapters.attach(model, config, family.targets, family.denoiser_component, dtype, seed)
        return Bench(family, adapter)

    return put


@pytest.fixture
def base_answer() -> Callable[[str], Tensor]:
    """What the untouched tiny model answers."""

    def of(name: str = "flux") -> Tensor:
        family = families.get(name)
        return answer(family, getattr(pipeline(name), family.denoiser_component))

    return of
