"""AdamW for bfloat16 weights: stochastic rounding, and a compensation buffer that keeps what rounding loses.

Decoupled weight decay 1711.05101; stochastic rounding for bfloat16 training 2010.06192. A bfloat16 number has 8 bits of
mantissa, so an update below 1/256 of a weight is lost by ordinary rounding. Here the true weight is p + c: `c` collects
updates until they are large enough to move `p`. All sums are formed in float32.

SimpleTuner's optimizer of the same name multiplies the wrong operand in its stochastic add, which leaves almost no
momentum and about 1.1 times the step; rates tuned there may want that factor.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypedDict, cast

import torch
from torch import Generator, Tensor

from darkroom.core.errors import UserError

DECAY_THRESHOLD = 5e-3
# of an update: two averages, what is due, the weight, and what remains due
ROUNDINGS = 5
# numbers that are updated at once; each takes about 60 bytes meanwhile
TOGETHER = 1 << 22


def round_stochastically(value: Tensor, generator: Generator) -> Tensor:
    """float32 to bfloat16, up or down with the probability that keeps the mean."""
    return _round([value], [_draw(value.shape, value.device, generator)])[0]


def _draw(shape: Sequence[int], device: torch.device, generator: Generator) -> Tensor:
    """What is added to the bits that rounding takes away, int32."""
    return torch.randint(0, 1 << 16, shape, dtype=torch.int32, device=device, generator=generator)


def _round(values: Sequence[Tensor], noises: list[Tensor]) -> list[Tensor]:
    """float32 tensors as bfloat16."""
    bits = [value.contiguous().view(torch.int32) for value in values]
    # no operator masks the bits of several tensors, so they are put into one
    joined = torch.empty(sum(map(Tensor.numel, bits)), dtype=torch.int32, device=values[0].device)
    parts = [
        part.view_as(bit_tensor)
        for part, bit_tensor in zip(joined.split([*map(Tensor.numel, bits)]), bits, strict=True)
    ]
    torch._foreach_copy_(parts, bits)
    torch._foreach_add_(parts, noises)
    joined.bitwise_and_(-65536)
    return _cast([part.view(torch.float32) for part in parts], torch.bfloat16)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Copies with the same numbers in another type."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return copies


class _Settings(TypedDict):
    """Of a group, what an update reads."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


class _State(TypedDict):
    """Of a parameter: updates, moments, what rounding has withheld from it, and the decay that it owes."""

    step: int
    m: Tensor
    v: Tensor
    c: Tensor
    debt: float


