"""Denoisers with a control image: through a ControlNet (2302.05543), or as further input channels.

A ControlNet is a copy of the denoiser's first blocks whose outputs are added inside the frozen denoiser. Its last
layers start at zero, as do the weights of added channels, so the first prediction is unchanged.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from darkroom.families.shared.classes import find_class
from darkroom.families.shared.control_methods import ControlChannels, ControlInput, ControlNet
from darkroom.families.shared.model_spec import CONTROLNET

if TYPE_CHECKING:
    from darkroom.families.base import Family
    from darkroom.options.config import Config


class DenoiserWrapper(nn.Module):
    """Base class: called like the denoiser, with the control image as `control`.

    members  the trained modules, by component
    """

    denoiser: Any
    members: dict[str, nn.Module]

    @property
    def config(self) -> Any:
        """The denoiser's config."""
        return self.denoiser.config

    @property
    def device(self) -> torch.device:
        """The device of all modules."""
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's precision."""
        return self.denoiser.dtype

    def enable_gradient_checkpointing(self, *arguments: object) -> None:
        """Enable it in every module: gradients pass through the frozen denoiser to the ControlNet."""
        for part in self.children():
            part.enable_gradient_checkpointing(*arguments)  # type: ignore[operator]


class ControlNetDenoiser(DenoiserWrapper):
    """A frozen denoiser and the ControlNet that is trained."""

    def __init__(self, denoiser: nn.Module, net: nn.Module, facts: ControlNet):
        super().__init__()
        self.denoiser, self.controlnet, self.facts = denoiser.requires_grad_(False), net, facts
        self._inputs = inspect.signature(denoiser.forward)
        self._of_net = frozenset(inspect.signature(net.forward).parameters)

    @property
    def members(self) -> dict[str, nn.Module]:  # type: ignore[override]
        """The ControlNet."""
        return {CONTROLNET: self.controlnet}

    def copy_for_rendering(self) -> nn.Module:
        """A shallow copy of the ControlNet for a pipeline, which may attach modules of the denoiser to it."""
        copied = copy.copy(self.controlnet)
        for attribute in ("_modules", "_parameters"):
            setattr(copied, attribute, dict(getattr(self.controlnet, attribute)))
        return copied

    def forward(self, *args: Any, control: Tensor, **inputs: Any) -> Any:
        """The denoiser's output."""
        inputs = dict(self._inputs.bind(*args, **inputs).arguments)
        shared = {name: value for name, value in {**inputs, "return_dict": True}.items() if name in self._of_net}
        answer = self.controlnet(**shared, **{self.facts.input: control.to(self.device, self.dtype)})
        residuals = answer.to_tuple() if hasattr(answer, "to_tuple") else (answer,)
        return self.denoiser(**inputs, **dict(zip(self.facts.residual_arguments, residuals, strict=True)))


class ChannelControlDenoiser(DenoiserWrapper):
    """A denoiser whose first argument is concatenated with the control image's channels."""

    def __init__(self, component: str, denoiser: nn.Module, axis: int):
        super().__init__()
        self.component, self.axis = component, axis
        self.add_module(component, denoiser)

    @property
    def denoiser(self) -> Any:
        """The denoiser with added input channels."""
        return getattr(self, self.component)

    @property
    def members(self) -> dict[str, nn.Module]:  # type: ignore[override]
        """The denoiser itself."""
        return {self.component: self.denoiser}

    def forward(self, hidden_states: Tensor, *args: Any, control: Tensor, **inputs: Any) -> Any:
        """The denoiser's output."""
        return self.denoiser(torch.cat([hidden_states, control.to(hidden_states)], dim=self.axis), *args, **inputs)


def wrap_denoiser(family: Family, denoiser: Any, options: Config) -> Any:
    """Wrap the denoiser for control as the options ask. A new ControlNet uses torch's global generator.

    Raises what diffusers raises if a ControlNet cannot be read or built.
    """
    method = family.spec.control(options)
    if method is None or isinstance(method, ControlInput):
        return denoiser
    if isinstance(method, ControlChannels):
        method.add_input_channels(denoiser)
        return ChannelControlDenoiser(family.denoiser_component, denoiser, method.axis)
    assert isinstance(method, ControlNet)
    cls = find_class(method.cls)
    if source := options.controlnet_model_name_or_path:
        net = cls.from_pretrained(source, dtype=denoiser.dtype, use_safetensors=True)
    else:
        net = method.build(cls, denoiser, options.controlnet_custom_config or {})
    method.check(net)
    method.share_modules(denoiser, net)
    return ControlNetDenoiser(denoiser, net.to(denoiser.device, denoiser.dtype), method)
