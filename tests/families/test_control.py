"""What reaches a ControlNet, and the denoiser beside it, is what the stock pipeline gives them."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darkroom import families
from darkroom.families import tiny
from darkroom.families.base import Family
from darkroom.families.shared import latents as latent_space
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.conditioning import control_input_space, control_kwargs, filter_kwargs
from darkroom.families.shared.control import ControlNetDenoiser, wrap_denoiser
from darkroom.families.shared.controlled import ControlledDenoiser
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.families.shared.text_encoding import encode_captions
from tests.families import conformance
from tests.families.conformance import PROMPT, SIDE, STEPS, Case, Recorder

WITH_CONTROLNET = [name for name in families.names() if families.get(name).controlnet]
WITH_CHANNELS = [name for name in families.names() if families.get(name).control_channels]


@pytest.fixture(autouse=True)
def certain(monkeypatch):
    """Pipelines draw a control picture's latents from the posterior; here they take its mean, as the cache does."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


def settings_of(name: str, **way: bool) -> Any:
    return SimpleNamespace(**{**vars(conformance.options(name, "tiny")), **way, "controlnet_model_name_or_path": None})


def awake(module: nn.Module) -> None:
    """Give the layers that start at zero something to say."""
    draws = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1, generator=draws)


def control_of(case: Case, pipe: Any, settings: Any) -> tuple[Tensor, Any]:
    """A control picture as the data path caches it, and as the pipeline is given it."""
    pixels = conformance.photograph("coffee")
    picture = conformance.to_pil(pixels)
    if control_input_space(case.family, settings) == "pixels":
        return conformance.from_pil(picture), picture
    with torch.no_grad():
        return latent_space.encode(pipe.vae, conformance.from_pil(picture), case.facts), picture


def compared(name: str, family: Family | None = None, **way: bool) -> list[str | None]:
    """The differences of every call of every network in a short sampling without guidance."""
    family = family or families.get(name)
    case, settings = Case(family, "tiny"), settings_of(name, **way)
    pipe = tiny.build(family)
    model = wrap_denoiser(family, getattr(pipe, family.denoiser_component), settings).eval()
    awake(model)
    control, picture = control_of(case, pipe, settings)
    net = {"controlnet": model.controlnet} if isinstance(model, ControlNetDenoiser) else {}
    (entry,) = encode_captions(family, pipe, [PROMPT], settings)
    cls = find_class(family.spec.validation_pipeline(settings))
    parts = {**pipe.components, **net, **resolve_flavour(family, "tiny").components.settings}
    whole = cls(**{part: module for part, module in parts.items() if part in inspect.signature(cls).parameters})
    whole.set_progress_bar_config(disable=True)
    call = {
        **family.pipeline_kwargs_from_prompt(PROMPT, "", settings), **family.pipeline_kwargs(settings),
        **family.size_kwargs(SIDE, SIDE, settings),
        **control_kwargs(family, picture, SIDE, SIDE, settings), **resolve_flavour(family, "tiny").guidance_off,
    }  # fmt: skip
    networks = [*net.values(), model.denoiser]
    recorders = [Recorder(network) for network in networks]
    with ExitStack() as listening, torch.no_grad():
        for recorder in recorders:
            listening.enter_context(recorder)
        whole(
            **filter_kwargs(family, call, settings), num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0), output_type="latent",
        )  # fmt: skip
    stock = [recorder.calls for recorder in recorders]
    differences: list[str | None] = []
    for i, (*_, given) in enumerate(zip(*stock, strict=True)):
        t = conformance._noise_level(family, whole.scheduler, whole.scheduler.timesteps[i])
        x_t = conformance._latents_of(case, given, case.shape)
        cond = family.stack_text([entry]) | family.model_inputs(
            conformance.batch([sample_at(x_t)], x_t), settings, torch.Generator().manual_seed(0)
        )
        mine = [Recorder(network) for network in networks]
        with ExitStack() as listening, torch.no_grad():
            for recorder in mine:
                listening.enter_context(recorder)
            family.predict(
                ControlledDenoiser(model, family.spec.control(settings).network_input(control, family.to_pipeline)),
                x_t,
                t,
                cond,
            )
        differences += [
            conformance._difference(theirs[i], ours.calls[0]) for theirs, ours in zip(stock, mine, strict=True)
        ]
    return differences


def sample_at(x_t: Tensor) -> conformance.Sample:
    return conformance.Sample(x_t, x_t, {}, (), None)


@pytest.mark.parametrize("name", WITH_CONTROLNET)
def test_a_controlnet_is_given_what_the_pipeline_gives_it(name):
    differences = compared(name, controlnet=True)
    assert len(differences) == 2 * STEPS
    assert set(differences) == {None}


@pytest.mark.parametrize("name", WITH_CONTROLNET)
def test_a_control_picture_that_is_given_in_another_way_is_caught(name):
    cls = families.load(name)
    method = type(cls.controlnet)
    faint = type("Faint", (method,), {"network_input": lambda self, *args: method.network_input(self, *args) / 2})
    broken = {"controlnet": faint(**vars(cls.controlnet))}

    net, *_ = compared(name, type("Broken", (cls,), broken)(), controlnet=True)

    assert net is not None
    assert net.startswith(f"{cls.controlnet.input} differs")


@pytest.mark.parametrize("name", WITH_CONTROLNET)
def test_a_controlnet_is_trained_by_itself_also_after_a_pipeline_drew_with_it(name):
    family, settings = families.get(name), settings_of(name, controlnet=True)
    pipe = tiny.build(family)
    model = wrap_denoiser(family, getattr(pipe, family.denoiser_component), settings)
    own = list(model.controlnet.state_dict())
    cls = find_class(family.spec.validation_pipeline(settings))
    parts = {
        **pipe.components,
        "controlnet": model.copy_for_rendering(),
        **resolve_flavour(family, "tiny").components.settings,
    }

    whole = cls(**{part: module for part, module in parts.items() if part in inspect.signature(cls).parameters})

    held = {id(weight) for weight in model.controlnet.parameters()}
    assert list(model.controlnet.state_dict()) == own
    assert held <= {id(weight) for weight in whole.controlnet.parameters()}
    assert held.isdisjoint(id(weight) for weight in model.denoiser.parameters())


def test_a_new_controlnet_begins_with_the_layers_that_it_answers_to():
    family = families.get("z_image")
    denoiser = tiny.build(family, {"n_layers": 7}).transformer

    net = wrap_denoiser(family, denoiser, settings_of("z_image", controlnet=True)).controlnet

    assert net.config.control_layers_places == [0, 5]
    theirs, mine = denoiser.layers[5].state_dict(), net.control_layers[1].state_dict()
    assert all(torch.equal(weight, mine[key]) for key, weight in theirs.items())
    assert not net.control_layers[1].after_proj.weight.any()


def test_a_controlnet_that_also_takes_a_picture_to_fill_in_is_refused():
    settings = settings_of("z_image", controlnet=True)
    settings.controlnet_custom_config = {"control_in_dim": 33}

    with pytest.raises(ValueError, match="33 channels, an image to fill in among them"):
        wrap_denoiser(families.get("z_image"), tiny.build(families.get("z_image")).transformer, settings)


@pytest.mark.parametrize("name", WITH_CHANNELS)
def test_control_channels_are_those_that_the_pipeline_gives(name):
    differences = compared(name, control=True)
    assert len(differences) == STEPS
    assert set(differences) == {None}
