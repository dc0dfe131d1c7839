"""The ordinary objective with a network that answers as it is told: which weight, which draw, which input."""

from __future__ import annotations

import dataclasses
import traceback
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from darkroom import families
from darkroom.core.errors import DataError, UserError
from darkroom.data.batches.batch import Batch
from darkroom.diffusion.noise import derive_seed
from darkroom.families.base import LATENTS
from darkroom.objectives import denoise
from darkroom.objectives.base import Generators
from darkroom.options.config import Config

FLOW = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
SHAPES = {"flux": (4, 16, 8, 8), "sdxl": (4, 4, 8, 8)}


def batch_of(latents: Tensor, **fields: Any) -> Batch:
    """A batch without text."""
    count = len(latents)
    sizes = torch.zeros(count, 2, dtype=torch.long)
    unsaid = [""] * count
    never = torch.zeros(count, dtype=torch.bool)
    return Batch(latents, {}, unsaid, unsaid, sizes, sizes, sizes, never, "", **fields)


@dataclasses.dataclass
class Told:
    """An objective whose network answers `answer(x_t, t)`, and what it was shown."""

    objective: Any
    shape: tuple[int, ...]
    streams_shown: list[tuple[dict[str, Tensor], Tensor]] = dataclasses.field(default_factory=list)

    @property
    def shown(self) -> list[tuple[Tensor, Tensor]]:
        """x_t and t of the first stream, by call."""
        return [(x_t[LATENTS], t) for x_t, t in self.streams_shown]

    def __call__(self, latents: float | Tensor = 0.0, step: int = 0, answer=None, **extra: Any) -> Any:
        conditions = extra.pop("conditions", {})

        def predict_streams(_: Any, model: Any, x_t: dict[str, Tensor], t: Tensor, cond: Any) -> dict[str, Tensor]:
            self.streams_shown.append((x_t, t))
            main = torch.zeros_like(x_t[LATENTS]) if answer is None else answer(x_t[LATENTS], t)
            return {**x_t, LATENTS: main}

        members = {
            "extra_streams": {name: name for name in extra.get("extras", {}).keys() & {"sound"}},
            "audio": SimpleNamespace(predict=predict_streams),
            "model_inputs": lambda *_: conditions,
        }
        family = type("Told", (type(self.objective.family),), members)()
        x0 = latents if isinstance(latents, Tensor) else torch.full(self.shape, latents)
        return dataclasses.replace(self.objective, family=family)(None, batch_of(x0, **extra), step)


def told(name: str, scheduler: dict[str, Any] | None = None, seed: int = 0, **options: Any) -> Told:
    generators = Generators(seed)
    config = Config(model_family=name, **options)
    usual = FLOW if name == "flux" else {}
    return Told(
        denoise.build(
            families.get(name, config.model_flavour),
            config,
            usual if scheduler is None else scheduler,
            generators,
            nullcontext,
        ),
        SHAPES[name],
    )


@pytest.mark.parametrize("name", SHAPES)
def test_the_right_answer_costs_nothing(name):
    run = told(name)
    x0 = torch.randn(SHAPES[name])

    def answer(x_t: Tensor, t: Tensor) -> Tensor:
        process = run.objective.process
        if name == "flux":
            return (x_t - x0) / t.view(-1, 1, 1, 1)
        return (x_t - process.mix(x0, torch.zeros_like(x0), t)) / (1 - process.schedule.alpha_bar[t]).sqrt().view(
            -1, 1, 1, 1
        )

    assert run(x0, answer=answer).losses["denoise"].item() < 1e-6


@pytest.mark.parametrize("name", SHAPES)
def test_a_silent_network_pays_the_variance_of_the_noise(name):
    assert told(name)(0.0).losses["denoise"].item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", SHAPES)
def test_the_generators_alone_decide_a_batch(name):
    first, again = told(name), told(name)
    torch.manual_seed(1)
    a = first(1.0)
    torch.manual_seed(2)

    assert torch.equal(a.sample_losses, again(1.0).sample_losses)
    assert not torch.equal(a.sample_losses, first(1.0).sample_losses)


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({"snr_gamma": 5.0}, lambda snr: torch.clamp(snr, max=5) / snr),
        ({"use_soft_min_snr": True}, lambda snr: 5 / (snr + 5)),
        ({"use_soft_min_snr": True, "soft_min_snr_sigma_data": 0.5}, lambda snr: 4 / (snr + 4)),
        ({"snr_weight": 0.5}, lambda snr: torch.full_like(snr, 0.5)),
        ({"snr_gamma": 5.0, "prediction_type": "v_prediction"}, lambda snr: torch.clamp(snr, max=5) / (snr + 1)),
    ],
)
def test_errors_are_weighted_by_noise_level(options, weight):
    plain = told("sdxl", **{k: v for k, v in options.items() if k == "prediction_type"})
    weighted = told("sdxl", **options)

    before, after = plain(1.0), weighted(1.0)

    (_, t) = weighted.shown[0]
    torch.testing.assert_close(after.sample_losses / before.sample_losses, weight(weighted.objective.process.snr(t)))


