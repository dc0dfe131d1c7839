"""Denoisers that share a noise schedule, one for high noise and one for low (Wan 2.2, eDiff-I 2211.01324)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """Called as one denoiser is. Each row of a batch goes to the member in charge of its timestep.

    members   component name to denoiser: the first answers at timesteps of `boundary` and above, the second below
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
        """What the members have in common."""
        return next(self.children()).config

    @property
    def device(self) -> torch.device:
        """Where the members are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The members' precision."""
        return next(self.children()).dtype  # type: ignore[return-value]

    def enable_gradient_checkpointing(self, *arguments: Any) -> None:
        """Switch it on in each member."""
        for member in self.children():
            member.enable_gradient_checkpointing(*arguments)  # type: ignore[operator]

    def forward(self, *, timestep: Tensor, **inputs: Any) -> tuple[Tensor]:
        """timestep (B,) or (B, N); tensors among the inputs are (B, ...). Returns ((B, ...),)."""
        level = timestep if timestep.ndim == 1 else timestep.amax(dim=1)
        is_high = level >= self.boundary
        high, low = self.children()
        answers: list[Tensor] = []
        for member, rows in ((high, is_high), (low, ~is_high)):
            if rows.any():
                chosen = {name: value[rows] if isinstance(value, Tensor) else value for name, value in inputs.items()}
                answers.append(member(timestep=timestep[rows], **chosen)[0])
        if len(answers) == 1:
            return (answers[0],)
        # the members' answers, one behind the other, back to the order of the batch
        order = torch.cat([is_high.nonzero(), (~is_high).nonzero()]).flatten()
        return (torch.cat(answers)[order.argsort()],)
