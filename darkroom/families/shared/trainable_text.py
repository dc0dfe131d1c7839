"""Text encoders that are trained with the denoiser: captions are encoded at every step and for every image.

Only CLIP encoders are trainable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from darkroom.families.shared.control import DenoiserWrapper
from darkroom.families.shared.text_encoding import encode_captions_with_grad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import DiffusionPipeline
    from torch import Tensor

    from darkroom.families.base import Family
    from darkroom.options.config import Config

# LoRA targets in a CLIP encoder, the same as in other trainers
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


class TrainableLayers(NamedTuple):
    """What is trained in a text encoder: LoRA targets and layer indices."""

    targets: tuple[str, ...]
    layers: tuple[int, ...]


class DenoiserWithText(DenoiserWrapper):
    """A denoiser and the text encoders that are trained with it. Called like the denoiser.

    `pipe` has all text components, on the device; `names` are the text encoders that are trained.
    """

    def __init__(
        self,
        component: str,
        denoiser: nn.Module,
        family: Family,
        pipe: DiffusionPipeline,
        names: Sequence[str],
        options: Config,
    ):
        super().__init__()
        self.component, self.names, self.family, self.options = component, tuple(names), family, options
        self.pipe = pipe
        self.add_module(component, denoiser)
        for name in names:
            self.add_module(name, getattr(pipe, name))

    @property
    def denoiser(self) -> Any:
        """The denoiser."""
        return getattr(self, self.component)

    @property
    def members(self) -> dict[str, nn.Module]:  # type: ignore[override]
        """The denoiser and the encoders."""
        return {name: getattr(self, name) for name in (self.component, *self.names)}

    @property
    def trainable_text(self) -> dict[str, TrainableLayers]:
        """What is trained in each text encoder, by component."""
        return {
            name: TrainableLayers(
                ATTENTION, find_trainable_layers(getattr(self, name).config.num_hidden_layers, self.options)
            )
            for name in self.names
        }

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """What the denoiser answers."""
        return self.denoiser(*args, **inputs)

    def enable_gradient_checkpointing(self, *arguments: object) -> None:
        """Switch it on in every part."""
        self.denoiser.enable_gradient_checkpointing(*arguments)
        for name in self.names:
            getattr(self, name).activation_checkpointing_enable()

    def read(self, captions: Sequence[str], learns: bool) -> dict[str, Tensor]:
        """Encode captions to a condition of (B, ...) tensors; gradients reach the encoders if `learns`.

        Otherwise gradients are None, so the optimizer skips the encoders.
        """
        with torch.set_grad_enabled(learns):
            entries = encode_captions_with_grad(self.family, self.pipe, list(captions), self.options)
        if not learns:
            for parameter in (p for name in self.names for p in getattr(self, name).parameters()):
                parameter.grad = None
        return self.family.stack_text(entries)

    def entry(self, caption: str, images: Sequence[object] = ()) -> dict[str, Tensor]:
        """Encode one caption with the current weights, without a batch axis."""
        with torch.no_grad():
            return encode_captions_with_grad(self.family, self.pipe, [caption], self.options)[0]


def find_trainable_layers(count: int, options: Config) -> tuple[int, ...]:
    """Indices of the layers of an encoder with `count` layers that `freeze_encoder_strategy` does not freeze.

    before   those from `freeze_encoder_before` on
    after    those up to `freeze_encoder_after`
    between  those from the one to the other
    """
    first = options.freeze_encoder_before if options.freeze_encoder_strategy != "after" else 0
    last = options.freeze_encoder_after if options.freeze_encoder_strategy != "before" else count - 1
    return tuple(range(first, min(last, count - 1) + 1))
