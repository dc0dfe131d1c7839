"""musubi-tuner's noise levels and weights against numbers worked by hand from its formulas."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import Generator, Tensor

from darkroom.core.errors import UserError
from darkroom.diffusion.musubi_timesteps import (
    MIXTURES,
    MODES,
    Density,
    MusubiTimesteps,
    loss_weight,
    mix_modes,
    sigma_density,
    sigma_levels,
    stratify,
)
from tests.rows import each_row

U = (0.1, 0.25, 0.5, 0.75, 0.9)
N = [NormalDist().inv_cdf(u) for u in U]
H, W = 128, 96  # latents


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def shifted(t: float, s: float) -> float:
    return s * t / (1 + (s - 1) * t)


def on_line(tokens: int, x1: int, y1: float, x2: int, y2: float) -> float:
    return math.exp(y1 + (y2 - y1) / (x2 - x1) * (tokens - x1))


FLUX = on_line((H // 2) * (W // 2), 256, 0.5, 4096, 1.15)
FLUX2 = on_line(H * W, 256, 0.5, 4096, 1.15)
QWEN = on_line((H // 2) * (W // 2), 256, 0.5, 8192, 0.9)
KREA2 = on_line((H // 2) * (W // 2), 256, 0.5, 6400, 1.15)
IDEOGRAM = 0.5 * math.log(16 * H * 16 * W / 512**2)
BY_HAND = {
    "uniform": list(U),
    "sigmoid": [sigmoid(1.3 * n) for n in N],
    "shift": [shifted(sigmoid(1.3 * n), 2.5) for n in N],
    "flux_shift": [shifted(sigmoid(1.3 * n), FLUX) for n in N],
    "flux2_shift": [shifted(sigmoid(1.3 * n), FLUX2) for n in N],
    "qwen_shift": [shifted(sigmoid(1.3 * n), QWEN) for n in N],
    "krea2_shift": [shifted(sigmoid(1.3 * n), KREA2) for n in N],
    "ideogram4_shift": [min(max(sigmoid(IDEOGRAM + 1.5 * n), 1 - sigmoid(7.5)), sigmoid(9)) for n in N],
    "logsnr": [sigmoid(-(0.4 + 1.2 * n) / 2) for n in N],
}
DENSITY = Density(scale=1.3, shift=2.5, mean=0.4, std=1.2)


def close(made: Tensor, expected: list[float]) -> bool:
    return torch.allclose(made.double(), torch.tensor(expected, dtype=torch.float64), atol=2e-6)


@each_row("mode", sorted(MODES))
def test_every_mode_has_its_levels(mode):
    assert close(MODES[mode](torch.tensor(U), DENSITY, H, W), BY_HAND[mode])


def test_ideogram4s_ends_are_cut_off():
    made = MODES["ideogram4_shift"](torch.tensor([1e-9, 1 - 1e-7]), DENSITY, H, W)
    assert close(made, [1 - 1 / (1 + math.exp(-7.5)), 1 - 1 / (1 + math.exp(9))])


@each_row("name, choice, mode", [("qinglong_flux", 0.78, "flux_shift"), ("qinglong_flux", 0.80, "logsnr"),
                                 ("qinglong_flux", 0.91, ""), ("qinglong_qwen", 0.94, "qwen_shift"),
                                 ("qinglong_qwen", 0.96, "")])  # fmt: skip
def test_a_mixture_chooses_for_each_sample(name, choice, mode):
    clean = [sigmoid(-(5.36 + n) / 2) for n in N]
    made = mix_modes(name, torch.full((5,), choice), torch.tensor(U), DENSITY, H, W)
    assert close(made, BY_HAND[mode] if mode else clean)
    assert set(MIXTURES) == {"qinglong_flux", "qinglong_qwen"}


@each_row("scheme, expected", [
    ("none", list(U)),
    ("sigma_sqrt", list(U)),
    ("logit_normal", [sigmoid(0.4 + 1.2 * n) for n in N]),
    ("mode", [1 - u - 1.29 * (math.cos(math.pi * u / 2) ** 2 - 1 + u) for u in U]),
])  # fmt: skip
def test_the_densities_of_sigma(scheme, expected):
    assert close(sigma_density(torch.tensor(U), scheme, 0.4, 1.2, 1.29), expected)


def test_sigma_takes_whole_thousandths_and_mirrors_the_range():
    assert close(sigma_levels(torch.tensor([0.0, 0.25, 0.9996]), 0.0, 1.0), [1.0, 0.75, 0.001])
    # minimum 0, maximum 0.4: index 0..399 of 1000, 999, ...: the noisy end
    assert close(sigma_levels(torch.tensor([0.0, 0.5, 0.999]), 0.0, 0.4), [1.0, 0.8, 0.601])


def test_the_weights_of_the_loss():
    t = torch.tensor([0.001, 0.25, 0.5, 1.0])
    assert loss_weight("none", t) is None
    assert close(loss_weight("sigma_sqrt", t) / 1e6, [1.0, 16e-6, 4e-6, 1e-6])
    expected = [2 / (math.pi * (1 - 2 * s + 2 * s * s)) for s in (0.001, 0.25, 0.5, 1.0)]
    assert close(loss_weight("cosmap", t), expected)


X0 = torch.zeros(4000, 1, 2, 2)


def test_a_range_squeezes_all_levels():
    plain = MusubiTimesteps("uniform").draw(X0, Generator().manual_seed(3))
    squeezed = MusubiTimesteps("uniform", minimum=0.2, maximum=0.7).draw(X0, Generator().manual_seed(3))
    assert torch.allclose(squeezed, plain * 0.5 + 0.2)


@each_row("mode", [*MODES, *MIXTURES, "sigma"])
def test_a_range_with_its_shape_preserved_draws_again(mode):
    whole = MusubiTimesteps(mode, DENSITY).draw(X0, Generator().manual_seed(3))
    kept = MusubiTimesteps(mode, DENSITY, minimum=0.3, maximum=0.8, redraw=True).draw(X0, Generator().manual_seed(3))
    assert kept.min() >= 0.3
    assert kept.max() <= 0.8
    inside = whole[(whole >= 0.3) & (whole <= 0.8)]
    assert float(kept.mean()) == pytest.approx(float(inside.mean()), abs=0.03)


def test_a_range_that_nothing_meets_is_an_error():
    with pytest.raises(UserError, match="never fall into the range"):
        MusubiTimesteps("ideogram4_shift", minimum=0.0, maximum=1e-5, redraw=True).draw(X0[:2], Generator())


def test_buckets_are_met_equally_often():
    counts = torch.zeros(2, 5)
    for step in range(10):
        t = MusubiTimesteps("uniform", buckets=5, strata=lambda n, s=step: stratify(5, 7, 0, s, n)).draw(
            X0[:2], Generator().manual_seed(step)
        )
        counts[torch.arange(2), (t * 5).long()] += 1
    assert (counts == 2).all()


def test_the_same_seed_draws_the_same():
    draws = [MusubiTimesteps("qinglong_flux").draw(X0, Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draws)
