"""Some weights in two groups, batches for them, and their updates as a training step does them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from darkroom.optim.table import OPTIMIZERS, build
from darkroom.options.config import Config

CPU = torch.device("cpu")
INSTALLED = [name for name, row in OPTIMIZERS.items() if row.on_cpu and importlib.util.find_spec(row.package)]
PLAIN = [name for name in INSTALLED if not OPTIMIZERS[name].schedule_free]
# these round at random, in the order of the updates
ROUNDING = {"adamw_bf16", *(name for name in PLAIN if name.startswith("sdnq-") and "no_quant" not in name)}


class Two(nn.Module):
    """Two layers that are wide enough for every small state; the second one has a rate of its own."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(128, 128).to(dtype), nn.Linear(128, 128).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.tanh(self.one(x)))

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.one.parameters())}, {"params": list(self.two.parameters()), "lr": 0.02}]


def backward(net: Two, seed: int) -> None:
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(seed)).to(net.one.weight)
    net(x).square().mean().backward()


def builder(name: str, **options: Any) -> Callable[..., Any]:
    config = Config(model_family="flux", optimizer=name, **options)
    return lambda groups, number=0: build(config, groups, 0.05, seed=3)


def made(name: str, way: Callable[[Any, Any], Any] | None = None, **options: Any) -> tuple[Two, Any]:
    net = Two(torch.bfloat16 if name == "adamw_bf16" else torch.float32)
    build_it = builder(name, **options)
    return net, way(net.groups, build_it) if way else build_it(net.groups)


def same(one: Two, two: Two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
