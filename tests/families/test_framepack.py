"""FramePack's sections: each sees in training what the stock pipeline shows it when all before it were drawn right."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from darkroom.core.errors import DataError
from darkroom.families.framepack import FORWARD, backward, forward
from tests.families import conformance
from tests.families.conformance import Recorder, batch, case

WINDOW = 2


@pytest.mark.parametrize("sections", [1, 2, 4, 6])
@pytest.mark.parametrize("flavour", ["tiny", "tiny-f1"])
def test_every_section_sees_what_the_pipeline_shows_it(flavour, sections):
    whole = case("framepack", flavour)
    pipe = whole.pipe()
    clip = torch.randn(1, 16, 1 + sections * WINDOW, 8, 8, generator=torch.Generator().manual_seed(3))
    order = list(range(sections))
    if whole.family.published(flavour) != FORWARD:
        order.reverse()
    true = itertools.cycle(clip[:, :, 1 + n * WINDOW : 1 + (n + 1) * WINDOW] for n in order)
    pipe.scheduler.step = lambda *_, **__: SchedulerOutput(prev_sample=next(true)).to_tuple()
    call = {**whole.call(whole.sample(pipe)), "num_frames": sections * ((WINDOW - 1) * 4 + 1)}

    start = SimpleNamespace(sample=lambda **_: clip[:, :, :1] / pipe.vae.config.scaling_factor)
    pipe.vae.encode = lambda _: SimpleNamespace(latent_dist=start)

    with Recorder(pipe.transformer) as stock, torch.no_grad():
        pipe(prompt="a cat", **call, num_inference_steps=1, output_type="latent")

    assert len(stock.calls) == sections
    for number, seen in zip(order, stock.calls, strict=True):
        mine = (forward if flavour == "tiny-f1" else backward)(clip, number, sections, WINDOW)
        assert {name for name in seen if name.startswith(("latents_", "indices_"))} == mine.keys()
        for name, value in mine.items():
            torch.testing.assert_close(value, seen[name].to(value))


def test_all_sections_are_trained_and_masks_go_with_them():
    whole = case("framepack", "tiny")
    clip = torch.arange(7.0).view(1, 1, 7, 1, 1).expand(1, 16, 7, 8, 8)
    extras = {"image": torch.zeros(1, 5, 32), "start": torch.full((1, 16, 1, 8, 8), -1.0)}
    given = conformance.dataclasses.replace(batch([_sample(clip)], clip), extras=extras, mask=clip[:, :1])
    draws = torch.Generator().manual_seed(0)

    found = [whole.family.portion(given, whole.settings, draws) for _ in range(30)]

    assert {tuple(one.latents[0, 0, :, 0, 0].tolist()) for one in found} == {(1, 2), (3, 4), (5, 6)}
    assert all(torch.equal(one.mask, one.latents[:, :1]) for one in found)
    assert all(one.extras["latents_clean"][0, 0, 0, 0, 0] == -1 for one in found)


def test_a_clip_that_is_shorter_than_a_section_is_refused():
    whole = case("framepack", "tiny")
    clip = torch.zeros(1, 16, 2, 8, 8)
    with pytest.raises(DataError, match="a section of FramePack takes 3"):
        whole.family.portion(batch([_sample(clip)], clip), whole.settings, torch.Generator())


def _sample(latents):
    return conformance.Sample(latents, latents, {}, (), None)
