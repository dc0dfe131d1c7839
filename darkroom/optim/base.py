"""What torch's optimizers and the wrappers around them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

from torch import nn


class Optimizer(Protocol):
    """An optimizer, or several that are used as one."""

    @property
    def param_groups(self) -> list[dict[str, object]]: ...

    def step(self) -> object: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state_dict: dict[str, object], /) -> None: ...


def parameters_of(group: Mapping[str, object]) -> list[nn.Parameter]:
    """The parameters of a group."""
    return cast("list[nn.Parameter]", group["params"])
