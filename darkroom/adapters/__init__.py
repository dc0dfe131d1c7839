"""What is trained: an adapter on a frozen model, or the model's own weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from darkroom.core.registry import Table

if TYPE_CHECKING:
    import torch
    from torch import nn

    from darkroom.adapters.base import Adapter
    from darkroom.options.config import Config

ADAPTERS: Table[str] = Table("adapter", entry_points="darkroom.adapters")
ADAPTERS.add("lora", "darkroom.adapters.lora:LoRA")
ADAPTERS.add("full", "darkroom.adapters.full:FullWeights")


class AdapterClass(Protocol):
    """What a row of the table names."""

    def __call__(
        self,
        model: nn.Module,
        options: Config,
        presets: Mapping[str, Sequence[str]],
        component: str,
        dtype: torch.dtype,
        seed: int,
        /,
    ) -> Adapter: ...


def attach(
    model: nn.Module,
    options: Config,
    presets: Mapping[str, Sequence[str]],
    component: str,
    dtype: torch.dtype,
    seed: int,
) -> Adapter:
    """Make `model` trainable as the options ask. `presets`: the family's target lists; `component`: its name in files.

    Raises ConfigError when targets match nothing or options do not fit the kind.
    """
    from darkroom.core.registry import import_path

    adapter_type = "full" if options.model_type == "full" else "lora"
    make = cast(AdapterClass, import_path(ADAPTERS[adapter_type]))
    return make(model, options, presets, component, dtype, seed)
