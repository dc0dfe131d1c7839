"""AdamW for bfloat16 weights: stochastic rounding, and a compensation buffer that keeps what rounding loses.

Decoupled weight decay 1711.05101; stochastic rounding for bfloat16 training 2010.06192. A bfloat16 number has 8 bits of
mantissa, so an update below 1/256 of a weight is lost by ordinary rounding. Here the true weight is p + c: `c` collects
updates until they are large enough to move `p`. All sums are formed in float32.

SimpleTuner's optimizer of the same name multiplies the wrong operand in its stochastic add, which leaves almost no
momentum and about 1.1 times the step; rates tuned there may want that factor.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Generator, Tensor

from darkroom.core.errors import UserError

DECAY_THRESHOLD = 5e-3


def round_stochastically(value: Tensor, generator: Generator) -> Tensor:
    """float32 to bfloat16, up or down with the probability that keeps the mean."""
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    bits = value.contiguous().view(torch.int32) + noise
    return (bits & -65536).view(torch.float32).to(torch.bfloat16)


class AdamWBF16(torch.optim.Optimizer):
    """AdamW whose weights and states are bfloat16, but for weights that a model keeps in float32, whose states are too.

    Raises UserError for other weights.

    The rounding noise comes from a generator of its own, whose state is part of `state_dict`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        seed: int = 0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed = seed
        self._generators: dict[torch.device, Generator] = {}
        kinds = {p.dtype for group in self.param_groups for p in group["params"]}
        if torch.bfloat16 not in kinds or not kinds <= {torch.bfloat16, torch.float32}:
            raise UserError(
                f"optimizer = adamw_bf16\n  It trains bfloat16 weights, and these are {', '.join(map(str, kinds))}.\n"
                "  Set mixed_precision to bf16, or choose torch-adamw or optimi-adamw."
            )

    def _generator(self, device: torch.device) -> Generator:
        if device not in self._generators:
            self._generators[device] = Generator(device).manual_seed(self._seed)
        return self._generators[device]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _start(self, p: Tensor) -> dict[str, Any]:
        generator = self._generator(p.device)
        debt = torch.rand((), generator=generator, device=p.device).cpu() * DECAY_THRESHOLD
        zeros = torch.zeros_like(p)
        return {"step": 0, "m": zeros, "v": zeros.clone(), "c": zeros.clone(), "debt": float(debt)}

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state.update(self._start(p))
        generator, (b1, b2), lr = self._generator(p.device), group["betas"], group["lr"]

        def rounded(exact: Tensor) -> Tensor:
            return round_stochastically(exact, generator) if p.dtype is torch.bfloat16 else exact

        state["step"] += 1
        grad = p.grad.float()  # type: ignore[union-attr]
        m = torch.lerp(state["m"].float(), grad, 1 - b1)
        v = torch.lerp(state["v"].float(), grad * grad, 1 - b2)
        state["m"], state["v"] = rounded(m), rounded(v)

        update = (m / (1 - b1 ** state["step"])) / ((v / (1 - b2 ** state["step"])).sqrt() + group["eps"])
        due = rounded(state["c"].float() - lr * update).float()
        old = p.float()
        p.copy_(rounded(old + due))
        state["c"] = rounded(due + (old - p.float()))

        # decay is paid in instalments large enough to register in bfloat16
        state["debt"] += group["weight_decay"] * lr
        if state["debt"] > DECAY_THRESHOLD:
            state["c"] = (state["c"].float() - state["debt"] * p.float()).to(p.dtype)
            state["debt"] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The states, and the rounding generators' positions."""
        positions = {str(device): g.get_state() for device, g in self._generators.items()}
        return {**super().state_dict(), "generators": positions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put a `state_dict` back, also one of weights that were on another device."""
        rest = dict(state_dict)
        positions = rest.pop("generators", {})
        for device in {p.device for group in self.param_groups for p in group["params"]} if positions else ():
            position = positions.get(str(device), next(iter(positions.values()))).cpu().to(torch.uint8)
            self._go_on(self._generator(device), position)
        super().load_state_dict(rest)

    @staticmethod
    def _go_on(generator: Generator, position: Tensor) -> None:
        """Put a generator's position back. A GPU's says nothing to the host's and the other way round: it is a seed."""
        if len(position) == len(generator.get_state()):
            generator.set_state(position)
        else:
            generator.manual_seed(zlib.crc32(position.numpy().tobytes()))
