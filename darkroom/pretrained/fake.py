"""The components of a base model with fake weights (as in FakeTensor), built from their configs alone.

The function that makes weights fake is an argument, so this module does not depend on `memory`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from darkroom.core.device import HOST
from darkroom.families.shared.classes import find_class, is_network
from darkroom.families.shared.pipeline_call import Stage
from darkroom.families.shared.pixels import PixelSpace
from darkroom.families.shared.spec import ComponentSpec
from darkroom.pretrained.components import Components, LoadOrQuantize, find_accepted_components

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs

MakeFake = Callable[[nn.Module, torch.device, torch.dtype | None], nn.Module]
PrepareDenoiser = Callable[[str, Callable[[], nn.Module]], nn.Module]


class FakeComponents(Components):
    """Components whose weights are fake tensors, on the CPU until they are moved, as in a real run.

    `make_fake(module, device, dtype)` replaces the weights of a module; `prepare(component, build)` returns the
    denoiser to use, which may be shorter than the one that `build` makes.

    Raises ModelError if the config of a component cannot be read.
    """

    def __init__(self, make_fake: MakeFake, prepare: PrepareDenoiser, *arguments: Any):
        super().__init__(*arguments)
        self._make_fake, self._prepare = make_fake, prepare

    def _make_component(self, component: str, spec: ComponentSpec, dtype: torch.dtype) -> nn.Module:
        def make() -> nn.Module:
            from accelerate import init_empty_weights

            cls, settings = find_class(spec.cls), self.config(component)
            # buffers hold real values, whatever dispatch mode is active around this
            with _disable_current_modes(), init_empty_weights(include_buffers=False):
                return cls.from_config(settings) if hasattr(cls, "from_config") else cls(cls.config_class(**settings))

        model = self._prepare(component, make) if component in self.trainable_components else make()
        return self._make_fake(model, HOST, dtype).eval()

    def _load_pipeline(
        self, name: str, components: dict[str, object], dtype: torch.dtype, stage: Stage
    ) -> DiffusionPipeline:
        missing = [
            component
            for component in self.specs.encoders
            if component not in components and component in find_accepted_components(name)
        ]
        encoders = {
            component: self._make_component(component, self.specs.encoders[component], dtype) for component in missing
        }
        return super()._load_pipeline(name, components | encoders, dtype, stage)

    def _load_separate_encoders(self, dtype: torch.dtype) -> Kwargs:
        return {}  # they have the same shapes as those of the base

    def _load_extra_component(self, component: str, dtype: torch.dtype) -> Any:
        spec = {**self.specs.encoders, **self.specs.extras}.get(component)
        return (
            self._make_component(component, spec, dtype)
            if spec and is_network(spec.cls)
            else super()._load_extra_component(component, dtype)
        )

    def _load_vae(self, source: str | None, dtype: torch.dtype) -> Module:
        return self._make_component("vae", self.specs.vae, dtype) if self.specs.vae else PixelSpace()

    def _denoiser(self, component: str, dtype: torch.dtype, load_or_quantize: LoadOrQuantize | None) -> Any:
        return self._make_component(component, self.specs.denoiser, dtype)

    def load_frozen_denoiser(self, name: str) -> Module:
        """As `Parts.load_frozen_denoiser`."""
        if name not in self._extras:
            self._extras[name] = self._make_component(name, self.specs.denoiser, self.dtype).to(self.device)
        return self._extras[name]
