"""Four checks of a family's flavour on a CPU, with random weights, three of which hold it to the stock pipeline.

    call_parity     what reaches the denoiser in training is what the pipeline gives it
    latent_parity   what is cached reaches the pipeline's decoder as the VAE made it
    padding         what the text's mask hides changes nothing of the prediction, and what it shows does
    oracle          trained on one sample by the real step, the pipeline's own sampler finds that sample

Each takes a case, a family with one of its tiny flavours, and returns None, or a sentence that says what differs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_plus,
    pipeline_qwenimage_layered,
)
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from darkroom import families
from darkroom.data.batches.batch import Batch
from darkroom.families import deepfloyd, tiny
from darkroom.families.base import LATENTS, Family, predict_streams
from darkroom.families.shared import latents as latent_space
from darkroom.families.shared.audio import encode_batch_audio
from darkroom.families.shared.audio_stream import AudioSpec
from darkroom.families.shared.conditioning import control_kwargs, images_kwargs, select_pipeline
from darkroom.families.shared.experts import Experts, use_single_expert
from darkroom.families.shared.model_spec import tiny_names
from darkroom.families.shared.pixels import PixelSpace
from darkroom.families.shared.spec import Latents
from darkroom.families.shared.text_encoding import encode_caption_with_images, encode_captions
from darkroom.memory import checkpointing
from darkroom.objectives import denoise
from darkroom.objectives.base import Generators
from darkroom.optim.schedules import Scheduler, ScheduleShape
from darkroom.options.config import Config
from darkroom.options.sources import resolve
from darkroom.train.step import Stepper

PROMPT, NEGATIVE = "a small red house", "fog"
SIDE, FEW = 64, 16
STEPS = 3
IGNORED = frozenset({"return_dict"})
LEAST_CORRELATION = 0.95
# width and height of a reference, another shape than the picture's
REFERENCE = (128, 64)


# OmniGen's own reader of prompts, whose pictures nobody reads here, also without torchvision
vars(processor_omnigen).setdefault("transforms", MagicMock())
pipeline_omnigen.OmniGenMultiModalProcessor = processor_omnigen.OmniGenMultiModalProcessor


# these pipelines make a million pixels of any picture, or half of one; here fewer
for editing in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus, pipeline_qwenimage_layered):
    editing.calculate_dimensions = functools.partial(
        lambda plain, area, ratio: plain(min(area, SIDE**2), ratio), editing.calculate_dimensions
    )


# what stage II of DeepFloyd enlarges gets the same noise on both sides, none: each draws its own. Its share stays
PLAIN_NOISE = deepfloyd.draw_noise
deepfloyd.draw_noise = lambda pictures, generator: torch.zeros_like(pictures)


# -- cases ------------------------------------------------------------------------------------------------------------


@functools.cache
def options(name: str, flavour: str) -> Config:
    """The options of a tiny run of the flavour."""
    argv = [f"--model_family={name}", f"--model_flavour={flavour}"]
    config = resolve(argv, {}, Path.cwd(), families.defaults, partial=True).config
    # one guidance for both sides: what the pipeline is called with is what training is told
    values = {"flux_guidance_mode": "constant", "flux_guidance_value": 3.0, "validation_guidance": 3.0}
    # a sampling from noise, as the others are
    values |= {"sdxl_refiner_uses_full_range": True}
    # one level of noise on both sides
    values |= {"deepfloyd_noise_level": 300}
    # first frames as the pipelines give them
    values |= {"ltx_protect_first_frame": True}
    return config.model_copy(update=values)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample as training has it, and the PIL pictures that the pipeline is given to start from."""

    pixels: Tensor  # (1, 3, H, W) or (1, 3, F, H, W) in -1..1
    latents: Tensor  # (1, C, h, w) or (1, C, F, h, w)
    extras: dict[str, Tensor]
    references: tuple[Tensor, ...]
    given: list[Any]
    controls: tuple[Tensor, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """A family, whole or broken on purpose, and the tiny flavour that is checked."""

    family: Family
    flavour: str
    started: bool = False  # by the pipeline for prompts that bring a picture
    changes: tuple[tuple[str, Any], ...] = ()  # of its options

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", type(self.family)(self.flavour))

    @property
    def settings(self) -> Config:
        return options(self.family.name, self.flavour).model_copy(update=dict(self.changes))

    @property
    def facts(self) -> Latents:
        return self.family.spec.latents

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's latents."""
        return self.facts.shape(self.side, self.side, self.frames)

    @property
    def side(self) -> int:
        """Pixels along an edge of the sample: few where pixels themselves are denoised."""
        return max(SIDE, int(self.settings.resolution)) if self.facts.downscale > 1 else FEW

    @property
    def frames(self) -> int:
        """Frames of the sample: the shortest clip with more than one latent frame, or a picture with its layers."""
        if self.facts.layered:
            return 1 + self.settings.validation_num_layers
        if "video" not in self.family.spec.supports:
            return 1
        shortest = max(self.family.spec.min_frames(self.settings), 1 + self.family.spec.frame_step(self.settings))
        return max(shortest, self.settings.validation_num_video_frames)

    def trained(self, sample: Sample) -> Tensor:
        """What a step trains of a sample's latents."""
        return self.family.slice_batch(batch([sample], sample.latents), self.settings, torch.Generator()).latents

    def given_frames(self, sample: Sample) -> list[int]:
        """The latent frames of what is trained that are given and have no noise."""
        draws = torch.Generator().manual_seed(0)
        whole = self.family.slice_batch(batch([sample], sample.latents, self.started), self.settings, draws)
        shares = self.family.model_inputs(whole, self.settings, draws).get("noisy")
        return [] if shares is None else (shares.flatten() == 0).nonzero().flatten().tolist()

    def pipe(self, **denoiser: Any) -> Any:
        """The tiny pipeline. One that cleans prompts by an optional package cleans none of ours without it."""
        pipe = tiny.build(self.family, denoiser, self.flavour)
        self.family.prepare(pipe, self.side, self.side, self.settings)
        if hasattr(pipe, "vae"):
            _encode_to_means(pipe.vae)
        pipe = select_pipeline(self.family, pipe, self.started, self.settings)
        if hasattr(pipe, "image_noising_scheduler"):
            noised = pipe.image_noising_scheduler.add_noise
            pipe.image_noising_scheduler.add_noise = lambda z, noise, **level: noised(z, noise * 0, **level)
        if hasattr(pipe, "normalize_first_frame"):
            # how drawn clips are mended afterwards is not what the network says
            pipe.normalize_first_frame = lambda latents: latents
        vars(sys.modules[type(pipe).__module__]).setdefault("ftfy", SimpleNamespace(fix_text=str))
        return pipe

    def model(self, pipe: Any) -> Any:
        """What is trained of the pipeline: a denoiser, or all experts; an expert apart answers at every noise level."""
        held, trained = (
            self.family.spec.denoisers,
            self.family.spec.trained,
        )
        if len(held) == 1:
            return getattr(pipe, held[0])
        if trained == held:
            return Experts({part: getattr(pipe, part) for part in held}, self.settings.timestep_boundary * 1000)
        if pipe.components[held[1]] is not None:
            use_single_expert(pipe, held, trained[0])
        return getattr(pipe, held[0])

    def sample(self, pipe: Any, name: str = "astronaut") -> Sample:
        """A photograph, or a camera moving over it, encoded as the job encodes it."""
        vae = getattr(pipe, "vae", None) or PixelSpace()
        parts = SimpleNamespace(vae=lambda: vae, extra=lambda part: getattr(pipe, part), latents=self.facts)
        if self.frames > 1:
            pixels = layers(name, self.frames) if self.facts.layered else clip(name, self.frames, self.side)
        else:
            pixels = photograph(name, self.side, self.side)
        x0 = latent_space.encode(vae, pixels, self.facts)
        extras = self.family.sample_entries(parts, pixels, x0, self.settings)
        extras |= encode_batch_audio(
            self.family, parts, [tone(self.family.audio and self.family.audio.format)], self.frames, self.settings
        )
        references: tuple[Tensor, ...] = ()
        wanted = max(1, self.family.image_counts(self.settings)[0])
        given = [pixels] if pixels.ndim == 4 else [pixels[:, :, frame] for frame in (0, -1)[:wanted]]
        if "references" in self.family.spec.supports:
            given = [photograph("coffee", *REFERENCE)]
            seen = self.family.image_kwargs(to_pil(given[0]), SIDE, SIDE, self.settings)["image"]
            references = (latent_space.encode(vae, from_pil(seen), self.facts),)
        controls: tuple[Tensor, ...] = ()
        if self.family.spec.control(self.settings):
            starts = given if wanted > 1 else []
            given = [photograph("coffee", self.side, self.side), *starts[:1]]
            shown = given[0].unsqueeze(2).expand(-1, -1, self.frames, -1, -1) if self.facts.temporal else given[0]
            controls = (latent_space.encode(vae, shown, self.facts),)
        return Sample(pixels, x0, extras, references, [to_pil(picture) for picture in given], controls)

    def read(self, pipe: Any, caption: str) -> dict[str, Tensor]:
        """The text condition of a caption, read with a picture where the family does so."""
        return self.texts(pipe, [caption], SimpleNamespace(given=[to_pil(photograph("coffee"))]))[0]

    def texts(self, pipe: Any, captions: list[str], sample: Any) -> list[dict[str, Tensor]]:
        """The text conditions of captions, read with the sample's pictures where the family does so."""
        if not self.family.spec.flavour.text_images:
            return encode_captions(self.family, pipe, captions, self.settings)
        seen = [self.family.image_kwargs(picture, SIDE, SIDE, self.settings)["image"] for picture in sample.given]
        return [encode_caption_with_images(self.family, pipe, caption, seen, self.settings) for caption in captions]

    def call(self, sample: Sample) -> dict[str, Any]:
        """Everything that the pipeline is given but the prompt, the steps and the draws."""
        size = (self.side, self.side, self.settings)
        facts = self.family.spec.flavour
        picture = self.started or (facts.image_input != "none" and not facts.image_pipeline)
        started = images_kwargs(self.family, sample.given, *size) if picture else {}
        if self.family.spec.control(self.settings):
            started = images_kwargs(self.family, sample.given[1:], *size) if sample.given[1:] else {}
            started |= control_kwargs(self.family, sample.given[0], *size)
        return {**self.family.pipeline_kwargs(self.settings), **self.family.size_kwargs(*size), **started}


def cases() -> list[tuple[str, str]]:
    """Every family with each of its tiny flavours."""
    return [(name, flavour) for name in families.names() for flavour in tiny_names(families.get(name))]


def oracle_cases() -> list[tuple[str, str]]:
    """All but experts that are trained apart: such a one would sample at levels that it never saw in training."""
    return [(n, f) for n, f in cases() if families.get(n, f).spec.trained == families.get(n, f).spec.denoisers]


def started_cases() -> list[tuple[str, str]]:
    """Flavours with another pipeline for prompts that bring a picture."""
    return [(n, f) for n, f in cases() if families.get(n, f).spec.flavour.image_pipeline]


def case(name: str, flavour: str, started: bool = False) -> Case:
    """A case of a family that is whole."""
    return Case(families.get(name, flavour), flavour, started)


def photograph(name: str, width: int = SIDE, height: int = SIDE) -> Tensor:
    """A real photograph, (1, 3, height, width) in -1..1."""
    from PIL import Image

    return from_pil(_whole_photograph(name).resize((width, height), Image.Resampling.LANCZOS))


@functools.cache
def _whole_photograph(name: str) -> Any:
    from PIL import Image
    from skimage import data

    return Image.fromarray(getattr(data, name)())


def from_pil(picture: Any) -> Tensor:
    """A PIL picture as (1, 3, H, W) in -1..1."""
    import numpy as np

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def clip(name: str, frames: int = 5, side: int = SIDE) -> Tensor:
    """A camera that moves over a photograph, (1, 3, frames, side, side) in -1..1."""
    wide = photograph(name, side + 4 * frames, side)
    return torch.stack([wide[..., 4 * i : 4 * i + side] for i in range(frames)], dim=2)


def layers(name: str, frames: int) -> Tensor:
    """A photograph, its left half a little transparent, and what is seen of it in each of `frames` - 1 stripes.

    (1, 4, frames, SIDE, SIDE) in -1..1.
    """
    whole = torch.cat([photograph(name), torch.ones(1, 1, SIDE, SIDE)], dim=1)
    whole[:, 3, :, : SIDE // 2] = 0.6
    made = [whole]
    for i in range(frames - 1):
        alpha = -torch.ones(SIDE)
        alpha[i * SIDE // (frames - 1) : (i + 1) * SIDE // (frames - 1)] = 1
        made.append(torch.cat([whole[:, :3], alpha.expand(1, 1, SIDE, SIDE)], dim=1))
    return torch.stack(made, dim=2)


def tone(track: AudioSpec | None) -> Any:
    """A second of a tone that rises, the same in all channels; None for families without sound."""
    import numpy as np

    if track is None:
        return None
    at = np.arange(track.rate) / track.rate
    return np.tile(0.5 * np.sin(2 * np.pi * (200 + 400 * at) * at), (track.channels, 1)).astype(np.float32)


def to_pil(pixels: Tensor) -> Any:
    """(1, 3, H, W) in -1..1 as a PIL picture."""
    from PIL import Image

    return Image.fromarray(((pixels[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def batch(samples: list[Sample], latents: Tensor, started: bool = False) -> Any:
    """A training batch without text: uncropped samples of the pipeline's size, at the given latents."""
    count = len(latents)
    size = torch.tensor([[SIDE, SIDE]] * count)
    return Batch(
        latents=latents,
        cond={},
        captions=[""] * count,
        paths=["one"] * count,
        dropped=torch.zeros(count, dtype=torch.bool),
        dataset="samples",
        extras={name: torch.cat([s.extras[name] for s in samples]) for name in samples[0].extras},
        references=tuple(map(torch.cat, zip(*(s.references for s in samples), strict=True))),
        controls=tuple(map(torch.cat, zip(*(s.controls for s in samples), strict=True))),
        original_sizes=size,
        target_sizes=size,
        crops=torch.zeros(count, 2, dtype=torch.long),
        is_i2v=started,
    )


class Recorder:
    """Collects the arguments of every call of a denoiser, bound to their names; of experts, also which it was."""

    def __init__(self, model: torch.nn.Module):
        self.modules = list(model.members.values()) if isinstance(model, Experts) else [model]
        self.calls: list[dict[str, Any]] = []
        self._plain = [module.forward for module in self.modules]

    def __enter__(self) -> Recorder:
        for number, module in enumerate(self.modules):
            module.forward = self._recording(number, module.forward)
        return self

    def _recording(self, number: int, plain: Any) -> Any:
        signature = inspect.signature(plain)

        def forward(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs).arguments
            usual = {k: p.default for k, p in signature.parameters.items()}
            call = {k: v for k, v in bound.items() if k not in IGNORED and not _says_nothing(v, usual[k])}
            self.calls.append(call if len(self.modules) == 1 else {**call, "expert": number})
            return plain(*args, **kwargs)

        return forward

    def __exit__(self, *_: object) -> None:
        for module, plain in zip(self.modules, self._plain, strict=True):
            module.forward = plain


def _says_nothing(value: Any, usual: Any) -> bool:
    """Is an argument what the network would take without it?"""
    if value is None or (isinstance(value, dict) and not value):
        return True
    return isinstance(value, (bool, int, float, str)) and value == usual


# -- call parity ------------------------------------------------------------------------------------------------------


def call_parity(case: Case) -> str | None:
    """Compare every argument of the denoiser at every noise level of a short sampling, with and without a negative."""
    pipe, family = case.pipe(), case.family
    with torch.no_grad():
        sample = case.sample(pipe)
    for negative in (NEGATIVE, "") if family.spec.negative_is_caption else ("",):
        entries = case.texts(pipe, [PROMPT, negative], sample)
        if problem := _sampling_differs(case, pipe, sample, entries, negative):
            return problem
    return _batch_differs(case, pipe, sample, entries)


def _sampling_differs(
    case: Case, pipe: Any, sample: Sample, entries: list[dict[str, Tensor]], negative: str
) -> str | None:
    family = case.family
    model = case.model(pipe)
    call = case.call(sample)
    if "true_cfg_scale" in call:
        call["true_cfg_scale"] = 2.0
    with Recorder(model) as stock, torch.no_grad():
        _sampled(
            case, pipe, **family.pipeline_kwargs_from_prompt(PROMPT, negative, case.settings), **call,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    calls_per_step = len(stock.calls) // STEPS
    for i, call in enumerate(stock.calls):
        t = _noise_level(family, pipe.scheduler, pipe.scheduler.timesteps[i // calls_per_step])
        if problem := _call_differs(case, model, call, t, sample, entries):
            return f"call {i}: {problem}"
    return None


def _sampled(case: Case, pipe: Any, **call: Any) -> tuple[Any, ...]:
    """What the pipeline samples, as it hands it over before it is decoded."""
    if not case.facts.layered:
        return pipe(**call, output_type=case.family.raw_output, return_dict=False)
    # diffusers' pipeline for layers takes the output_type "latent" and then fails to return anything
    seen: list[Tensor] = []
    pipe(**call, callback_on_step_end=lambda *step: seen.append(step[-1]["latents"]) or {})
    return (seen[-1],)


def _call_differs(
    case: Case, model: Any, call: dict[str, Any], t: Tensor, sample: Sample, entries: list[dict[str, Tensor]]
) -> str | None:
    """The call must be that of some choice of captions, one for each of its rows: a batch pads them together."""
    x_t = _latents_of(case, call, case.trained(sample).shape[1:])
    for frame in case.given_frames(sample):
        gap = (x_t[:, :, frame] - case.trained(sample)[:, :, frame]).abs().max()
        if gap > 1e-4:
            return f"given frame {frame} differs by {gap:.3g}"
    call = _without_padding(case, call)
    count = len(x_t)
    beside = {name: call[argument] for name, argument in case.family.extra_streams.items()}
    problems = []
    for chosen in itertools.product(entries, repeat=count):
        mine = _predicted_call(case, model, x_t, t.expand(count), [sample] * count, list(chosen), beside)
        problem = _difference(call, mine)
        if problem is None:
            return None
        problems.append(problem)
    return problems[0]


def _without_padding(case: Case, call: dict[str, Any]) -> dict[str, Any]:
    """A packed sequence without what is padding in all of its rows: how much there is of it is nobody's convention."""
    if case.family.segment_argument is None:
        return call
    roles = call[case.family.segment_argument]  # (B, N)
    start = int((roles != 0).any(0).int().argmax())

    def cut(value: Any) -> Any:
        return value[:, start:] if isinstance(value, Tensor) and value.shape[:2] == roles.shape else value

    return {name: cut(value) for name, value in call.items()}


def _noise_level(family: Family, scheduler: Any, timestep: Tensor) -> Tensor:
    if "scaler" in scheduler.config:  # Wuerstchen's counts from 0 to 1
        return timestep[None] * 999
    if family.prediction != "flow_matching":
        return timestep[None]
    sigma = timestep[None] / scheduler.config.num_train_timesteps
    if scheduler.config.get("invert_sigmas"):
        sigma = 1 - sigma
    return sigma / (1 + sigma) if family.sigma_is_ratio else sigma


def _latents_of(case: Case, call: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
    """The noised latents in the denoiser's first argument, of which a step trains `shape`; the rest comes behind."""
    first = next(iter(call.values()))
    own = case.family.to_pipeline(torch.zeros(1, *shape)).shape
    if isinstance(first, list):  # of pictures as clips of one frame
        first = torch.stack(first).squeeze(2)
    if case.family.segment_argument:
        first = first[:, -own[1] :]
    return case.family.from_pipeline(first[(slice(None), *(slice(0, n) for n in own[1:]))], *case.shape[-2:])


def _predicted_call(case: Case, model: Any, *arguments: Any) -> dict[str, Any]:
    """What reaches the denoiser when the family is asked; arguments as `_predict` has them."""
    with Recorder(model) as mine:
        _predict(case, model, *arguments)
    return _joined(mine.calls)


def _joined(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Calls of one row each as one call: a family may ask its network row by row."""
    if len(calls) == 1:
        return calls[0]
    return {k: torch.cat([c[k] for c in calls]) if isinstance(v, Tensor) else v for k, v in calls[0].items()}


def _predict(
    case: Case,
    model: Any,
    x_t: Tensor,
    t: Tensor,
    samples: list[Sample],
    entries: list[dict[str, Tensor]],
    beside: dict[str, Tensor],
) -> list[Tensor]:
    """The answer, and those for the noised streams `extra_streams`."""
    family = case.family
    draws = torch.Generator().manual_seed(0)
    latents = torch.cat([sample.latents for sample in samples])
    trained = family.slice_batch(batch(samples, latents, case.started), case.settings, draws)
    cond = family.stack_text(entries) | family.model_inputs(trained, case.settings, draws)
    with torch.no_grad():
        answers = predict_streams(family, model, {LATENTS: x_t, **beside}, t, cond)
    return [*answers.values()]


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
    if isinstance(theirs, (list, tuple)) and theirs and isinstance(theirs[0], Tensor):
        problems = [_value_difference(*pair) for pair in zip(theirs, ours, strict=True)]
        return next(filter(None, problems), None)
    if not isinstance(theirs, Tensor):
        # a picture alone is the same as a list of one
        same = theirs == ours or (isinstance(theirs, list) and [[one] for one in theirs] == ours)
        return None if same else f"is {ours!r}, not {theirs!r}"
    theirs = theirs.expand(ours.shape) if theirs.ndim == 0 else theirs
    # a sampler that rounds its times to whole numbers says nothing about their type
    same_kind = theirs.dtype == ours.dtype or (ours.is_floating_point() and not theirs.is_floating_point())
    if theirs.shape != ours.shape or not same_kind:
        return f"is {tuple(ours.shape)} {ours.dtype}, not {tuple(theirs.shape)} {theirs.dtype}"
    if not torch.allclose(theirs.double(), ours.double(), rtol=1e-5, atol=1e-5):
        return f"differs by up to {(theirs.double() - ours.double()).abs().max():.3g}"
    return None


def _batch_differs(case: Case, pipe: Any, sample: Sample, entries: list[dict[str, Tensor]]) -> str | None:
    """A batch of two must answer as its samples do alone."""
    model = _woken(case.model(pipe))
    samples = [sample, case.sample(pipe, "chelsea")]
    x_t = torch.randn(2, *case.trained(sample).shape[1:], generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.5, 0.5] if case.family.prediction == "flow_matching" else [500, 500])
    beside = {name: torch.cat([one.extras[name] for one in samples]) for name in case.family.extra_streams}
    both = _predict(case, model, x_t, t, samples, entries, beside)
    alone = []
    for i, entry in enumerate(entries):
        own = slice(i, i + 1)
        mine = {name: stream[own] for name, stream in beside.items()}
        alone.append(_predict(case, model, x_t[own], t[own], samples[own], [entry], mine))
    gap = max((one - torch.cat(two)).abs().max().item() for one, *two in zip(both, *alone, strict=True))
    return f"a batch differs from its samples by {gap:.3g}" if gap > 1e-4 else None


# -- the padding invariant --------------------------------------------------------------------------------------------

# captions of unlike lengths, one with words in quotation marks, which some families read once more
CAPTIONS = ("hut", 'a door "in"')
# which tensors of a text condition each mask hides rows of. Families that have a length instead pad before the text
HIDES = {"mask": ("text", "sound_text"), "glyph_mask": ("glyphs",)}


def padding(case: Case) -> str | None:
    """Change the hidden rows of the text, then the visible ones, with and without gradient checkpointing.

    Not every parity is enough here: a stock pipeline can have the same fault.
    """
    pipe, family = case.pipe(), case.family
    sample, text = _texts(case, pipe)
    if not (rows := visible_rows(text)):
        return None
    model = _woken(case.model(pipe))
    samples = [sample] * len(CAPTIONS)
    draws = torch.Generator().manual_seed(0)
    latents = torch.cat([sample.latents] * len(CAPTIONS))
    trained = family.slice_batch(batch(samples, latents, case.started), case.settings, draws)
    given = family.model_inputs(trained, case.settings, draws)
    x_t = {LATENTS: torch.randn(trained.latents.shape, generator=draws)}
    x_t |= {name: torch.cat([sample.extras[name]] * len(CAPTIONS)) for name in family.extra_streams}
    t = torch.full((len(CAPTIONS),), 0.5 if family.prediction == "flow_matching" else 500)

    def asked(text: dict[str, Tensor]) -> Tensor:
        # with gradients: without them nothing is checkpointed
        answers = predict_streams(family, model, x_t, t, text | given)
        return torch.cat([answer.detach().flatten() for answer in answers.values()])

    for checkpointed in (False, True):
        if checkpointed:
            _each(model, lambda member: checkpointing.enable_checkpointing(member, None))
        plain = asked(text)
        for name, visible in rows.items():
            for shown in (False, True):
                where = visible == shown
                gap = (asked({**text, name: _otherwise(text[name], where)}) - plain).abs().max().item()
                if where.any() and (gap == 0 if shown else gap != 0):
                    how = f"{'visible' if shown else 'hidden'} rows of {name} changed the answer by {gap:.3g}"
                    return how + " with gradient checkpointing" * checkpointed
    return None


def hides(case: Case) -> bool:
    """Does the family hide rows of its text?"""
    return bool(visible_rows(_texts(case, case.pipe())[1]))


@torch.no_grad()
def _texts(case: Case, pipe: Any) -> tuple[Sample, dict[str, Tensor]]:
    """A sample, and the batched conditions of captions of unlike lengths: its pictures are read into some texts."""
    sample = case.sample(pipe)
    return sample, case.family.stack_text(case.texts(pipe, list(CAPTIONS), sample))


def visible_rows(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """By tensor of a batch of texts, which of its rows (B, L) are real; those that hide nothing are left out."""
    found = {name: text[by].bool() for by, names in HIDES.items() if by in text for name in names if name in text}
    if "length" in text:
        longest = text["text"].shape[1]
        found["text"] = torch.arange(longest) >= longest - text["length"][:, None]
    unknown = {name for name in text if name.endswith("mask")} - HIDES.keys()
    assert not unknown, f"what does {unknown} hide?"
    return {name: visible for name, visible in found.items() if not visible.all()}


def _otherwise(rows: Tensor, where: Tensor) -> Tensor:
    """Rows (B, L, ...) with others, or other tokens, `where` (B, L) says so."""
    draws = torch.Generator().manual_seed(3)
    if rows.is_floating_point():
        others = torch.randn(rows.shape, generator=draws).to(rows) * 10
        return torch.where(where.view(*where.shape, *[1] * (rows.ndim - 2)), others, rows)
    return torch.where(where, rows.flip(1).roll(1, 0) + 1, rows)


def _woken(model: Any) -> Any:
    """The model, without weights that start at zero: they hide all that is before them."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.1)
    return model


def _each(model: Any, work: Callable[[Any], None]) -> None:
    for member in model.members.values() if isinstance(model, Experts) else [model]:
        work(member)


# -- latent parity ----------------------------------------------------------------------------------------------------


def latent_parity(case: Case) -> str | None:
    """Hand a sample's cached latents to the pipeline as its last step's result and watch its decoder."""
    pipe, family = case.pipe(), case.family
    if not hasattr(getattr(pipe, "vae", None), "decode"):
        return _handed_over(case, pipe)
    found_sound, given_sound = _watched(pipe.audio_vae) if family.audio else ([], [])
    with torch.no_grad():
        sample = case.sample(pipe)
        is_still = sample.pixels.ndim == 4 and (case.facts.framed or case.facts.temporal)
        # of layers the decoder is given each alone, and not the picture that they make up
        given = sample.pixels[0, :, 1:].movedim(1, 0) if case.facts.layered else sample.pixels
        answer = pipe.vae.encode(given.unsqueeze(2) if is_still or case.facts.layered else given)
        encoded = _mode(answer)
    _, seen = _watched(pipe.vae)
    # whatever the sampler does, this is its result: not every pipeline lets a callback change it
    trained = case.trained(sample)
    results = [family.to_pipeline(trained), *(sample.extras[name] for name in family.extra_streams)]

    def step(pred: Tensor, *_: Any, **__: Any) -> Any:
        own = next(result for result in results if len(results) == 1 or result.shape == pred.shape)
        for axis, count in enumerate(pred.shape if pred.ndim == own.ndim else ()):
            if count < own.shape[axis]:  # what is given is not drawn
                own = own.narrow(axis, own.shape[axis] - count, count)
        return SchedulerOutput(prev_sample=own)

    pipe.scheduler.step = step
    pipe(**family.pipeline_kwargs_from_prompt(PROMPT, "", case.settings), **case.call(sample), num_inference_steps=2)
    if seen[-1].shape != encoded.shape:
        return f"the decoder was given {tuple(seen[-1].shape)}, not {tuple(encoded.shape)}"
    if encoded.ndim == 5:  # what a clip starts from is nothing that was drawn
        drawn = trained.shape[2] - len(case.given_frames(sample))
        seen[-1], encoded = (z[:, :, -drawn:] for z in (seen[-1], encoded))
    for one, two in [(seen[-1], encoded), *zip(given_sound, found_sound, strict=True)]:
        gap = (one - two).abs().max().item() / two.std().item()
        if gap > 1e-4:
            return f"the decoder was given latents that differ by {gap:.3g} standard deviations"
    return None


def _handed_over(case: Case, pipe: Any) -> str | None:
    """Without a decoder to watch, what is cached must be what the pipeline hands over."""
    with torch.no_grad():
        sample = case.sample(pipe)
    finished = SchedulerOutput(prev_sample=case.family.to_pipeline(sample.latents))
    pipe.scheduler.step = lambda *_, **__: finished
    shown = pipe(
        **case.family.pipeline_kwargs_from_prompt(PROMPT, "", case.settings), **case.call(sample),
        num_inference_steps=2, output_type=case.family.raw_output, return_dict=False,
    )[0]  # fmt: skip
    gap = (shown - sample.latents).abs().max().item()
    return f"what is handed over differs by {gap:.3g}" if gap > 1e-4 else None


def _watched(vae: Any) -> tuple[list[Tensor], list[Tensor]]:
    """From now on, the latents that a VAE finds, and those that it is given to decode."""
    found: list[Tensor] = []
    given: list[Tensor] = []
    encode, decode = vae.encode, vae.decode

    def encoding(*args: Any, **kwargs: Any) -> Any:
        answer = encode(*args, **kwargs)
        found.append(_mode(answer))
        return answer

    def decoding(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(z)
        return decode(z, *args, **kwargs)

    vae.encode, vae.decode = encoding, decoding
    return found, given


def _mode(answer: Any) -> Tensor:
    """What a VAE encoded: the mean, if it says what it knows of it."""
    return answer.latent_dist.mode() if hasattr(answer, "latent_dist") else answer.latent


# -- the one-sample oracle --------------------------------------------------------------------------------------------


# rounds of training, in steps, and the correlation without which it ends there. One is enough for most families
ROUNDS = {200: -1.0, 400: -1.0, 600: -1.0}
# what is broken mostly finds the opposite of the sample, which shows early; what is whole is never that far off
ROUNDS_OF_BROKEN = {60: 0.0, 200: 0.2, 400: -1.0}


def found_again(case: Case, rounds: Mapping[int, float] = ROUNDS) -> float:
    """How well the sample is found, after as many rounds as that takes, unless it looks hopeless before."""
    found = 0.0
    for hopeless, found in zip(rounds.values(), correlations(case, rounds), strict=False):
        if found >= LEAST_CORRELATION or found < hopeless:
            break
    return found


def correlations(case: Case, rounds: Iterable[int]) -> Iterator[float]:
    """Train on one sample's latents, sample with the stock pipeline, and correlate the two, round after round."""
    torch.manual_seed(0)
    family = case.family
    pipe = case.pipe(**family.spec.components.oracle)
    with torch.no_grad():
        _standardise(case, pipe)
        sample = case.sample(pipe)
    (entry,) = case.texts(pipe, [PROMPT], sample)
    if hasattr(pipe, "guider"):
        pipe.guider.guidance_scale = 1.0
    for number, steps in enumerate(rounds):
        size = 8 if number else 4  # noise levels at a time: few do for most
        many = batch([sample] * size, torch.cat([sample.latents] * size), case.started)
        many = dataclasses.replace(many, cond=family.stack_text([entry] * size))
        _fit(case, pipe, many, steps)
        if str(pipe.scheduler.config.get("variance_type")).startswith("learned"):
            # nobody trains the variance that a network answers too, and here it is a random one
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, variance_type="fixed_small")
        yield _correlation(case, pipe, sample)


def _correlation(case: Case, pipe: Any, sample: Sample) -> float:
    """Of what the pipeline samples with the sample's latents, and its sound."""
    family, x0 = case.family, sample.latents
    call = {**case.call(sample), **family.spec.guidance_off}
    sampled, *beside = _sampled(
        case, pipe, **family.pipeline_kwargs_from_prompt(PROMPT, "", case.settings), **call, num_inference_steps=20,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    raw = torch.is_tensor(sampled) and sampled.shape == x0.shape != family.to_pipeline(x0).shape
    found = sampled if raw else family.from_pipeline(sampled, *x0.shape[-2:])
    if found.ndim == x0.ndim == 5:  # not every pipeline hands over the beginning of what it drew
        x0 = x0[:, :, -found.shape[2] :]
    if raw or found.shape != x0.shape:  # the pipeline has already made what its decoder takes
        found = latent_space.NORMALIZERS[case.facts.normalizer][0](found, pipe.vae)
    pairs = [(found, x0)]
    if family.audio:
        pairs.append((family.audio.normalize(pipe.audio_vae, beside[0]), sample.extras["sound"]))
    return min(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1].item() for one, two in pairs)


def _encode_to_means(vae: Any) -> None:
    """Some pipelines draw from what the VAE knows of a picture to start from; a cache keeps its mean."""
    plain = vae.encode

    def encode(*args: Any, **kwargs: Any) -> Any:
        answer = plain(*args, **kwargs)
        if hasattr(answer, "latent_dist"):
            answer.latent_dist.sample = lambda *_, **__: answer.latent_dist.mode()
        return answer

    vae.encode = encode


def _standardise(case: Case, pipe: Any) -> None:
    """Let the VAE, which is random, encode the sample to latents of mean 0 and spread 1, also for the pipeline."""
    if not hasattr(pipe, "vae"):
        return
    there, back = latent_space.NORMALIZERS[case.facts.normalizer]
    latents, plain = case.sample(pipe).latents, pipe.vae.encode
    mean, spread = latents.mean(), latents.std()

    def encode(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = plain(pixels, *args, **kwargs)
        z = back((there(_mode(answer), pipe.vae) - mean) / spread, pipe.vae)
        fixed = SimpleNamespace(mode=lambda: z, sample=lambda *_, **__: z)
        return SimpleNamespace(latent_dist=fixed) if hasattr(answer, "latent_dist") else SimpleNamespace(latent=z)

    pipe.vae.encode = encode


def _fit(case: Case, pipe: Any, many: Any, steps: int) -> None:
    """The real training step, on one batch over and over."""
    from accelerate import Accelerator

    model = case.model(pipe).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    settings = SimpleNamespace(**{**vars(case.settings), "grad_clip_method": "norm", "max_grad_norm": 1.0})
    draws = Generators(seed=1)
    stepper = Stepper(
        accelerator=Accelerator(cpu=True),
        model=model,
        parameters=parameters,
        objective=denoise.build(case.family, settings, dict(pipe.scheduler.config), draws, nullcontext),
        optimizer=optimizer,
        scheduler=Scheduler(optimizer, "linear", ScheduleShape(0, steps)),
        ema=None,
        options=settings,
    )
    for step in range(steps):
        stepper([many], step)
    model.eval()


def oracle(case: Case) -> str | None:
    """The sampled latents must be the sample's."""
    found = found_again(case, ROUNDS_OF_BROKEN)
    return f"the sampled latents correlate {found:.3f} with the sample's" if found < LEAST_CORRELATION else None


CHECKS = {"call parity": call_parity, "latent parity": latent_parity, "padding": padding, "oracle": oracle}
