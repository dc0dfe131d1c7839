"""Limits on gradients: by value, by norm, and measuring alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from darkroom.optim.clip import clip


def three_and_four() -> list[nn.Parameter]:
    """Two parameters with gradients 3 and -4, and one without."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([-4.0])
    return parameters


@pytest.mark.parametrize(
    ("method", "limit", "size", "after"),
    [
        ("norm", 1.0, 5.0, [0.6, -0.8]),
        ("norm", 10.0, 5.0, [3.0, -4.0]),
        ("norm", 0.0, 5.0, [3.0, -4.0]),
        ("value", 2.0, 4.0, [2.0, -2.0]),
        ("value", 3.5, 4.0, [3.0, -3.5]),
        ("value", 0.0, 4.0, [3.0, -4.0]),
    ],
)
def test_clipping_reports_the_size_before_it(method, limit, size, after):
    parameters = three_and_four()

    measured = clip(parameters, method, limit)

    assert measured.item() == pytest.approx(size)
    assert [p.grad.item() for p in parameters[:2]] == pytest.approx(after, rel=1e-5)


def test_nothing_to_clip_measures_zero():
    assert clip([nn.Parameter(torch.zeros(1))], "norm", 1.0).item() == 0.0
