"""Denoisers that see a control picture: through a ControlNet beside them (2302.05543), or as further input channels.

A ControlNet is a copy of the denoiser's first blocks whose answers are added inside the frozen denoiser; its last
layers start at zero, as the weights of further channels do, so that at first neither changes anything.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from darkroom.families.base import CONTROLNET
from darkroom.families.shared.classes import named
from darkroom.families.shared.spec import ControlChannels, ControlInput

if TYPE_CHECKING:
    from darkroom.families.base import Family
    from darkroom.families.shared.spec import ControlNet
    from darkroom.options.config import Config


class Wrapped(nn.Module):
    """What both ways share: called as the denoiser is, with the control picture as `control` besides.

    members  what is trained, by component
    """

    denoiser: Any
    members: dict[str, nn.Module]

    @property
    def config(self) -> Any:
        """The denoiser's."""
        return self.denoiser.config

    @property
    def device(self) -> torch.device:
        """Where all parts are."""
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's precision."""
        return self.denoiser.dtype

    def enable_gradient_checkpointing(self, *arguments: Any) -> None:
        """Switch it on in every part: gradients pass through a frozen denoiser on their way to the ControlNet."""
        for part in self.children():
            part.enable_gradient_checkpointing(*arguments)  # type: ignore[operator]


class WithControlNet(Wrapped):
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

    def to_draw_with(self) -> nn.Module:
        """The ControlNet's own weights for a stock pipeline, which may hang parts of the denoiser into what it gets."""
        twin = copy.copy(self.controlnet)
        for held in ("_modules", "_parameters"):
            setattr(twin, held, dict(getattr(self.controlnet, held)))
        return twin

    def forward(self, *args: Any, control: Tensor, **inputs: Any) -> Any:
        """What the denoiser answers."""
        inputs = dict(self._inputs.bind(*args, **inputs).arguments)
        shared = {name: value for name, value in {**inputs, "return_dict": True}.items() if name in self._of_net}
        answer = self.controlnet(**shared, **{self.facts.input: control.to(self.device, self.dtype)})
        each = answer.to_tuple() if hasattr(answer, "to_tuple") else (answer,)
        return self.denoiser(**inputs, **dict(zip(self.facts.answers, each, strict=True)))


class WithChannels(Wrapped):
    """A denoiser whose first argument has the control picture's channels behind its own."""

    def __init__(self, component: str, denoiser: nn.Module, axis: int):
        super().__init__()
        self.component, self.axis = component, axis
        self.add_module(component, denoiser)

    @property
    def denoiser(self) -> Any:
        """The widened denoiser."""
        return getattr(self, self.component)

    @property
    def members(self) -> dict[str, nn.Module]:  # type: ignore[override]
        """The denoiser itself."""
        return {self.component: self.denoiser}

    def forward(self, hidden_states: Tensor, *args: Any, control: Tensor, **inputs: Any) -> Any:
        """What the denoiser answers."""
        return self.denoiser(torch.cat([hidden_states, control.to(hidden_states)], dim=self.axis), *args, **inputs)


def wrap(family: Family, denoiser: Any, options: Config) -> Any:
    """The denoiser as the options train it. A new ControlNet draws from torch's generator.

    Raises what diffusers raises when a ControlNet cannot be read or made.
    """
    way = family.control(options)
    if way is None or isinstance(way, ControlInput):
        return denoiser
    if isinstance(way, ControlChannels):
        family.widen(denoiser)
        return WithChannels(family.denoiser_part, denoiser, way.axis)
    cls = named(way.cls)
    if source := options.controlnet_model_name_or_path:
        net = cls.from_pretrained(source, dtype=denoiser.dtype, use_safetensors=True)
    else:
        net = family.new_controlnet(cls, denoiser, options.controlnet_custom_config or {})
    family.check_controlnet(net)
    family.lend(denoiser, net)
    return WithControlNet(denoiser, net.to(denoiser.device, denoiser.dtype), way)


def of_transformer(cls: Any, transformer: Any, custom: Mapping[str, Any]) -> Any:
    """A ControlNet with a transformer's first blocks: as many as is usual, and no more than there are."""
    known = inspect.signature(cls.from_transformer).parameters
    depths = {
        name: min(transformer.config[name], known[name].default)
        for name in ("num_layers", "num_single_layers")
        if name in known
    }
    # the library writes what it changes for the ControlNet into the transformer's own config
    like = copy.copy(transformer)
    like._internal_dict = type(transformer.config)(transformer.config)
    return cls.from_transformer(like, **{**depths, **custom})


def widened(layer: nn.Linear) -> nn.Linear:
    """A linear layer with twice the inputs, the new ones weighted by zero."""
    wide = nn.Linear(2 * layer.in_features, layer.out_features, layer.bias is not None)
    wide.to(layer.weight.device, layer.weight.dtype)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : layer.in_features] = layer.weight
        if layer.bias is not None:
            wide.bias.copy_(layer.bias)
    return wide