def test_the_checkpoint_says_what_it_predicts_unless_the_option_does():
    published = {"prediction_type": "v_prediction"}

    assert told("sdxl", published).objective.process.prediction == "v_prediction"
    assert told("sdxl", published, prediction_type="epsilon").objective.process.prediction == "epsilon"
    assert told("sdxl").objective.process.prediction == "epsilon"
    assert told("flux").objective.process.prediction == "flow_matching"


def test_huber_uses_the_noise_level_of_each_sample():
    run = told("flux", loss_type="huber", huber_c=0.1, huber_schedule="exponential")

    output = run(0.0)

    c = 0.1**output.noise_levels
    assert output.sample_losses.shape == (4,)
    assert torch.all(output.sample_losses < 2 * c * 2)
    assert output.noise_levels[output.sample_losses.argmax()] == output.noise_levels.min()


def test_offset_noise_moves_the_mean_of_every_channel():
    def spread(**options: Any) -> float:
        run = told("sdxl", **options)
        run(0.0)
        (x_t, t) = run.shown[0]
        noise = x_t / (1 - run.objective.process.schedule.alpha_bar[t]).sqrt().view(-1, 1, 1, 1)
        return noise.mean((-1, -2)).std().item()

    # the mean of 64 positions has deviation 1/8
    assert spread() < 0.2
    assert spread(offset_noise=True, noise_offset=1.0, noise_offset_probability=1.0) > 0.6


def test_perturbation_changes_the_input_and_not_the_target():
    calm, shaken = told("sdxl"), told("sdxl", input_perturbation=0.5, input_perturbation_steps=10)

    first, second = calm(0.0), shaken(0.0)

    assert not torch.equal(calm.shown[0][0], shaken.shown[0][0])
    assert torch.equal(first.sample_losses, second.sample_losses)


def test_perturbation_is_over_after_its_steps():
    calm, shaken = told("sdxl"), told("sdxl", input_perturbation=0.5, input_perturbation_steps=10)

    calm(0.0, step=10)
    shaken(0.0, step=10)

    assert torch.equal(calm.shown[0][0], shaken.shown[0][0])


def test_a_mask_leaves_out_what_it_covers():
    mask = torch.zeros(4, 1, 8, 8)

    assert told("flux")(1.0, mask=mask).losses["denoise"].item() == 0.0


@pytest.mark.parametrize(
    ("options", "k"),
    [
        ({}, 3.0),
        ({"flow_schedule_shift": 1.5}, 1.5),
        ({"flow_schedule_shift": 0.0}, 1.0),
        # 16 tokens lie below the first point of the line: mu = 0.5 - 240 * 0.65 / 3840 = 0.459375
        ({"flow_schedule_auto_shift": True}, 1.583084),
    ],
)
def test_levels_are_shifted_as_the_options_say(options, k):
    def levels(**options: Any) -> Tensor:
        return told("flux", **options).objective.timesteps.draw(torch.zeros(64, 16, 8, 8), Generator().manual_seed(3))

    plain = levels(flow_schedule_shift=1.0)

    torch.testing.assert_close(levels(**options), k * plain / (1 + (k - 1) * plain), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({"flow_use_uniform_schedule": True}, 0.5),
        ({"flow_use_beta_schedule": True, "flow_beta_schedule_alpha": 6.0, "flow_beta_schedule_beta": 2.0}, 0.75),
        ({"flow_sigmoid_scale": 0.0}, 0.5),
        ({"flux_fast_schedule": True}, 0.85),
    ],
)
def test_each_sampler_is_chosen_by_its_option(options, mean):
    timesteps = told("flux", flow_schedule_shift=1.0, **options).objective.timesteps

    drawn = timesteps.draw(torch.zeros(4000, 16, 1, 1), Generator().manual_seed(3))

    assert drawn.mean().item() == pytest.approx(mean, abs=0.02)


def drawn(generators: Generators) -> list[float]:
    """A number of each generator: noise levels, noise, dropout."""
    rows = (generators.structure, generators.noise, None)
    return [torch.rand((), generator=generator).item() for generator in rows]


def test_a_step_draws_the_same_whatever_was_drawn_before_it_and_in_every_process_something_else():
    whole, resumed, other_rank, other_seed = (Generators(*given) for given in ((1, 0), (1, 0), (1, 1), (2, 0)))
    for step in range(3):
        whole.start_step(step)
        torch.rand(3, generator=whole.noise)

    found = []
    for generators, step in ((whole, 3), (resumed, 3), (other_rank, 3), (other_seed, 3), (resumed, 4)):
        generators.start_step(step)
        found.append(drawn(generators))

    assert found[0] == found[1]
    assert len({number for numbers in found[1:] for number in numbers}) == 12


