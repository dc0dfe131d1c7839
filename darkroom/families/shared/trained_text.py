"""Text encoders that are trained beside the denoiser: captions are read anew at every step and for every picture.

Only CLIP encoders are: larger ones have read more than any dataset can teach them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from darkroom.families.shared.control import Wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import DiffusionPipeline
    from torch import Tensor

    from darkroom.families.base import Family
    from darkroom.options.config import Config

# what a LoRA adapts of a CLIP encoder, as other trainers do
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


class Trained(NamedTuple):
    """What of a text encoder is trained: a LoRA's targets, and the numbers of its layers."""

    targets: tuple[str, ...]
    layers: tuple[int, ...]


class WithText(Wrapped):
    """A denoiser and the text encoders that are trained with it. It is called as the denoiser is.

    `pipe` holds everything that reads captions, on the device; `names` are those of its encoders that are trained.
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
        """What pictures are drawn by."""
        return getattr(self, self.component)

    @property
    def members(self) -> dict[str, nn.Module]:  # type: ignore[override]
        """The denoiser and the encoders."""
        return {name: getattr(self, name) for name in (self.component, *self.names)}

    @property
    def trained_text(self) -> dict[str, Trained]:
        """What is trained of each encoder."""
        return {
            name: Trained(ATTENTION, trained_layers(getattr(self, name).config.num_hidden_layers, self.options))
            for name in self.names
        }

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """What the denoiser answers."""
        return self.denoiser(*args, **inputs)

    def enable_gradient_checkpointing(self, *arguments: Any) -> None:
        """Switch it on in every part."""
        self.denoiser.enable_gradient_checkpointing(*arguments)
        for name in self.names:
            getattr(self, name).activation_checkpointing_enable()

    def read(self, captions: Sequence[str], learns: bool) -> dict[str, Tensor]:
        """The condition of captions, (B, ...) each; gradients reach the encoders if it `learns`.

        One that has stopped learning is left as it is: without gradients an optimizer passes over its weights.
        """
        with torch.set_grad_enabled(learns):
            entries = self.family.read_entries(self.pipe, list(captions), self.options)
        if not learns:
            for parameter in (p for name in self.names for p in getattr(self, name).parameters()):
                parameter.grad = None
        return self.family.stack_text(entries)

    def entry(self, caption: str, looks: Sequence[Any] = ()) -> dict[str, Tensor]:
        """The condition of one caption, without a batch axis, with the present weights."""
        with torch.no_grad():
            return self.family.read_entries(self.pipe, [caption], self.options)[0]


def trained_layers(count: int, options: Config) -> tuple[int, ...]:
    """The layers of an encoder with `count` of them that `freeze_encoder_strategy` leaves free.

    before   those from `freeze_encoder_before` on
    after    those up to `freeze_encoder_after`
    between  those from the one to the other
    """
    first = options.freeze_encoder_before if options.freeze_encoder_strategy != "after" else 0
    last = options.freeze_encoder_after if options.freeze_encoder_strategy != "before" else count - 1
    return tuple(range(first, min(last, count - 1) + 1))
