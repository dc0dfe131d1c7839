"""A denoiser that is given a control image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.nn import Module


class ControlledDenoiser:
    """A denoiser that is given the same control image at every call; everything else is the model's."""

    def __init__(self, model: Module, control: Tensor):
        self._model, self._control = model, control

    def __call__(self, *args: object, **inputs: object) -> Any:
        return self._model(*args, control=self._control, **inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
