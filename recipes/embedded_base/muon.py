"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al., 2024, kellerjordan/Muon).

Every direction of a weight matrix moves equally fast, so rare patterns (a cross, a ring) are learned sooner than
under Adam. Matrices of one shape are worked on together, which keeps the overhead small on a processor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

UPDATE_RMS = 0.25
"""Root mean square of an update at rate 1; near Adam's own, so that both share one learning rate."""


def orthogonalise(stack: Tensor, rounds: int = 5) -> Tensor:
    """Bring the singular values of every matrix in (n, rows, columns) near 1 by a Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = stack / (stack.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """For two-dimensional weights only; give embeddings, biases and norms to AdamW."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.02
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update from the gradients at hand."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for weight in group["params"]:
                by_shape[weight.shape].append(weight)
            for weights in by_shape.values():
                self._step_alike(weights, **{k: group[k] for k in ("lr", "momentum", "weight_decay")})

    def _step_alike(self, weights: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        """Update matrices of one shape, (rows, columns) each."""
        for weight in weights:
            if "average" not in self.state[weight]:
                self.state[weight]["average"] = torch.zeros_like(weight)
            self.state[weight]["average"].lerp_(weight.grad, 1 - momentum)
        ahead = torch.stack([w.grad.lerp(self.state[w]["average"], momentum) for w in weights])  # Nesterov
        updates = orthogonalise(ahead) * UPDATE_RMS * max(weights[0].shape) ** 0.5
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(1 - lr * weight_decay).sub_(update, alpha=lr)
