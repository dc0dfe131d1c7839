"""An optimizer in CPU RAM: its state is there, and so are the copies of the weights that it updates.

After ZeRO-Offload (2101.06840) and torchao's CPUOffloadOptimizer, which runs on GPUs alone, takes gradients away before
they are clipped, and puts its old copies over the weights that a resume has read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from darkroom.core.pinned import empty_pinned_like
from darkroom.core.transfer import HOST, HostGradients, when_gradient_is_complete
from darkroom.optim.base import Optimizer, parameters_of

Groups = Sequence[Mapping[str, object]]


class OffloadedOptimizer:
    """An optimizer on master parameters in CPU RAM, made by `build(groups)`. Call `collect` before clipping and `step`.

    With `gradients` each gradient leaves the device as soon as it is known, and several batches add up in CPU RAM.
    Gradients are copied to pinned memory without waiting; `collect` waits for all of them at once.
    """

    def __init__(self, groups: Groups, build: Callable[[Groups], Optimizer], gradients: bool = False):
        self.master_parameters: dict[Tensor, nn.Parameter] = {
            p: _copy_to_host(p) for group in groups for p in parameters_of(group)
        }
        self.versions: dict[Tensor, int] = {p: p._version for p in self.master_parameters}
        self.gradients = HostGradients()
        self.inner = build(
            [{**group, "params": [self.master_parameters[p] for p in parameters_of(group)]} for group in groups]
        )
        if gradients:
            for p in self.master_parameters:
                when_gradient_is_complete(p, self._move_grad)

    @property
    def param_groups(self) -> list[dict[str, object]]:
        """Those of the optimizer on the master parameters."""
        return self.inner.param_groups

    @torch.no_grad()
    def collect(self) -> None:
        """Bring all gradients to the master parameters, and these up to date with weights that changed elsewhere."""
        for p, master in self.master_parameters.items():
            if p._version != self.versions[p]:
                master.copy_(p)
            if p.grad is not None:
                self._move_grad(p)
        for p, gradient in self.gradients.collect().items():
            self.master_parameters[p].grad = gradient

    @torch.no_grad()
    def _move_grad(self, p: Tensor) -> None:
        assert p.grad is not None
        gradient, master = p.grad, self.master_parameters[p]
        p.grad = None
        if master.grad is not None:  # zeros, to be added to
            self.gradients.start_from(p, master.grad)
            master.grad = None
        self.gradients.add(p, gradient)

    @torch.no_grad()
    def step(self) -> None:
        """Update the master parameters, then the weights."""
        self.inner.step()
        for p, master in self.master_parameters.items():
            p.copy_(master, non_blocking=True)
            self.versions[p] = p._version

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the master parameters' gradients; the weights' own are gone since `collect`."""
        self.inner.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, object]:
        """That of the optimizer on the master parameters, which the weights themselves are not part of."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Put a `state_dict` back."""
        self.inner.load_state_dict(state)


def _copy_to_host(p: nn.Parameter) -> nn.Parameter:
    master = nn.Parameter(empty_pinned_like(p).copy_(p.detach()) if p.is_cuda else p.detach().to(HOST, copy=True))
    master.grad_dtype = p.grad_dtype
    return master
