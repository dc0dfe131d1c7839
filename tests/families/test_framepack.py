"""FramePack's sections: each sees in training what the stock pipeline shows it when all before it were drawn right."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from darkroom.core.errors import DataError
from darkroom.families.framepack import FORWARD, backward, forward
from darkroom.families.shared.model_spec import resolve_flavour
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
    if resolve_flavour(whole.family, flavour).published != FORWARD:
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

    found = [whole.family.slice_batch(given, whole.settings, draws) for _ in range(30)]

    assert {tuple(one.latents[0, 0, :, 0, 0].tolist()) for one in found} == {(1, 2), (3, 4), (5, 6)}
    assert all(torch.equal(one.mask, one.latents[:, :1]) for one in found)
    assert all(one.extras["latents_clean"][0, 0, 0, 0, 0] == -1 for one in found)


def test_a_clip_that_is_shorter_than_a_section_is_refused():
    whole = case("framepack", "tiny")
    clip = torch.zeros(1, 16, 2, 8, 8)
    with pytest.raises(DataError, match="a section of FramePack takes 3"):
        whole.family.slice_batch(batch([_sample(clip)], clip), whole.settings, torch.Generator())


def _sample(latents):
    return conformance.Sample(latents, latents, {}, (), None)


def test_one_frame_beside_its_picture_is_the_stock_pipelines_only_section():
    whole = case("framepack_one_frame", "tiny")
    ours, stock = whole.pipe(), case("framepack", "tiny").pipe()
    stock.register_modules(**{name: part for name, part in ours.components.items() if name != "scheduler"})
    sample = whole.sample(ours)
    call = whole.call(sample)
    plain = {name: value for name, value in call.items() if name not in ("places", "target", "window", "post")}
    drawn = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "latent", "return_dict": False}

    with Recorder(ours.transformer) as mine, torch.no_grad():
        ours(**call, **drawn, generator=torch.Generator().manual_seed(0))
    with Recorder(stock.transformer) as theirs, torch.no_grad():
        stock(
            **plain, **drawn, generator=torch.Generator().manual_seed(0), num_frames=1, latent_window_size=1,
            sampling_type="inverted_anti_drifting",
        )  # fmt: skip

    assert len(mine.calls) == len(theirs.calls) == 2
    for one, two in zip(mine.calls, theirs.calls, strict=True):
        assert conformance._difference(two, one) is None


@pytest.mark.parametrize(
    ("options", "clean", "own", "half"),
    [
        ({"framepack_latent_window_size": 9}, [0, 10], 9, 11),
        ({"framepack_latent_window_size": 9, "framepack_clean_indices": [0, 1]}, [0, 1, 10], 9, 11),
        (
            {"framepack_clean_indices": [0, 10], "framepack_target_index": 1, "framepack_no_post": True},
            [0, 10],
            1,
            3,
        ),
    ],
)
def test_pictures_and_frame_stand_where_the_options_say(options, clean, own, half):
    whole = case("framepack_one_frame", "tiny")
    settings = SimpleNamespace(**{**vars(whole.settings), **options})
    pictures = [torch.full((2, 16, 1, 8, 8), float(n)) for n in range(len(settings.framepack_clean_indices))]
    given = conformance.dataclasses.replace(
        batch([_sample(pictures[0][:1])] * 2, torch.zeros(2, 16, 1, 8, 8)), references=tuple(pictures)
    )

    found = whole.family.model_inputs(given, settings, torch.Generator())

    assert found["indices_latents_clean"].tolist() == clean
    assert found["indices_latents"].tolist() == [own]
    assert found["indices_latents_history_2x"][0] == half
    assert found["latents_clean"][0, 0, :, 0, 0].tolist()[: len(pictures)] == list(map(float, range(len(pictures))))
    with pytest.raises(DataError, match="references of their own size"):
        whole.family.model_inputs(conformance.dataclasses.replace(given, references=()), settings, torch.Generator())
