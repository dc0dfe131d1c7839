"""Denoisers that share a noise schedule, one for high noise and one for low (Wan 2.2, eDiff-I 2211.01324)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from darkroom.core.transfer import to_device

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Experts(nn.Module):
    """Called like one denoiser. Each sample of a batch goes to the member for its timestep.

    members   component name to denoiser: the first for timesteps of `boundary` and above, the second below
    boundary  in the network's own timesteps
    """

    def __init__(self, members: Mapping[str, nn.Module], boundary: float):
        super().__init__()
        self.boundary = boundary
        for name, member in members.items():
            self.add_module(name, member)

    @property
    def members(self) -> dict[str, nn.Module]:
        """The denoisers by component name."""
        return dict(self.named_children())

    @property
    def config(self) -> Any:
        """The config of the first member."""
        return next(self.children()).config

    @property
    def device(self) -> torch.device:
        """The device of the members."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The members' precision."""
        return next(self.children()).dtype  # type: ignore[return-value]

    def enable_gradient_checkpointing(self, *arguments: object) -> None:
        """Enable it in each member."""
        for member in self.children():
            member.enable_gradient_checkpointing(*arguments)  # type: ignore[operator]

    def forward(self, *, timestep: Tensor, levels: Tensor | None = None, **inputs: object) -> tuple[Tensor]:
        """timestep (B,) or (B, N); tensors among the inputs are (B, ...). Returns ((B, ...),).

        levels (B,): the samples' timesteps on the CPU, if known; reading them from the device would wait for it.
        """
        if levels is None:
            levels = timestep if timestep.ndim == 1 else timestep.amax(dim=1)
        is_high = (levels >= self.boundary).tolist()
        rows = [[row for row, high in enumerate(is_high) if high is expert_is_high] for expert_is_high in (True, False)]
        members = list(self.children())
        if not all(rows):
            return (members[0 if rows[0] else 1](timestep=timestep, **inputs)[0],)
        answers = []
        for member, indices in zip(members, rows, strict=True):
            at = to_device(torch.tensor(indices), timestep.device)
            selected = {name: value[at] if isinstance(value, Tensor) else value for name, value in inputs.items()}
            answers.append(member(timestep=timestep[at], **selected)[0])
        # concatenated outputs back to the order of the batch
        order = torch.tensor([*rows[0], *rows[1]]).argsort()
        return (torch.cat(answers)[to_device(order, timestep.device)],)


def use_single_expert(pipe: DiffusionPipeline, experts: Sequence[str], component: str) -> None:
    """Use one of a pipeline's two experts at all noise levels."""
    first, second = experts
    pipe.register_modules(**{first: getattr(pipe, component), second: None})
    pipe.register_to_config(boundary_ratio=None)
