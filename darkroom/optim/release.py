"""Update each weight as soon as its gradient is known, and free that: no two gradients are held at once.

After LOMO (2306.09782), `gradient_release` of warner-benjamin/optimi and `fused_backward_pass` of musubi-tuner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from darkroom.core.transfer import when_gradient_is_complete
from darkroom.optim.base import Optimizer, parameters_of


class PerParameterOptimizer:
    """`build(groups, number)` makes an optimizer, here one for each weight, which backward calls.

    `clip(parameters)` limits gradients in place and answers how large they were; `size` is the largest since it was
    last asked for, or with `together` their common length. Each backward pass is an update: several cannot add up.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, object]],
        build: Callable[[list[dict[str, object]], int], Optimizer],
        clip: Callable[[Sequence[Tensor]], Tensor],
        together: bool = False,
    ):
        self.clip, self.together, self.sizes = clip, together, list[Tensor]()
        param_groups: list[dict[str, object]] = [
            {**group, "params": [p]} for group in groups for p in parameters_of(group)
        ]
        self.optimizers = [build([group], number) for number, group in enumerate(param_groups)]
        self.by_weight: dict[Tensor, Optimizer] = {}
        for group, optimizer in zip(param_groups, self.optimizers, strict=True):
            (p,) = parameters_of(group)
            self.by_weight[p] = optimizer
            when_gradient_is_complete(p, self._update)

    def _update(self, p: Tensor) -> None:
        self.sizes.append(self.clip([p]))
        self.by_weight[p].step()
        p.grad = None

    def size(self) -> Tensor:
        """How large the gradients of this step were."""
        if not self.sizes:
            return torch.zeros(())
        sizes, self.sizes = torch.stack([size.to(self.sizes[0]) for size in self.sizes]), []
        return torch.linalg.vector_norm(sizes) if self.together else sizes.max()

    @property
    def param_groups(self) -> list[dict[str, object]]:
        """Those of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """Nothing: backward has done it."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: there are none."""

    def state_dict(self) -> dict[str, object]:
        """Those of all optimizers."""
        return {"each": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Put a `state_dict` back. Raises ValueError if it is one of other weights."""
        for optimizer, saved in zip(self.optimizers, cast("list[dict[str, object]]", state["each"]), strict=True):
            optimizer.load_state_dict(saved)
