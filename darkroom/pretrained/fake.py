"""The parts of a base model as shapes alone: built from their settings, without a weight being read.

What makes weights fake is given from outside, so that nothing here needs to know how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from darkroom.core.device import HOST
from darkroom.families.shared.classes import is_network, named
from darkroom.families.shared.pixels import PixelSpace
from darkroom.families.shared.spec import Part
from darkroom.pretrained.components import Keeper, Parts, taken_by

Hollow = Callable[[nn.Module, torch.device, torch.dtype | None], nn.Module]
Prepare = Callable[[str, Callable[[], nn.Module]], nn.Module]


class HollowParts(Parts):
    """Parts whose models have shapes and no numbers, and are on the host until they are placed, as a run's are.

    `hollow` makes those of a module, that is on no device yet, fake; `prepare` is given a maker of each denoiser, and
    answers the one to take.

    Raises ModelError where a part's settings cannot be read.
    """

    def __init__(self, hollow: Hollow, prepare: Prepare, *others: Any):
        super().__init__(*others)
        self._hollow, self._prepare = hollow, prepare

    def _made(self, part: str, kind: Part, dtype: torch.dtype) -> nn.Module:
        def make() -> nn.Module:
            from accelerate import init_empty_weights

            cls, settings = named(kind.cls), self.config(part)
            # whatever computes with shapes around this, buffers have numbers
            with _disable_current_modes(), init_empty_weights(include_buffers=False):
                return cls.from_config(settings) if hasattr(cls, "from_config") else cls(cls.config_class(**settings))

        model = self._prepare(part, make) if part in self.trained else make()
        return self._hollow(model, HOST, dtype).eval()

    def _pipeline(self, name: str, parts: dict[str, Any], dtype: torch.dtype) -> Any:
        wanted = [part for part in self.kinds.encoders if part not in parts and part in taken_by(name)]
        made = {part: self._made(part, self.kinds.encoders[part], dtype) for part in wanted}
        return super()._pipeline(name, parts | made, dtype)

    def _separate_encoders(self, dtype: torch.dtype) -> dict[str, Any]:
        return {}  # of the same shapes as the base's own

    def _reader(self, part: str, dtype: torch.dtype) -> Any:
        kind = {**self.kinds.encoders, **self.kinds.extras}.get(part)
        return self._made(part, kind, dtype) if kind and is_network(kind.cls) else super()._reader(part, dtype)

    def _load_vae(self, source: str | None, dtype: torch.dtype) -> Any:
        return self._made("vae", self.kinds.vae, dtype) if self.kinds.vae else PixelSpace()

    def _denoiser(self, part: str, dtype: torch.dtype, keeper: Keeper | None) -> Any:
        return self._made(part, self.kinds.denoiser, dtype)

    def bystander(self, name: str) -> Any:
        """As `Parts.bystander`."""
        if name not in self._extras:
            self._extras[name] = self._made(name, self.kinds.denoiser, self.dtype).to(self.device)
        return self._extras[name]
