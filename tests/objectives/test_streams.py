"""A second stream beside the image or the video: its noise, its loss, and who counts in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from darkroom.objectives.streams import average
from tests.objectives.test_denoise import SHAPES, told

COUNT = SHAPES["flux"][0]
AUDIO = torch.zeros(COUNT, 5, 3)


def test_each_stream_has_its_own_loss_and_samples_without_it_do_not_count():
    run, counts = told("flux"), torch.tensor([1.0, 0.0, 1.0, 0.0])

    # the network answers x_t = t noise for the audio, which is silent, and should answer noise
    losses = run(0.0, extras={"sound": AUDIO, "sound_counts": counts}).losses

    ((x_t, t),) = [(streams["sound"], t) for streams, t in run.streams_shown]
    errors = (x_t * ((1 - t) / t).view(-1, 1, 1)).square().flatten(1).mean(1)
    assert [*losses] == ["denoise", "sound"]
    assert losses["sound"].item() == pytest.approx((errors * counts).sum().item() / 2, rel=1e-4)


def test_a_second_stream_changes_nothing_of_the_first():
    def loss(**extra: dict[str, Tensor]) -> Tensor:
        return told("flux", input_perturbation=0.1)(1.0, **extra).losses["denoise"]

    assert torch.equal(loss(), loss(extras={"sound": AUDIO}))


def test_a_batch_in_which_no_sample_has_the_stream_costs_nothing():
    assert average(torch.ones(3), torch.zeros(3)).item() == 0.0
    assert average(torch.tensor([1.0, 3.0]), None).item() == 2.0


def test_on_regularization_data_every_stream_learns_what_the_model_says_without_its_adapter():
    losses = told("flux")(0.0, extras={"sound": AUDIO}, is_regularization=True).losses

    assert {name: loss.item() for name, loss in losses.items()} == {"regularisation": 0.0, "sound": 0.0}
