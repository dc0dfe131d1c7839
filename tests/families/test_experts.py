"""Two denoisers behind one call: who answers, what is trained, what is saved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from darkroom import families
from darkroom.families.shared.experts import Experts
from darkroom.objectives.denoise import build_flow_timesteps
from darkroom.options.config import Config
from tests.families import conformance


class Named(nn.Module):
    """Answers with its own number and the row's input."""

    def __init__(self, number: float):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(number))
        self.seen: list[int] = []

    def forward(self, hidden_states, timestep, encoder_hidden_states, note=None):
        self.seen.append(len(hidden_states))
        return (hidden_states + self.number * 100,)


@pytest.mark.parametrize("per_token", [False, True])
def test_each_row_goes_to_the_denoiser_of_its_noise_level_and_comes_back_in_its_place(per_token):
    high, low = Named(1.0), Named(2.0)
    pair = Experts({"transformer": high, "transformer_2": low}, boundary=875)
    times = torch.tensor([100.0, 875.0, 874.0, 990.0, 0.0])
    rows = torch.arange(5.0).view(5, 1)

    (found,) = pair(
        hidden_states=rows,
        timestep=times[:, None].expand(5, 3) if per_token else times,
        encoder_hidden_states=rows,
        note="kept",
    )

    assert found.flatten().tolist() == [200.0, 101.0, 202.0, 103.0, 204.0]
    assert (high.seen, low.seen) == ([2], [3])


def test_a_member_without_rows_is_not_called():
    high, low = Named(1.0), Named(2.0)
    pair = Experts({"transformer": high, "transformer_2": low}, boundary=875)

    pair(hidden_states=torch.zeros(2, 1), timestep=torch.tensor([900.0, 950.0]), encoder_hidden_states=None)

    assert (high.seen, low.seen) == ([2], [])


@pytest.mark.parametrize(
    ("flavour", "expected"),
    [("t2v-14b-2.2", (0, 1)), ("t2v-14b-2.2-high", (0.875, 1)), ("t2v-14b-2.2-low", (0, 0.875)), ("tiny", (0, 1))],
)
def test_a_lone_expert_is_trained_where_it_answers(flavour, expected):
    assert families.get("wan", flavour).spec.noise_range(conformance.options("wan", flavour)) == expected


@pytest.mark.parametrize(("flavour", "low", "high"), [("tiny-high", 0.6, 1.0), ("tiny-low", 0.0, 0.6)])
def test_the_boundary_of_the_run_holds(flavour, low, high):
    config = Config(model_family="wan", model_flavour=flavour, timestep_boundary=0.6)
    sampler = build_flow_timesteps(families.get("wan", flavour), config, {})

    drawn = sampler.draw(torch.zeros(500, 16, 1, 8, 8), torch.Generator().manual_seed(0))

    assert low <= drawn.min() < drawn.max() < high


def test_levels_that_the_host_knows_decide_without_a_look_at_the_device():
    high, low = Named(1.0), Named(2.0)
    pair = Experts({"transformer": high, "transformer_2": low}, boundary=875)
    # no numbers are known of tensors on this device
    rows, times = (torch.zeros(shape, device="meta") for shape in ((3, 1), (3,)))

    pair.to("meta")(
        hidden_states=rows, timestep=times, levels=torch.tensor([900.0, 1.0, 880.0]), encoder_hidden_states=rows
    )

    assert (high.seen, low.seen) == ([2], [1])
