"""A frozen adapter that a distilled model trains with, and that is no part of what it learns.

Distilled models (FLUX.1 schnell, Z-Image Turbo) lose their few steps when they are trained. An adapter that undoes the
distillation takes that loss upon itself: it acts while the run's own adapter learns, and is taken away afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from darkroom.adapters import lora_file, stock
from darkroom.adapters.lora_file import LowRank


@dataclasses.dataclass
class Assistance:
    """Adds what an adapter makes of a layer's input to its output: while the model trains, or `always`.

    Its tensors are no parameters of the model, so that nothing trains, saves or counts them.
    """

    pair: LowRank
    always: bool

    def __call__(self, layer: nn.Module, given: tuple[Any, ...], answer: Tensor) -> Tensor:
        """A forward hook."""
        if not (layer.training or self.always):
            return answer
        x = given[0]
        if (self.pair.down.device, self.pair.down.dtype) != (x.device, x.dtype):
            self.pair = dataclasses.replace(self.pair, down=self.pair.down.to(x), up=self.pair.up.to(x))
        return answer + (x @ self.pair.down.T @ self.pair.up.T * self.pair.scale).to(answer)


def check(layers: Mapping[str, nn.Module], pairs: Mapping[str, LowRank]) -> None:
    """Raises ValueError where an adapter's pairs are not for these layers, by name."""
    for name, pair in pairs.items():
        out, inside = (getattr(layers[name], f"{end}_features", None) for end in ("out", "in"))
        if (pair.up.shape[0], pair.down.shape[-1]) != (out, inside) or pair.down.ndim != 2:
            shape = f"{tuple(pair.up.shape)} and {tuple(pair.down.shape)}"
            raise ValueError(f"{name} is no linear layer that its matrices {shape} fit")
        if pair.magnitude is not None:
            raise ValueError(f"{name} has a magnitude of its own (DoRA), which only its trainer can apply")


def read(path: str, denoisers: Mapping[str, nn.Module], pipeline: Any) -> dict[str, dict[str, LowRank]]:
    """What an adapter has for denoisers, by component and layer; `pipeline`, a class, may know other names.

    Raises ValueError for one of another model, and what readers raise.
    """
    found = {}
    for part, file in stock.files_of(path, denoisers).items():
        layers = {name for name, _ in denoisers[part].named_modules() if name}
        found[part] = lora_file.low_rank(lora_file.read(file), part, layers, pipeline)
        check(dict(denoisers[part].named_modules()), found[part])
    return found


def assist(denoisers: Mapping[str, nn.Module], given: Mapping[str, Mapping[str, LowRank]], always: bool) -> None:
    """Let denoisers answer as with an adapter that was read for them."""
    for part, pairs in given.items():
        layers = dict(denoisers[part].named_modules())
        for name, pair in pairs.items():
            # below an adapter of peft, if there is one
            layer: Any = getattr(layers[name], "base_layer", layers[name])
            layer.register_forward_hook(Assistance(pair, always))
