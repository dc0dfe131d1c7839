"""Samplers: their range, their density, and that the generator alone decides what they draw."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from darkroom.core.errors import UserError
from darkroom.diffusion.timesteps import (
    DiscreteTimesteps,
    FlowTimesteps,
    beta,
    bias_weights,
    fast,
    logit_normal,
    segments,
    uniform,
)
from tests.rows import each_row

MANY = 20_000
SAMPLERS = {
    "logit_normal": logit_normal,
    "uniform": uniform,
    "beta": lambda count, generator: beta(count, generator, 2.0, 2.0),
    "fast": fast,
}


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@each_row("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_levels_are_fractions_in_float32(sampler):
    t = sampler(MANY, generator())

    assert t.shape == (MANY,)
    assert t.dtype == torch.float32
    assert 0 <= t.min() <= t.max() <= 1


@each_row("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_the_generator_decides_the_draw_and_moves_on(sampler):
    first, again = generator(), generator()

    a, b = sampler(64, first), sampler(64, first)

    assert torch.equal(a, sampler(64, again))
    assert not torch.equal(a, b)
    assert not torch.equal(a, sampler(64, generator(1)))


def test_uniform_fills_every_tenth_alike():
    counts = torch.histc(uniform(MANY, generator()), 10, 0, 1)

    # three standard deviations of a binomial count
    assert (counts - MANY / 10).abs().max() < 3.5 * math.sqrt(MANY * 0.1 * 0.9)


def test_logit_normal_has_the_quantiles_of_a_squashed_normal():
    t = logit_normal(MANY, generator(), scale=2.0)

    # the normal's 84.13 percent quantile is 1, so a scale of 2 puts it at sigmoid(2)
    assert t.quantile(0.5).item() == pytest.approx(0.5, abs=0.02)
    assert t.quantile(0.8413).item() == pytest.approx(1 / (1 + math.exp(-2)), abs=0.02)


def test_logit_normal_offset_is_added_before_scaling():
    t = logit_normal(MANY, generator(), scale=2.0, offset=0.5)

    assert t.median().item() == pytest.approx(1 / (1 + math.exp(-1)), abs=0.02)


def test_logit_normal_scale_zero_always_gives_the_middle():
    assert logit_normal(8, generator(), scale=0.0).tolist() == [0.5] * 8


def test_beta_has_the_stated_mean_and_spread():
    t = beta(MANY, generator(), 2.0, 6.0)

    assert t.mean().item() == pytest.approx(2 / 8, abs=0.005)
    assert t.var().item() == pytest.approx(2 * 6 / (8**2 * 9), rel=0.05)


def test_fast_draws_pure_noise_seven_times_in_ten():
    t = fast(MANY, generator())

    shares = {level: (t == level).float().mean().item() for level in (1.0, 0.75, 0.5, 0.25)}

    assert shares == pytest.approx({1.0: 0.7, 0.75: 0.1, 0.5: 0.1, 0.25: 0.1}, abs=0.012)


def test_shift_is_applied_to_the_base_draw_by_latent_size():
    sampler = FlowTimesteps(lambda count, generator: torch.full((count,), 0.5), lambda x0: float(x0.shape[-1]))

    assert sampler.draw(torch.zeros(2, 4, 1, 3), generator()).tolist() == pytest.approx([0.75, 0.75])
    assert sampler.draw(torch.zeros(2, 4, 1, 1), generator()).tolist() == [0.5, 0.5]


def test_bias_towards_later_steps():
    weights = bias_weights(1000, "later", portion=0.25, multiplier=2.0)

    assert weights[0].item() == pytest.approx(0.0008)
    assert weights[999].item() == pytest.approx(0.0016)
    assert weights[750:].sum().item() == pytest.approx(0.4)
    assert weights[749].item() == pytest.approx(0.0008)


def test_bias_towards_earlier_steps_mirrors_later():
    earlier = bias_weights(1000, "earlier", portion=0.25, multiplier=2.0)

    torch.testing.assert_close(earlier.flip(0), bias_weights(1000, "later", portion=0.25, multiplier=2.0))


def test_bias_on_a_range_excludes_its_end():
    weights = bias_weights(10, "range", begin=2, end=4, multiplier=3.0)

    assert (weights * 14).tolist() == pytest.approx([1, 1, 3, 3, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("strategy", ["none", "later", "earlier"])
def test_a_bias_on_nothing_is_no_bias(strategy):
    assert bias_weights(10, strategy, portion=0.0, multiplier=5.0).tolist() == pytest.approx([0.1] * 10)


def test_segments_of_four():
    assert segments(1000, 4) == [(749, 999), (499, 749), (249, 499), (0, 249)]


def test_segments_stay_inside_when_the_batch_is_larger_than_the_schedule():
    ranges = segments(10, 16, first=4)

    assert len(ranges) == 16
    assert all(4 <= low <= high <= 9 for low, high in ranges)


def test_segmented_draw_takes_one_index_from_each_segment():
    sampler = DiscreteTimesteps(bias_weights(1000))
    draws = torch.stack([sampler.draw(torch.zeros(4, 1, 1, 1), generator(seed)) for seed in range(50)])

    for column, (low, high) in zip(draws.T, segments(1000, 4), strict=True):
        assert low <= column.min() <= column.max() <= high
        assert column.unique().numel() > 20


def test_unsegmented_draw_follows_the_weights():
    sampler = DiscreteTimesteps(bias_weights(1000, "later", portion=0.25, multiplier=2.0), segmented=False)

    drawn = sampler.draw(torch.zeros(MANY, 1), generator())

    assert (drawn >= 750).float().mean().item() == pytest.approx(0.4, abs=0.012)
    assert drawn.dtype == torch.int64


def test_segments_respect_weights_inside_themselves():
    weights = torch.zeros(1000)
    weights[[100, 400, 600, 900]] = 1.0

    drawn = DiscreteTimesteps(weights / 4).draw(torch.zeros(4, 1), generator())

    assert drawn.tolist() == [900, 600, 400, 100]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.2), (0.2, 1.0), (0.3, 0.6)])
def test_fractions_held_to_a_range_keep_their_density_in_it(low, high):
    held = FlowTimesteps(logit_normal, lambda x0: 3.0, low, high).draw(torch.zeros(MANY, 1), generator())
    free = FlowTimesteps(logit_normal, lambda x0: 3.0).draw(torch.zeros(20 * MANY, 1), generator(1))
    free = free[(free >= low) & (free < high)]

    assert held.min() >= low
    assert held.max() < high
    shares = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    torch.testing.assert_close(held.quantile(shares), free.quantile(shares), atol=0.01, rtol=0)


@each_row("name", SAMPLERS)
def test_the_whole_range_costs_no_draw(name):
    draw = FlowTimesteps(SAMPLERS[name], lambda x0: 3.0, 0.0, 1.0).draw(torch.zeros(8, 1), generator())

    t = SAMPLERS[name](8, generator())
    torch.testing.assert_close(draw, 3 * t / (1 + 2 * t))


def test_pure_noise_belongs_to_the_range_that_ends_with_it_and_a_boundary_to_the_noisier_side():
    noisy, clean = (
        FlowTimesteps(fast, low=low, high=high).draw(torch.zeros(500, 1), generator())
        for low, high in ((0.75, 1.0), (0.0, 0.75))
    )

    assert set(noisy.tolist()) == {0.75, 1.0}
    assert set(clean.tolist()) == {0.25, 0.5}


def test_a_range_that_a_schedule_never_reaches_is_an_error():
    with pytest.raises(UserError, match=r"between 0 and 0\.2"):
        FlowTimesteps(fast, low=0.0, high=0.2).draw(torch.zeros(2, 1), generator())


@each_row("segmented", [True, False])
@each_row("low, high, indices", [(0.0, 0.2, range(200)), (0.2, 1.0, range(200, 1000))])
def test_indices_held_to_a_range_reach_all_of_it_and_nothing_else(low, high, indices, segmented):
    sampler = DiscreteTimesteps(bias_weights(1000), segmented, low, high)

    drawn = torch.cat([sampler.draw(torch.zeros(4, 1), generator(seed)) for seed in range(5000)])

    assert set(drawn.tolist()) == set(indices)


def test_segments_divide_the_range():
    sampler = DiscreteTimesteps(bias_weights(1000), True, 0.0, 0.2)

    first, second = sampler.draw(torch.zeros(2, 1), generator()).tolist()

    assert first >= 100 > second or first == second == 99