def test_a_step_is_seeded_as_torch_would_without_a_look_at_the_stack(monkeypatch):
    generators = Generators(1)
    torch.manual_seed(derive_seed(1, 0, 3, 7))
    expected = torch.rand(3)

    monkeypatch.setattr(traceback, "format_stack", lambda: pytest.fail("what torch notes down for missing devices"))
    generators.start_step(7)

    assert torch.equal(torch.rand(3), expected)
    generators.start_update(7)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_a_step_seeds_every_device_of_the_machine(kind, monkeypatch):
    seeds = []
    devices = torch.backends.mps if kind == "mps" else getattr(torch, kind)
    monkeypatch.setattr(devices, "is_available", lambda: True)
    monkeypatch.setattr(getattr(torch, kind), "manual_seed" if kind == "mps" else "manual_seed_all", seeds.append)

    Generators(1).start_step(7)

    assert seeds == [derive_seed(1, 0, 3, 7)]


def test_an_update_draws_the_same_in_every_process():
    numbers = []
    for rank in (0, 1):
        generators = Generators(1, rank)
        generators.start_step(3)
        torch.rand(rank + 1)
        generators.start_update(3)
        numbers.append(torch.rand(3).tolist())
    assert numbers[0] == numbers[1]


def test_a_mask_takes_its_part_out_of_the_loss():
    left = (torch.arange(SHAPES["flux"][-1]) < SHAPES["flux"][-1] // 2).float()
    whole, half = told("flux")(0.0), told("flux")(0.0, mask=left)
    assert half.losses["denoise"] < 0.6 * whole.losses["denoise"]
    assert told("flux")(0.0, mask=torch.zeros(1)).losses["denoise"] == 0


def test_an_offset_of_a_dataset_moves_its_noise_levels():
    usual, cleaner = told("flux"), told("flux")
    usual()
    cleaner(timestep_offset=-2.0)
    expected = torch.sigmoid(torch.logit(usual.shown[0][1]) - 2.0)
    torch.testing.assert_close(cleaner.shown[0][1], expected, atol=1e-4, rtol=1e-3)


def test_an_offset_is_refused_where_nothing_normal_is_drawn():
    with pytest.raises(DataError, match="timestep_sampling_offset"):
        told("sdxl")(timestep_offset=1.0)


@pytest.mark.parametrize(
    ("more", "low", "high"), [({}, 0.0, 0.3), ({"refiner_training_invert_schedule": True}, 0.3, 1.0)]
)
@pytest.mark.parametrize("name", SHAPES)
def test_refiner_training_divides_the_noise_range(name, more, low, high):
    run = told(name, refiner_training=True, refiner_training_strength=0.3, **more)
    whole = 1 if name == "flux" else 1000

    for _ in range(30):
        run()

    levels = torch.cat([t for _, t in run.shown]) / whole
    assert low <= levels.min() < levels.max() < high


def test_a_range_without_noise_levels_is_an_error():
    with pytest.raises(UserError, match=r"refiner_training_strength = 0\.3"):
        told(
            "wan",
            model_flavour="tiny-high",
            timestep_boundary=0.875,
            refiner_training=True,
            refiner_training_strength=0.3,
        )


def test_what_is_given_without_noise_is_shown_clean_and_not_counted():
    run = dataclasses.replace(told("flux"), shape=(2, 16, 3, 4, 4))
    shares = torch.ones(2, 1, 3, 1, 1)
    shares[0, :, 0] = 0
    shares[1, :, 0] = 0.5

    def wrong_in_the_first_frame(x_t: Tensor, t: Tensor) -> Tensor:
        answer = x_t / t.view(-1, 1, 1, 1, 1)
        answer[:, :, 0] = 100.0
        return answer

    output = run(0.0, conditions={"noisy": shares}, answer=wrong_in_the_first_frame)
    ((x_t, t),) = run.shown
    assert not x_t[0, :, 0].any()
    level = x_t.flatten(3).std(dim=(1, 3))
    assert torch.allclose(level[1] / t[1], torch.tensor([0.5, 1.0, 1.0]), atol=0.15)
    assert output.sample_losses[0] < 1e-6 < output.sample_losses[1]


def test_a_frame_without_noise_leaves_the_mean_of_the_others():
    run = dataclasses.replace(told("flux"), shape=(2, 16, 3, 4, 4))
    shares = torch.ones(2, 1, 3, 1, 1)
    shares[:, :, 0] = 0
    assert run(0.0, conditions={"noisy": shares}).losses["denoise"].item() == pytest.approx(1.0, abs=0.1)
