"""The order of batches: complete, reproducible, and the same from any position."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.core.errors import DataError
from darkroom.data.batches.order import DatasetShape, Order, draw_caption_values, steps_and_epochs

shapes = st.builds(
    lambda sizes, batch, repeats, probability, strength: (sizes, batch, repeats, probability, strength),
    st.lists(st.integers(1, 23), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 3),
    st.sampled_from([0.1, 1.0, 3.0]), st.sampled_from([None, None, 0.5, -0.5]),
)  # fmt: skip
mixtures = st.lists(shapes, min_size=1, max_size=4)


def build(mixture, **keys) -> Order:
    datasets = [
        DatasetShape(f"d{i}", np.array(s), b, r, p, slider_strength=g) for i, (s, b, r, p, g) in enumerate(mixture)
    ]
    return Order(datasets, **{"seed": 3, **keys})


def tokens(order: Order, epoch: int, start: int = 0) -> list:
    plan = order.epoch(epoch)
    return [
        (b.dataset, b.bucket, b.members.tolist())
        for p in range(start, len(plan))
        for b in [plan.batch(p, r) for r in range(order.ranks)]
    ]


@settings(max_examples=150, deadline=None)
@given(
    mixtures,
    st.integers(1, 3),
    st.integers(0, 2**31),
    st.sampled_from(["uniform", "auto-weighting"]),
    st.integers(1, 4),
)
def test_every_sample_is_dealt_repeats_plus_one_times_over_all_ranks(mixture, ranks, seed, mode, epoch) -> None:
    order = build(mixture, ranks=ranks, seed=seed, mode=mode)
    plan, dealt = order.epoch(epoch), Counter()
    filled: Counter = Counter()
    for position in range(len(plan)):
        batches = [plan.batch(position, rank) for rank in range(ranks)]
        assert len({(b.dataset, b.bucket) for b in batches}) == 1
        for b in batches:
            assert len(b.members) == mixture[b.dataset][1]
            dealt.update((b.dataset, b.bucket, int(m)) for m, f in zip(b.members, b.filled, strict=True) if not f)
            filled[b.dataset, b.bucket] += int(b.filled.sum())
    expected = {
        (i, j, m): r + 1 for i, (sizes, _, r, _, _) in enumerate(mixture) for j, n in enumerate(sizes) for m in range(n)
    }
    assert dealt == expected
    for i, (sizes, batch, repeats, _, _) in enumerate(mixture):
        for j, n in enumerate(sizes):
            assert filled[i, j] == -(n * (repeats + 1)) % (batch * ranks)
    assert len(plan) == order.length(epoch) == order.lengths(epoch).batches_per_epoch


@settings(max_examples=60, deadline=None)
@given(mixtures, st.integers(1, 3), st.integers(1, 5), st.data())
def test_resuming_anywhere_gives_the_same_tail(mixture, ranks, epoch, data) -> None:
    whole = tokens(build(mixture, ranks=ranks), epoch)
    start = data.draw(st.integers(0, len(whole) // ranks))
    assert tokens(build(mixture, ranks=ranks), epoch, start) == whole[start * ranks :]


def test_epochs_differ_and_seeds_differ() -> None:
    mixture = [([40], 4, 0, 1.0, None)]
    assert tokens(build(mixture), 1) != tokens(build(mixture), 2)
    assert tokens(build(mixture), 1) != tokens(build(mixture, seed=4), 1)


def test_buckets_take_turns() -> None:
    plan = build([([4, 2, 3], 1, 0, 1.0, None)]).epoch(1)
    assert plan.buckets.tolist() == [0, 1, 2, 0, 1, 2, 0, 2, 0]


def test_a_filled_batch_repeats_no_picture_while_others_are_left() -> None:
    plan = build([([5], 4, 0, 1.0, None)]).epoch(1)
    assert len(set(plan.batch(1).members.tolist())) == 4
    assert plan.batch(1).filled.tolist() == [False, True, True, True]


def test_lengths_of_the_worked_example() -> None:
    a, b = DatasetShape("A", np.array([900]), 2), DatasetShape("B", np.array([100]), 2, repeats=9)
    assert (a.weight, b.weight) == (450, 500)
    assert Order([a, b], seed=1).lengths().batches_per_epoch == 950


def test_datasets_are_mixed_by_their_weights() -> None:
    pair = [([30000], 1, 0, 3.0, None), ([30000], 1, 0, 1.0, None)]
    share = float((build(pair, mode="uniform").epoch(1).datasets[:20000] == 0).mean())
    assert share == pytest.approx(0.75, abs=0.02)
    uneven = [([9000], 1, 0, 1.0, None), ([1000], 1, 0, 1.0, None)]
    assert float((build(uneven).epoch(1).datasets[:5000] == 0).mean()) == pytest.approx(0.9, abs=0.02)
    assert float((build(uneven, mode="uniform").epoch(1).datasets[:1500] == 0).mean()) == pytest.approx(0.5, abs=0.05)


def test_the_order_of_the_file_does_not_matter_to_the_draw() -> None:
    a, b = DatasetShape("a", np.array([50])), DatasetShape("b", np.array([50]))
    one, two = Order([a, b], seed=1).epoch(1), Order([b, a], seed=1).epoch(1)
    assert one.datasets.tolist() == (1 - two.datasets).tolist()


def test_slider_groups_rotate() -> None:
    plan = build([([4], 1, 0, 1.0, -0.5), ([4], 1, 0, 1.0, 0.5), ([2], 1, 0, 1.0, None)]).epoch(1)
    assert plan.datasets.tolist() == [1, 0, 2, 1, 0, 2, 1, 0, 1, 0]


def test_probability_zero_is_never_drawn_nor_counted() -> None:
    order = build([([5], 1, 0, 1.0, None), ([50], 1, 0, 0.0, None)])
    assert set(order.epoch(1).datasets.tolist()) == {0}
    assert order.length(1) == 5
    with pytest.raises(DataError, match="every probability is 0"):
        build([([5], 1, 0, 0.0, None)])


def test_epochs_and_steps_start_and_end_datasets() -> None:
    a = DatasetShape("a", np.array([10]))
    late = DatasetShape("b", np.array([10]), start_epoch=2, end_epoch=2)
    assert [Order([a, late], seed=1).length(n) for n in (1, 2, 3)] == [10, 20, 10]
    stepped = Order([a, DatasetShape("b", np.array([10]), start_step=4, end_step=6)], seed=1, mode="uniform")
    drawn = stepped.epoch(1).datasets.tolist()
    assert 1 not in drawn[:3]
    assert 1 not in drawn[6:]
    assert stepped.steps_before(2) == len(drawn)
    fading = Order([a, DatasetShape("b", np.array([90]), disable_after_epoch_step=5)], seed=1)
    assert 1 not in fading.epoch(1).datasets[5:]


def test_captions_depend_on_the_place_only() -> None:
    assert np.array_equal(draw_caption_values(1, 2, 3, 4), draw_caption_values(1, 2, 3, 4))
    assert not np.array_equal(draw_caption_values(1, 2, 3, 4), draw_caption_values(1, 2, 4, 4))
    drops = np.concatenate([draw_caption_values(1, 1, p, 8)[:, 1] < 0.1 for p in range(2000)])
    assert drops.mean() == pytest.approx(0.1, abs=0.01)


def test_steps_and_epochs_complete_each_other() -> None:
    assert steps_and_epochs(10, 4, None, 2) == (6, 2)
    assert steps_and_epochs(10, 4, 7, None) == (7, 3)
    with pytest.raises(DataError, match="max_train_steps or num_train_epochs"):
        steps_and_epochs(10, 4, 0, 0)
    with pytest.raises(DataError, match="uniform, auto-weighting"):
        build([([5], 1, 0, 1.0, None)], mode="fair")


def test_oversubscribed_buckets_fill_whole_batches() -> None:
    plan = Order([DatasetShape("a", np.array([3]), 4, scheduled=np.array([8]))], seed=1, ranks=2).epoch(1)
    assert len(plan) == 1
    assert Counter(m for r in range(2) for m in plan.batch(0, r).members.tolist()).most_common()[-1][1] >= 2
