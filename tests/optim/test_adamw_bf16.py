"""The numbers of AdamW on bfloat16 weights: stochastic rounding, compensation, update size, decay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from darkroom.optim import adamw_bf16
from darkroom.optim.adamw_bf16 import AdamWBF16, round_stochastically

COUNT = 4096


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stepped(p: nn.Parameter, optimizer: AdamWBF16, grad: float = 1.0) -> None:
    p.grad = torch.full_like(p, grad)
    optimizer.step()


def meant(p: nn.Parameter, optimizer: AdamWBF16) -> Tensor:
    """The true weight: what is stored plus what rounding still owes."""
    return p.detach().float() + optimizer.state[p]["c"].float()


def test_rounding_goes_to_the_two_neighbours_with_the_right_shares():
    rounded = round_stochastically(torch.full((100_000,), 1 + 2**-9), generator()).float()

    assert rounded.unique().tolist() == [1.0, 1.0078125]
    assert (rounded > 1).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert rounded.double().mean().item() == pytest.approx(1.001953, abs=5e-5)


@pytest.mark.parametrize("value", [-(1 + 2**-9), 3.1e-5, -7e4])
def test_rounding_keeps_the_mean_of_any_number(value):
    rounded = round_stochastically(torch.full((100_000,), value), generator()).double()

    assert rounded.mean().item() == pytest.approx(torch.tensor(value).item(), rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, float("inf")])
def test_numbers_that_bfloat16_holds_stay(value):
    assert round_stochastically(torch.full((64,), value), generator()).unique().tolist() == [value]


def test_a_constant_gradient_moves_the_weights_by_the_rate_at_every_step():
    p = nn.Parameter(torch.zeros(COUNT, dtype=torch.bfloat16))
    optimizer = AdamWBF16([p], lr=1e-3, eps=1e-12, weight_decay=0.0)
    before = torch.zeros(COUNT)

    for _ in range(20):
        stepped(p, optimizer)
        after = meant(p, optimizer)
        assert (before - after).mean().item() == pytest.approx(1e-3, rel=0.01)
        before = after


def test_updates_too_small_for_bfloat16_are_not_lost():
    p = nn.Parameter(torch.ones(COUNT, dtype=torch.bfloat16))
    optimizer = AdamWBF16([p], lr=1e-5, eps=1e-12, weight_decay=0.0)

    for _ in range(100):
        stepped(p, optimizer)

    # bfloat16 has steps of 1/256 below 1, so plain rounding would stay at 1
    assert meant(p, optimizer).mean().item() == pytest.approx(1 - 100 * 1e-5, abs=2e-5)
    assert p.float().mean().item() == pytest.approx(1 - 100 * 1e-5, abs=3e-4)


def test_momentum_is_the_ordinary_average_of_gradients():
    p = nn.Parameter(torch.zeros(COUNT, dtype=torch.bfloat16))
    optimizer = AdamWBF16([p], lr=1e-3)

    for grad in (1.0, 0.0, 2.0):
        stepped(p, optimizer, grad)

    # 0.1, then 0.09, then 0.9 * 0.09 + 0.1 * 2
    assert optimizer.state[p]["m"].float().mean().item() == pytest.approx(0.281, rel=0.01)


def test_decay_takes_its_share_over_many_steps():
    p = nn.Parameter(torch.ones(COUNT, dtype=torch.bfloat16))
    optimizer = AdamWBF16([p], lr=0.01, weight_decay=0.1)

    for _ in range(100):
        stepped(p, optimizer, grad=0.0)

    # 0.001 a step, paid in instalments above 0.005; up to one instalment is still owed
    assert meant(p, optimizer).mean().item() == pytest.approx(0.999**100, abs=0.006)


def test_tensors_do_not_pay_decay_at_the_same_step():
    ps = [nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(8)]
    optimizer = AdamWBF16(ps, lr=1e-3)
    for p in ps:
        p.grad = torch.zeros_like(p)

    optimizer.step()

    debts = [optimizer.state[p]["debt"] for p in ps]
    assert len(set(debts)) == 8
    assert all(0 <= debt <= 5e-3 + 1e-5 for debt in debts)


def test_parameters_without_a_gradient_are_left_alone():
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = AdamWBF16([p])

    optimizer.step()

    assert p.tolist() == [1.0] * 4
    assert not optimizer.state[p]


def test_the_seed_decides_the_rounding():
    def run(seed: int) -> Tensor:
        p = nn.Parameter(torch.ones(COUNT, dtype=torch.bfloat16))
        optimizer = AdamWBF16([p], lr=1e-3, seed=seed)
        for _ in range(3):
            stepped(p, optimizer)
        return p.detach()

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("size", [16, 5056], ids=["GPU", "host"])
def test_rounding_goes_on_when_the_weights_were_on_another_device(size):
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    optimizer = AdamWBF16([weight])
    optimizer.step()
    state = optimizer.state_dict()
    position = state["generators"]["cpu"]
    known = position if size == len(position) else torch.arange(size, dtype=torch.uint8)

    optimizer.load_state_dict({**state, "generators": {"cuda:3": known}})

    again = optimizer.state_dict()["generators"]["cpu"]
    assert torch.equal(again, known) if size == len(position) else not torch.equal(again, position)


def test_weights_in_float32_move_by_the_rate_too():
    narrow, wide = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)), nn.Parameter(torch.zeros(4))
    optimizer = AdamWBF16([narrow, wide], lr=1e-3, eps=1e-12, weight_decay=0.0)

    for _ in range(10):
        narrow.grad = torch.ones_like(narrow)
        stepped(wide, optimizer)

    assert wide.tolist() == pytest.approx([-0.01] * 4, rel=1e-4)


def one_by_one(ps: list[nn.Parameter], states: list[dict], draws: torch.Generator, lr: float, decay: float) -> None:
    """An update written out for a tensor alone, as this optimizer did it before it updated many at once."""
    for p, state in zip(ps, states, strict=True):
        if p.grad is None:
            continue
        if not state:
            state |= {"step": 0, "debt": float(torch.rand((), generator=draws) * 5e-3)}
            state |= {name: torch.zeros_like(p) for name in "mvc"}
        state["step"] += 1
        grad, step = p.grad.float(), state["step"]
        m = torch.lerp(state["m"].float(), grad, 1 - 0.9)
        v = torch.lerp(state["v"].float(), grad * grad, 1 - 0.999)
        state["m"], state["v"] = round_stochastically(m, draws), round_stochastically(v, draws)
        update = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-6)
        due = round_stochastically(state["c"].float() - lr * update, draws).float()
        old = p.detach().float()
        p.data = round_stochastically(old + due, draws)
        state["c"] = round_stochastically(due + (old - p.detach().float()), draws)
        state["debt"] += decay * lr
        if state["debt"] > 5e-3:
            state["c"] = (state["c"].float() - state["debt"] * p.detach().float()).to(p.dtype)
            state["debt"] = 0.0


@pytest.mark.parametrize("together", [1 << 22, 3000])
def test_tensors_that_are_updated_at_once_end_in_the_same_bytes_as_one_by_one(monkeypatch, together):
    monkeypatch.setattr(adamw_bf16, "TOGETHER", together)
    starts = [
        torch.randn(shape, generator=generator(1)).bfloat16() for shape in ((7,), (33, 17), (), (1, 2000), (129,))
    ]
    starts.append(torch.randn(8, 3, 3, 3, generator=generator(2)).bfloat16().to(memory_format=torch.channels_last))
    mine, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    optimizer = AdamWBF16(mine, lr=3e-3, weight_decay=0.3, eps=1e-6)
    draws, states, grads = generator(0), [{} for _ in starts], generator(3)

    for step in range(8):
        for number, (p, other) in enumerate(zip(mine, theirs, strict=True)):
            # one begins later than the others, and one is passed over
            is_left_out = (number, step) in ((4, 0), (4, 1), (1, 3))
            other.grad = p.grad = None if is_left_out else torch.randn(p.shape, generator=grads).bfloat16()
        optimizer.step()
        one_by_one(theirs, states, draws, 3e-3, 0.3)

    assert all(torch.equal(p, other) for p, other in zip(mine, theirs, strict=True))
    for p, state in zip(mine, states, strict=True):
        assert all(torch.equal(optimizer.state[p][name], state[name]) for name in "mvc")
        assert (optimizer.state[p]["step"], optimizer.state[p]["debt"]) == (state["step"], state["debt"])
    assert torch.equal(optimizer.state_dict()["generators"]["cpu"], draws.get_state())
