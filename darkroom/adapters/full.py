"""Train the model's own weights, all of them or only the biases (BitFit 2106.10199)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from darkroom.adapters.base import Adapter
from darkroom.core.errors import ConfigError
from darkroom.core.files import explain_disk_full, follow_umask
from darkroom.core.precision import cast_weights

if TYPE_CHECKING:
    from darkroom.options.config import Config

_LAYER = re.compile(r"\blayers\.(\d+)\.")


class FullWeights(Adapter):
    """Every weight of the denoiser, or those that `layer_freeze_strategy` leaves free."""

    adapter_type = "full"

    @property
    def result(self) -> str:  # type: ignore[override]
        """A ControlNet is a folder of its own; a denoiser is saved with the pipeline around it."""
        return "controlnet" if "controlnet" in self.members else "pipeline"

    def __init__(
        self,
        model: nn.Module,
        options: Config,
        presets: Mapping[str, Sequence[str]],
        component: str,
        dtype: torch.dtype,
        seed: int,
    ):
        super().__init__(model, component)
        model.requires_grad_(False)
        only_biases = options.layer_freeze_strategy == "bitfit"
        for component, member in self.members.items():
            cast_weights(member, dtype)
            for name, parameter in member.named_parameters():
                is_trained = (not only_biases or "bias" in name) and self._is_free(component, name)
                parameter.requires_grad_(parameter.is_floating_point() and is_trained)
        if not self.trainable_parameters:
            raise ConfigError(
                "layer_freeze_strategy",
                "bitfit",
                "",
                "This model has no biases to train.",
                "Set layer_freeze_strategy to none.",
            )

    def _is_free(self, component: str, name: str) -> bool:
        """Does no strategy keep the layer of a text encoder as it is?"""
        layer = _LAYER.search(name) if component in self.trainable_text else None
        return layer is None or int(layer[1]) in self.trainable_text[component].layers

    def export(self, folder: Path, metadata: dict[str, str]) -> None:
        """Write each denoiser as diffusers does: `<component>/config.json` and its weights."""
        for component, member in self.members.items():
            with explain_disk_full(folder, f"the {component}"):
                member.save_pretrained(folder / component)  # type: ignore[operator]
                follow_umask(folder / component)

    def restore(self, folder: Path) -> None:
        """Read the weights that `export` wrote, whole or in shards."""
        tensors: dict[str, Tensor] = {}
        for component in self.members:
            for file in sorted((folder / component).glob("*.safetensors")):
                tensors |= {self.name_prefix(component) + name: tensor for name, tensor in load_file(file).items()}
        extra = {name: p for name, p in self.trainable_parameters.items() if name not in self.adapter_parameters}
        self.load(extra | {name: tensors[name] for name in self.adapter_parameters if name in tensors})
