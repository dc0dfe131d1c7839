"""Shift numbers of SD3, Flux, Qwen-Image and Krea 2."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from darkroom.diffusion.shift import ShiftLine, shift_time
from tests.rows import each_row


@each_row("t, shifted", [(0.0, 0.0), (0.1, 0.25), (0.5, 0.75), (1.0, 1.0)])
def test_shift_of_three(t, shifted):
    assert shift_time(torch.tensor(t), 3.0).item() == pytest.approx(shifted)


def test_shift_of_one_changes_nothing():
    t = torch.rand(16)

    torch.testing.assert_close(shift_time(t, 1.0), t)


@each_row(
    "line, tokens, k",
    [
        (ShiftLine(), 4096, 3.158193),
        (ShiftLine(), 1024, 1.877611),
        (ShiftLine(), 16384, 25.2797),
        (ShiftLine(256, 8192, 0.5, 0.9), 4096, 2.000803),
        (ShiftLine(256, 6400, 0.5, 1.15), 4096, 2.475024),
    ],
    ids=["flux 1024", "flux 512", "flux 2048", "qwen 1024", "krea-2 1024"],
)
def test_automatic_shift_by_number_of_tokens(line, tokens, k):
    assert line.shift(tokens) == pytest.approx(k, rel=1e-5)


def test_automatic_shift_agrees_with_diffusers():
    mu = calculate_shift(2304, 256, 4096, 0.5, 1.15)

    assert ShiftLine().shift(2304) == pytest.approx(torch.tensor(mu).exp().item())


def test_the_line_is_read_from_a_schedulers_config():
    config = {"base_image_seq_len": 1, "max_image_seq_len": 2, "base_shift": 3.0, "max_shift": 4.0}

    assert ShiftLine.from_scheduler(config) == ShiftLine(1, 2, 3.0, 4.0)


def test_a_missing_number_of_the_line_is_an_error():
    with pytest.raises(KeyError, match="max_shift"):
        ShiftLine.from_scheduler({"base_image_seq_len": 1, "max_image_seq_len": 2, "base_shift": 3.0})


PUBLISHED = {"base_image_seq_len": 256, "max_image_seq_len": 8192, "base_shift": 0.5, "max_shift": 0.9}


def test_the_line_is_what_the_schedulers_file_publishes():
    assert ShiftLine.from_scheduler(PUBLISHED, ShiftLine()) == ShiftLine(256, 8192, 0.5, 0.9)


@pytest.mark.parametrize("config", [{}, {**PUBLISHED, "_use_default_values": ["max_shift"]}, {"shift": 3.0}])
def test_what_diffusers_fills_in_is_not_published(config):
    usual = ShiftLine(1024, 4096, 0.95, 2.05)

    assert ShiftLine.from_scheduler(config, usual) == usual
    with pytest.raises(KeyError):
        ShiftLine.from_scheduler(config)
