"""A frozen adapter that is active while a distilled model is trained, and is not part of the result.

Training breaks the distillation of models such as FLUX.1 schnell and Z-Image Turbo. An assistant adapter undoes the
distillation: it is active while the run's own adapter is trained, and removed afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from darkroom.adapters import lora_file, stock
from darkroom.adapters.lora_file import LoraPair

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclasses.dataclass
class AssistantHook:
    """Forward hook that adds a frozen LoRA to a layer's output: in training mode, or `always`.

    Its tensors are not parameters of the model, so they are not trained, saved or counted.
    """

    pair: LoraPair
    always: bool

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> Tensor:
        """A forward hook."""
        if not (layer.training or self.always):
            return answer
        x = inputs[0]
        if (self.pair.down.device, self.pair.down.dtype) != (x.device, x.dtype):
            self.pair = dataclasses.replace(self.pair, down=self.pair.down.to(x), up=self.pair.up.to(x))
        return answer + (x @ self.pair.down.T @ self.pair.up.T * self.pair.scale).to(answer)


def validate_pairs(layers: Mapping[str, nn.Module], pairs: Mapping[str, LoraPair]) -> None:
    """Raises ValueError if an adapter's pairs do not fit these layers, by name."""
    for name, pair in pairs.items():
        out, inside = (getattr(layers[name], f"{end}_features", None) for end in ("out", "in"))
        if (pair.up.shape[0], pair.down.shape[-1]) != (out, inside) or pair.down.ndim != 2:
            shape = f"{tuple(pair.up.shape)} and {tuple(pair.down.shape)}"
            raise ValueError(f"{name} is no linear layer that its matrices {shape} fit")
        if pair.magnitude is not None:
            raise ValueError(f"{name} has a magnitude of its own (DoRA), which only its trainer can apply")


def read_assistants(
    path: str, denoisers: Mapping[str, nn.Module], pipeline: type[DiffusionPipeline]
) -> dict[str, dict[str, LoraPair]]:
    """Read an adapter's pairs, by component and layer; `pipeline`, a class, may convert other names.

    Raises ValueError for an adapter of another model, and what the readers raise.
    """
    pairs = {}
    for part, file in stock.find_files(path, denoisers).items():
        layers = {name for name, _ in denoisers[part].named_modules() if name}
        pairs[part] = lora_file.find_pairs(lora_file.read(file), part, layers, pipeline)
        validate_pairs(dict(denoisers[part].named_modules()), pairs[part])
    return pairs


def attach_assistants(
    denoisers: Mapping[str, nn.Module], assistants: Mapping[str, Mapping[str, LoraPair]], always: bool
) -> None:
    """Register forward hooks that add adapters to denoisers."""
    for part, pairs in assistants.items():
        layers = dict(denoisers[part].named_modules())
        for name, pair in pairs.items():
            # below an adapter of peft, if there is one
            layer = cast(nn.Module, getattr(layers[name], "base_layer", layers[name]))
            layer.register_forward_hook(AssistantHook(pair, always))