class AdamWBF16(torch.optim.Optimizer):
    """AdamW whose weights and states are bfloat16, but for weights that a model keeps in float32, whose states are too.

    Raises UserError for other weights.

    The rounding noise comes from a generator of its own, whose state is part of `state_dict`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, object]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        seed: int = 0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed = seed
        self._generators: dict[torch.device, Generator] = {}
        dtypes = {p.dtype for group in self.param_groups for p in group["params"]}
        if torch.bfloat16 not in dtypes or not dtypes <= {torch.bfloat16, torch.float32}:
            raise UserError(
                f"optimizer = adamw_bf16\n  It trains bfloat16 weights, and these are {', '.join(map(str, dtypes))}.\n"
                "  Set mixed_precision to bf16, or choose torch-adamw or optimi-adamw."
            )

    def _generator(self, device: torch.device) -> Generator:
        if device not in self._generators:
            self._generators[device] = Generator(device).manual_seed(self._seed)
        return self._generators[device]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. Each kernel updates many."""
        for group in self.param_groups:
            for several in self._batches([p for p in group["params"] if p.grad is not None]):
                self._update(several, cast(_Settings, group))
                self._decay(several, cast(_Settings, group))

    def _batches(self, parameters: list[Tensor]) -> Iterator[list[Tensor]]:
        """Neighbors to be updated together: alike, and of `TOGETHER` numbers at most, unless one alone has more.

        A parameter without a state yet comes alone, as what it owes of decay is drawn just before its noise.
        """

        def group_key(p: Tensor) -> tuple[torch.device, torch.dtype, int | None, int | None]:
            step = self.state[p].get("step")
            return p.device, p.dtype, step, id(p) if step is None else None

        for _, alike in itertools.groupby(parameters, group_key):
            several: list[Tensor] = []
            for p in alike:
                if several and sum(map(Tensor.numel, several)) + p.numel() > TOGETHER:
                    yield several
                    several = []
                several.append(p)
            yield several

    def _start(self, p: Tensor) -> _State:
        generator = self._generator(p.device)
        debt = torch.rand((), generator=generator, device=p.device).cpu() * DECAY_THRESHOLD
        zeros = torch.zeros_like(p)
        return {"step": 0, "m": zeros, "v": zeros.clone(), "c": zeros.clone(), "debt": float(debt)}

    def _noises(self, several: list[Tensor]) -> Iterator[list[Tensor]]:
        """For each of the `ROUNDINGS` of an update its noise, drawn as if the tensors were updated one by one."""
        generator, device = self._generator(several[0].device), several[0].device
        if len(several) == 1:  # not all at once, as it may be large
            yield from ([_draw(several[0].shape, device, generator)] for _ in range(ROUNDINGS))
            return
        sizes = [ROUNDINGS * p.numel() for p in several]
        noises = _draw([sum(sizes)], device, generator).split(sizes)
        shaped = [noise.view(ROUNDINGS, *p.shape) for noise, p in zip(noises, several, strict=True)]
        yield from ([noise[number] for noise in shaped] for number in range(ROUNDINGS))

    def _update(self, several: list[Tensor], settings: _Settings) -> None:
        states = [self.state[p] for p in several]
        for p, state in zip(several, states, strict=True):
            if not state:
                state.update(self._start(p))
            state["step"] += 1
        step, (b1, b2), noises = states[0]["step"], settings["betas"], self._noises(several)

        def round_noisily(exact: Sequence[Tensor]) -> list[Tensor]:
            return _round(exact, next(noises)) if several[0].dtype is torch.bfloat16 else list(exact)

        def wide(name: str) -> list[Tensor]:
            return _cast([state[name] for state in states])

        def put(name: str, tensors: Sequence[Tensor]) -> None:
            for state, tensor in zip(states, tensors, strict=True):
                state[name] = tensor

        grad = _cast([p.grad for p in several])  # type: ignore[misc]
        m = torch._foreach_lerp(wide("m"), grad, 1 - b1)
        v = torch._foreach_lerp(wide("v"), torch._foreach_mul(grad, grad), 1 - b2)
        put("m", round_noisily(m))
        put("v", round_noisily(v))

        # (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + eps)
        root = torch._foreach_sqrt(torch._foreach_div(v, 1 - b2**step))
        update = torch._foreach_div(torch._foreach_div(m, 1 - b1**step), torch._foreach_add(root, settings["eps"]))
        due = round_noisily(torch._foreach_sub(wide("c"), torch._foreach_mul(update, settings["lr"])))
        due, old = _cast(due), _cast(several)
        torch._foreach_copy_(several, round_noisily(torch._foreach_add(old, due)))
        # what the weights did not take of it
        put("c", round_noisily(torch._foreach_add(due, torch._foreach_sub(old, _cast(several)))))

    def _decay(self, several: list[Tensor], settings: _Settings) -> None:
        """Decay is paid in installments large enough to register in bfloat16."""
        due: list[tuple[Tensor, _State]] = []
        for p in several:
            state = cast(_State, self.state[p])
            state["debt"] += settings["weight_decay"] * settings["lr"]
            if state["debt"] > DECAY_THRESHOLD:
                due.append((p, state))
        if not due:
            return
        paid = torch._foreach_mul(_cast([p for p, _ in due]), [state["debt"] for _, state in due])
        owed = torch._foreach_sub(_cast([state["c"] for _, state in due]), paid)
        for (_, state), c in zip(due, _cast(owed, several[0].dtype), strict=True):
            state["c"], state["debt"] = c, 0.0

    def state_dict(self) -> dict[str, object]:
        """The states, and the rounding generators' positions."""
        positions = {str(device): g.get_state() for device, g in self._generators.items()}
        return {**super().state_dict(), "generators": positions}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Put a `state_dict` back, also one of weights that were on another device."""
        state = dict(state_dict)
        positions = cast("dict[str, Tensor]", state.pop("generators", {}))
        for device in {p.device for group in self.param_groups for p in group["params"]} if positions else ():
            position = positions.get(str(device), next(iter(positions.values()))).cpu().to(torch.uint8)
            self._go_on(self._generator(device), position)
        super().load_state_dict(state)

    @staticmethod
    def _go_on(generator: Generator, position: Tensor) -> None:
        """Put a generator's position back. A GPU's says nothing to the host's and the other way round: it is a seed."""
        if len(position) == len(generator.get_state()):
            generator.set_state(position)
        else:
            generator.manual_seed(zlib.crc32(position.numpy().tobytes()))
