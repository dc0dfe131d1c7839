"""Cuts and frame rates: musubi-tuner's numbers worked by hand, and what must hold for every clip."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.media.frames import MODES, Cut, FrameRule, plan_cuts, resample_frames, thin_frames
from tests.rows import each_row

FOUR = FrameRule(4, 1)
rules = st.builds(FrameRule, st.integers(1, 9), st.integers(1, 9))


def pairs(made: list[Cut]) -> list[tuple[int, int]]:
    return [(cut.start, cut.frames) for cut in made]


@each_row(
    "rule, counts",
    [
        (FOUR, {0: 0, 1: 1, 4: 1, 5: 5, 8: 5, 129: 129, 132: 129}),
        (FrameRule(8, 1), {119: 113, 113: 113, 121: 121}),  # LTX-2's worked number
        (FrameRule(), {0: 0, 7: 7}),
        (FrameRule(4, 4), {3: 0, 4: 4, 9: 8}),
    ],
)
def test_counts_are_rounded_down_to_legal_ones(rule: FrameRule, counts: dict[int, int]) -> None:
    assert {n: rule.down(n) for n in counts} == counts


def test_a_rule_below_one_is_refused() -> None:
    for step, offset in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="1 or more"):
            FrameRule(step, offset)


def test_head_takes_the_start_in_every_length_that_fits() -> None:
    assert pairs(plan_cuts(30, [45, 1, 25, 25], "head", rule=FOUR)) == [(0, 1), (0, 25)]


def test_chunk_takes_as_many_as_fit_end_to_end() -> None:
    assert pairs(plan_cuts(80, [25], "chunk", rule=FOUR)) == [(0, 25), (25, 25), (50, 25)]
    assert pairs(plan_cuts(3, [1], "chunk", rule=FOUR)) == [(0, 1), (1, 1), (2, 1)]


def test_slide_moves_on_by_the_stride() -> None:
    assert pairs(plan_cuts(40, [25], "slide", stride=5, rule=FOUR)) == [(0, 25), (5, 25), (10, 25), (15, 25)]


def test_uniform_truncates_evenly_spaced_starts() -> None:
    # linspace(0, 10, 4) = 0, 3.33, 6.67, 10
    assert pairs(plan_cuts(35, [25], "uniform", sample=4, rule=FOUR)) == [(0, 25), (3, 25), (6, 25), (10, 25)]
    assert pairs(plan_cuts(35, [25], "uniform", rule=FOUR)) == [(0, 25)]
    assert pairs(plan_cuts(26, [25], "uniform", sample=4, rule=FOUR)) == [(0, 25), (1, 25)]


@each_row("total, most, length", [(200, 129, 129), (100, 129, 97), (4, 129, 1), (200, None, 197)])
def test_full_takes_one_cut_up_to_the_limit(total: int, most: int | None, length: int) -> None:
    assert pairs(plan_cuts(total, [], "full", limit=most, rule=FOUR)) == [(0, length)]


def test_targets_are_rounded_down_before_they_are_compared() -> None:
    assert pairs(plan_cuts(30, [28, 26], "head", rule=FOUR)) == [(0, 25)]


@each_row("mode", MODES)
def test_a_clip_that_is_too_short_gives_nothing(mode: str) -> None:
    assert plan_cuts(4, [9], mode, rule=FrameRule(8, 9)) == []


def test_unknown_modes_and_steps_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="head, chunk, slide, uniform, full"):
        plan_cuts(9, [1], "tail")
    for wrong in ({"stride": 0}, {"sample": 0}):
        with pytest.raises(ValueError, match="1 or more"):
            plan_cuts(9, [1], "slide", **wrong)


@given(
    st.integers(0, 200),
    st.lists(st.integers(0, 150), max_size=4),
    st.sampled_from(MODES),
    st.integers(1, 20),
    st.integers(1, 20),
    st.none() | st.integers(1, 150),
    rules,
)
def test_cuts_are_legal_inside_the_clip_and_unlike_each_other(total, targets, mode, stride, sample, most, rule) -> None:
    made = plan_cuts(total, targets, mode, stride=stride, sample=sample, limit=most, rule=rule)
    assert len(set(made)) == len(made)
    for cut in made:
        assert rule.down(cut.frames) == cut.frames > 0
        assert 0 <= cut.start <= total - cut.frames


@given(st.integers(1, 300), st.integers(1, 240), st.floats(-5, 5))
def test_the_own_rate_changes_nothing(count: int, fps: int, start: float) -> None:
    times = start + np.arange(count) / fps
    assert resample_frames(times, count / fps, fps).tolist() == list(range(count))


@each_row("fps", [16, 24, 24000 / 1001, 30, 60, 120, 240])
def test_times_in_whole_milliseconds_do_not_shift_frames(fps: float) -> None:
    times = np.round(np.arange(500) / fps, 3)
    assert resample_frames(times, 500 / fps, fps).tolist() == list(range(500))


@given(st.lists(st.floats(0.001, 0.5), min_size=1, max_size=100), st.floats(1, 120))
def test_resampled_frames_ascend_and_were_on_the_screen(gaps: list[float], fps: float) -> None:
    times = np.cumsum([0.0, *gaps[:-1]])
    made = resample_frames(times, sum(gaps), fps)
    assert made[0] == 0
    assert (np.diff(made) >= 0).all()
    assert made[-1] < len(times)
    moments = np.arange(len(made)) / fps
    assert (times[made] <= moments + 1e-3).all()
    following = np.append(times, np.inf)[made + 1]
    assert (following > moments).all()


def test_thirty_to_sixteen_by_time_is_worked_by_hand() -> None:
    # k/16 s in frames of 1/30 s: 0, 1.875, 3.75, 5.625, 7.5, 9.375, 11.25, 13.125, 15, ...
    assert resample_frames(np.arange(30) / 30, 1.0, 16)[:9].tolist() == [0, 1, 3, 5, 7, 9, 11, 13, 15]
    assert len(resample_frames(np.arange(30) / 30, 1.0, 16)) == 16


def test_a_higher_rate_repeats_frames_and_a_long_pause_is_kept() -> None:
    assert resample_frames([0.0, 0.5], 1.0, 4).tolist() == [0, 0, 1, 1]
    assert resample_frames([0.0, 0.1, 0.8], 1.0, 10).tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 2, 2]


def test_a_clip_of_unknown_duration_or_without_frames_is_no_problem() -> None:
    assert resample_frames([], 0, 10).tolist() == []
    assert resample_frames([0.0], 0, 10).tolist() == [0]
    assert resample_frames([0.0, 0.1], float("nan"), 10).tolist() == [0, 1]


def test_thinning_thirty_to_sixteen_is_worked_by_hand() -> None:
    # 16 / 30 added up: 0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8; the fifteenth sum falls just short of 8
    assert thin_frames(17, 30.0, 16).tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert thin_frames(8, 48.0, 24).tolist() == [0, 2, 4, 6]
    assert thin_frames(4, 12.0, 24).tolist() == [0, 1, 2, 3]


@given(st.integers(0, 500), st.floats(1, 240), st.floats(1, 240))
def test_thinning_never_repeats_and_keeps_the_share(total: int, source: float, target: float) -> None:
    made = thin_frames(total, source, target).tolist()
    by_hand, before, number = [], -1, 0.0
    for i in range(total):
        if int(number) != before:
            by_hand.append(i)
        before = int(number)
        number += target / source
    assert made == by_hand


@pytest.mark.parametrize(
    "call", [lambda: resample_frames([0.0], 1, 0), lambda: thin_frames(3, 0, 16), lambda: thin_frames(3, 16, -1)]
)
def test_rates_of_nothing_are_refused(call) -> None:
    with pytest.raises(ValueError, match="above 0"):
        call()


def test_importing_media_loads_nothing_heavy() -> None:
    modules = "frames, video, audio, masks, faces, controls"
    code = f"""import sys
from darkroom.media import {modules}
print(*[name for name in ("torch", "av", "cv2", "transformers", "skimage", "scipy") if name in sys.modules])"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""
