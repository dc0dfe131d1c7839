"""Three checks that hold a family to the stock diffusers pipeline, on a CPU, with random weights.

    call_parity     what reaches the denoiser in training is what the pipeline gives it
    latent_parity   what is cached reaches the pipeline's decoder as the VAE made it
    oracle          trained on one picture by the real step, the pipeline's own sampler finds that picture

Each returns None, or a sentence that says what differs. `python -m tests.families.conformance` prints the tables.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from darkroom import families
from darkroom.families import latents as latent_space
from darkroom.families import tiny
from darkroom.families.base import Family
from darkroom.objectives import denoise
from darkroom.objectives.base import Draws
from darkroom.optim.schedules import Scheduler, Shape
from darkroom.options.sources import resolve
from darkroom.train.step import Stepper

PROMPT, NEGATIVE = "a small red house", "fog"
SIDE = 64
STEPS = 3
IGNORED = frozenset({"return_dict"})
LEAST_CORRELATION = 0.95


@functools.cache
def options(name: str, **changes: Any) -> Any:
    """The options of a tiny run of the family."""
    argv = [f"--model_family={name}", "--model_flavour=tiny"]
    config = resolve(argv, {}, Path.cwd(), families.defaults, partial=True).config
    values = {field: getattr(config, field) for field in type(config).model_fields}
    # one guidance for both sides: what the pipeline is called with is what training is told
    values |= {"flux_guidance_mode": "constant", "flux_guidance_value": 3.0, "validation_guidance": 3.0}
    return SimpleNamespace(**values)


def batch(latents: Tensor) -> Any:
    """A training batch without text: uncropped pictures of the pipeline's size."""
    count, (height, width) = len(latents), latents.shape[-2:]
    scale = SIDE // height
    size = torch.tensor([[height * scale, width * scale]] * count)
    return SimpleNamespace(
        latents=latents,
        original_sizes=size,
        target_sizes=size,
        crops=torch.zeros(count, 2, dtype=torch.long),
        is_regularisation=False,
    )


class Recorder:
    """Collects the arguments of every call of a module, bound to their names."""

    def __init__(self, module: torch.nn.Module):
        self.module, self.calls = module, []
        self._plain = module.forward
        self._signature = inspect.signature(self._plain)

    def __enter__(self) -> Recorder:
        def forward(*args: Any, **kwargs: Any) -> Any:
            bound = self._signature.bind(*args, **kwargs).arguments
            self.calls.append({k: v for k, v in bound.items() if k not in IGNORED and not _is_empty(v)})
            return self._plain(*args, **kwargs)

        self.module.forward = forward
        return self

    def __exit__(self, *_: object) -> None:
        self.module.forward = self._plain


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and not value)


# -- call parity ------------------------------------------------------------------------------------------------------


def call_parity(family: Family) -> str | None:
    """Compare every argument of the denoiser at every noise level of a short sampling, with and without a negative."""
    pipe, settings = tiny.build(family), options(family.name)
    model = getattr(pipe, family.denoiser_part)
    for negative in (NEGATIVE, ""):
        entries = family.text_entries(pipe, [PROMPT, negative], settings)
        if problem := _sampling_differs(family, pipe, model, entries, negative, settings):
            return problem
    return _batch_differs(family, model, entries, settings)


