"""Ways in which a control image reaches a denoiser: a ControlNet, further input channels, an argument of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from PIL.Image import Image as PILImage
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings


class Control:
    """Base class of the ways.

    pipeline     the diffusers pipeline, which takes the image as `argument`
    unsupported  pipeline arguments of the family that this pipeline lacks
    """

    pipeline: str
    argument: str
    unsupported: frozenset[str]

    @property
    def input_space(self) -> Literal["pixels", "latents"]:
        """What the network takes of a control image."""
        return "latents"

    def network_input(self, control: Tensor, to_pipeline: Callable[[Tensor], Tensor]) -> Tensor:
        """A batch's control images for the network, from latents, or from pixels (B, 3, H, W) in -1..1.

        `to_pipeline` is the family's.
        """
        return to_pipeline(control)

    def kwargs(self, image: PILImage, width: int, height: int, frames: int) -> Kwargs:
        """Pipeline arguments for a control image of any size; `frames` of the clip that is drawn."""
        from darkroom.families.shared.images import crop_to_shape

        return {self.argument: crop_to_shape(image, width, height)}


@dataclasses.dataclass(frozen=True)
class ControlInput(Control):
    """Control clips for a denoiser that has an argument for them."""

    pipeline: str
    argument: str
    unsupported: frozenset[str] = frozenset()

    def kwargs(self, image: PILImage, width: int, height: int, frames: int) -> Kwargs:
        """The frames of an image that has several; the last one stands for those that are missing."""
        from PIL import ImageSequence

        from darkroom.families.shared.images import crop_to_shape

        clip = [crop_to_shape(frame, width, height) for frame in ImageSequence.Iterator(image)]
        return {self.argument: [*clip, *clip[-1:] * frames][:frames]}


@dataclasses.dataclass(frozen=True)
class ControlChannels(Control):
    """Latents of a control image as further input channels of the denoiser.

    axis      the channel axis of the denoiser's first argument
    embedder  the denoiser's layer that takes them
    """

    pipeline: str
    axis: int = 1
    embedder: str = "x_embedder"
    argument: str = "control_image"
    unsupported: frozenset[str] = frozenset()

    def add_input_channels(self, denoiser: ModelMixin) -> None:
        """Double the denoiser's input channels. New weights are zero, so the output does not change."""
        from darkroom.families.shared.control_weights import double_inputs

        setattr(denoiser, self.embedder, double_inputs(getattr(denoiser, self.embedder)))
        denoiser.register_to_config(in_channels=2 * denoiser.config.in_channels, out_channels=denoiser.out_channels)


@dataclasses.dataclass(frozen=True)
class ControlNet(Control):
    """A network beside the denoiser, made of a copy of its first blocks (2302.05543).

    cls                  its class
    residual_arguments   arguments of the denoiser that take the ControlNet's outputs, in order
    control_input_space  whether it takes the control image as "pixels" or "latents"
    input                its argument for the control image
    inherited            arguments of its constructor that are the denoiser's
    """

    cls: str
    pipeline: str
    residual_arguments: tuple[str, ...]
    control_input_space: Literal["pixels", "latents"] = "latents"
    input: str = "controlnet_cond"
    argument: str = "control_image"
    unsupported: frozenset[str] = frozenset()
    inherited: tuple[str, ...] = ()
    extra_arguments: ClassVar[Settings] = {}

    @property
    def input_space(self) -> Literal["pixels", "latents"]:
        return self.control_input_space

    def network_input(self, control: Tensor, to_pipeline: Callable[[Tensor], Tensor]) -> Tensor:
        return control / 2 + 0.5 if self.control_input_space == "pixels" else to_pipeline(control)

    def kwargs(self, image: PILImage, width: int, height: int, frames: int) -> Kwargs:
        return {**super().kwargs(image, width, height, frames), **self.extra_arguments}

    def build(self, cls: type[ModelMixin], denoiser: ModelMixin, custom: Settings) -> ModelMixin:
        """A ControlNet of class `cls` that starts from the denoiser's weights; `custom` are constructor arguments."""
        from darkroom.families.shared.control_weights import build_from_transformer

        if hasattr(cls, "from_unet"):
            return cls.from_unet(denoiser, **custom)
        return build_from_transformer(cls, denoiser, {**{n: denoiser.config[n] for n in self.inherited}, **custom})

    def check(self, net: ModelMixin) -> None:
        """Raises ValueError for a ControlNet that expects other inputs than the family gives."""

    def share_modules(self, denoiser: Module, net: Module) -> None:
        """Share modules of the denoiser with a ControlNet, without registering them."""