def _sampling_differs(
    family: Family, pipe: Any, model: Any, entries: list[dict[str, Tensor]], negative: str, settings: Any
) -> str | None:
    with Recorder(model) as stock, torch.no_grad():
        pipe(
            **family.prompt_call(PROMPT, negative, settings),
            **(family.call(settings) | _real_guidance(family)),
            width=SIDE, height=SIDE, num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0), output_type="latent",
        )  # fmt: skip
    calls_per_step = len(stock.calls) // STEPS
    for i, call in enumerate(stock.calls):
        t = _noise_level(family, pipe.scheduler.timesteps[i // calls_per_step])
        for row, given in enumerate(_rows(call)):
            x_t = _latents_of(family, given)
            mine = [_predicted_call(family, model, x_t, t, entry, settings) for entry in entries]
            differences = [_difference(given, m) for m in mine]
            if all(differences):
                return f"call {i}, row {row}: {differences[0]}"
    return None


def _real_guidance(family: Family) -> dict[str, Any]:
    return {"true_cfg_scale": 2.0} if "true_cfg_scale" in family.call(options(family.name)) else {}


def _noise_level(family: Family, timestep: Tensor) -> Tensor:
    return timestep[None] / 1000 if family.prediction == "flow_matching" else timestep[None]


def _rows(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One call per sample of the batch; arguments without a batch axis are repeated."""
    count = len(next(v for v in call.values() if isinstance(v, Tensor) and v.ndim >= 3))

    def row(value: Any, i: int) -> Any:
        if isinstance(value, dict):
            return {k: row(v, i) for k, v in value.items()}
        has_batch = isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
        return value[i : i + 1] if has_batch else value

    for i in range(count):
        yield {name: row(value, i) for name, value in call.items()}


def _latents_of(family: Family, call: dict[str, Any]) -> Tensor:
    first = next(iter(call.values()))
    side = SIDE // family.latents.downscale
    return family.from_pipeline(first, side, side)


def _condition(family: Family, x_t: Tensor, entries: list[dict[str, Tensor]], settings: Any) -> dict[str, Tensor]:
    return family.stack_text(entries) | family.conditions(batch(x_t), settings, torch.Generator().manual_seed(0))


def _predicted_call(
    family: Family, model: Any, x_t: Tensor, t: Tensor, entry: dict[str, Tensor], settings: Any
) -> dict[str, Any]:
    with Recorder(model) as mine, torch.no_grad():
        family.predict(model, x_t, t, _condition(family, x_t, [entry], settings))
    (call,) = mine.calls
    return call


def _difference(stock: dict[str, Any], mine: dict[str, Any]) -> str | None:
    if stock.keys() != mine.keys():
        return f"arguments {sorted(stock.keys() ^ mine.keys())} are on one side only"
    for name, theirs in stock.items():
        if problem := _value_difference(theirs, mine[name]):
            return f"{name} {problem}"
    return None


def _value_difference(theirs: Any, ours: Any) -> str | None:
    if isinstance(theirs, dict):
        return _difference(theirs, ours)
    if not isinstance(theirs, Tensor):
        return None if theirs == ours else f"is {ours!r}, not {theirs!r}"
    theirs = theirs.expand(ours.shape) if theirs.ndim == 0 else theirs
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return f"is {tuple(ours.shape)} {ours.dtype}, not {tuple(theirs.shape)} {theirs.dtype}"
    if not torch.allclose(theirs.double(), ours.double(), rtol=1e-6, atol=1e-6):
        return f"differs by up to {(theirs.double() - ours.double()).abs().max():.3g}"
    return None


def _batch_differs(family: Family, model: Any, entries: list[dict[str, Tensor]], settings: Any) -> str | None:
    """A batch of two must answer as its samples do alone."""
    side = SIDE // family.latents.downscale
    x_t = torch.randn(2, family.latents.channels, side, side, generator=torch.Generator().manual_seed(1))
    t = _noise_level(family, torch.tensor(500.0 if family.prediction == "flow_matching" else 500)).expand(2)
    with torch.no_grad():
        both = family.predict(model, x_t, t, _condition(family, x_t, entries, settings))
        alone = [
            family.predict(model, x_t[i : i + 1], t[i : i + 1], _condition(family, x_t[i : i + 1], [entry], settings))
            for i, entry in enumerate(entries)
        ]
    gap = (both - torch.cat(alone)).abs().max().item()
    return f"a batch differs from its samples by {gap:.3g}" if gap > 1e-4 else None


# -- latent parity ----------------------------------------------------------------------------------------------------


def picture(side: int = SIDE) -> Tensor:
    """A real photograph, (1, 3, side, side) in -1..1."""
    import numpy as np
    from PIL import Image
    from skimage import data

    image = Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def latent_parity(family: Family) -> str | None:
    """Hand a picture's cached latents to the pipeline as its last step's result and watch its decoder."""
    pipe, settings = tiny.build(family), options(family.name)
    cached = latent_space.encode(pipe.vae, picture(), family.latents)
    with torch.no_grad():
        encoded = pipe.vae.encode(picture()).latent_dist.mode()
    seen: list[Tensor] = []
    plain = pipe.vae.decode

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(z)
        return plain(z, *args, **kwargs)

    pipe.vae.decode = decode
    pipe(
        **family.prompt_call(PROMPT, "", settings), **family.call(settings), width=SIDE, height=SIDE,
        num_inference_steps=1, callback_on_step_end=lambda *_: {"latents": family.to_pipeline(cached)},
    )  # fmt: skip
    if seen[-1].shape != encoded.shape:
        return f"the decoder was given {tuple(seen[-1].shape)}, not {tuple(encoded.shape)}"
    gap = (seen[-1] - encoded).abs().max().item() / encoded.std().item()
    return f"the decoder was given latents that differ by {gap:.3g} standard deviations" if gap > 1e-4 else None


# -- the one-picture oracle -------------------------------------------------------------------------------------------


def correlation(family: Family, steps: int = 500, size: int = 8, rate: float = 3e-3) -> float:
    """Train on one picture's latents, sample with the stock pipeline, and correlate the two."""
    torch.manual_seed(0)
    pipe, settings = tiny.build(family, family.tiny.oracle), options(family.name)
    model = getattr(pipe, family.denoiser_part)
    x0 = latent_space.encode(pipe.vae, picture(), family.latents)
    x0 = (x0 - x0.mean()) / x0.std()
    (entry,) = family.text_entries(pipe, [PROMPT], settings)
    _fit(family, model, pipe.scheduler.config, x0.expand(size, -1, -1, -1), [entry] * size, settings, steps, rate)
    calm = {"guidance_scale": 1.0} if not family.guidance_input else {}
    sampled = pipe(
        **family.prompt_call(PROMPT, "", settings), **(family.call(settings) | calm), width=SIDE, height=SIDE,
        num_inference_steps=20, generator=torch.Generator().manual_seed(1), output_type="latent",
    ).images  # fmt: skip
    found = family.from_pipeline(sampled, *x0.shape[-2:])
    return torch.corrcoef(torch.stack([found.flatten(), x0.flatten()]))[0, 1].item()


def _fit(
    family: Family, model: Any, scheduler: Any, x0: Tensor, entries: list, settings: Any, steps: int, rate: float
) -> None:
    """The real training step, on one batch over and over."""
    from accelerate import Accelerator

    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    settings = SimpleNamespace(**{**vars(settings), "grad_clip_method": "norm", "max_grad_norm": 1.0})
    draws = Draws(torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
    stepper = Stepper(
        engine=Accelerator(cpu=True),
        model=model,
        parameters=parameters,
        objective=denoise.build(family, settings, dict(scheduler), draws, nullcontext),
        optimizer=optimizer,
        scheduler=Scheduler(optimizer, "linear", Shape(0, steps)),
        ema=None,
        options=settings,
    )
    fixed = SimpleNamespace(**vars(batch(x0)), cond=family.stack_text(entries), paths=["one"], mask=None)
    for step in range(steps):
        stepper([fixed], step)
    model.eval()


def oracle(family: Family) -> str | None:
    """The sampled latents must be the picture's."""
    found = correlation(family)
    return f"the sampled latents correlate {found:.3f} with the picture's" if found < LEAST_CORRELATION else None


CHECKS = {"call parity": call_parity, "latent parity": latent_parity, "oracle": oracle}
