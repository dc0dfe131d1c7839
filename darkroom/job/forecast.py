"""The memory that a run would take, phase by phase: the run itself, in shapes.

The models are built without weights and do what they do in the run, on fake tensors, under a ledger of what lives at
each moment. What shapes do not show are a few constants, measured: what the process takes before any model, and what
libraries keep for themselves. A phase whose code cannot run in shapes is said to be unknown, with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, cast

import torch
from PIL import Image
from torch import nn
from torch.utils._pytree import tree_leaves

from darkroom.adapters.targets import target_modules
from darkroom.core.cards import Card
from darkroom.core.device import ASSUMED, HOST, assume_card, find_run_card, get_assumed_card, is_host
from darkroom.core.events import Bus
from darkroom.core.log import logger
from darkroom.core.memory import available_bytes, freeze_garbage, resident_bytes
from darkroom.data.batches.batch import Batch, Cond
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.conditioning import control_input_space
from darkroom.families.shared.text_encoding import encode_caption_with_images, encode_captions
from darkroom.job import stages
from darkroom.job.rehearse import micro_batches
from darkroom.job.run import Run
from darkroom.memory.autocast import use_gpu_autocast_rules
from darkroom.memory.fake import BlockWeights, FakeMemoryPolicy, weights_of
from darkroom.memory.ledger import ON_DEVICE, ON_HOST, Ledger, build_fake_mode, needs_real_values
from darkroom.memory.repeats import (
    RepeatedBlocks,
    copy_shortened,
    extrapolate,
    find_repeated_blocks,
    find_smallest_counts,
    shorten,
    watch_blocks,
)
from darkroom.options.sources import Resolved
from darkroom.pretrained.components import scheduler_config
from darkroom.pretrained.fake import FakeComponents
from darkroom.train import distributed
from darkroom.train.step import Stepper
from darkroom.validate.prompts import Prompt
from darkroom.validate.render import Renderer

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from darkroom.data.cache.filler import CacheFiller
    from darkroom.data.index.buckets import Bucket
    from darkroom.data.plan import DatasetPlan
    from darkroom.data.planned import PlannedDataset
    from darkroom.families.base import Family

log = logger(__name__)
MB = 2**20
# what torch's libraries take at the first product and convolution
LIBRARIES = 18 * MB
# steps of the schedule; at least the two that are taken
STEPS = 2
# shortened networks are worth it that have this share of the modules of the whole one
WORTH = 0.7
# where an option comes from that is tried
ADVICE = "advice"
Samples = list[tuple["PlannedDataset", dict[str, torch.Tensor]]]
"""Planned datasets, each with one sample's entries."""
Answer = TypeVar("Answer")
TEXT, LATENTS, LOAD = "text cache", "latent cache", "load denoiser"
STEP, IMAGE_PHASE, SAVE = "step", "picture", "save"


@dataclasses.dataclass(frozen=True)
class Phase:
    """Bytes at the highest moment of a phase, on the host and on the device; None where it is not known, for `why`.

    `of` says of what, where there are several of a kind; `spare` bytes are of files that are mapped while they are
    read, which the system takes back when it is short. `idle`: the run finds its result cached, and passes it over.
    `fails`: its code failed for a reason, `why`, that holds for the run too.
    """

    phase: str
    of: str
    host: int | None
    device: int | None = None
    why: str = ""
    spare: int = 0
    idle: bool = False
    fails: bool = False


class PhaseRow(TypedDict):
    """A phase as JSON has it; `fits` is told of the machine."""

    phase: str
    of: str
    host: int | None
    device: int | None
    why: str
    spare: int
    idle: bool
    fails: bool
    fits: bool


class ForecastRow(TypedDict):
    """A forecast as JSON has it."""

    phases: list[PhaseRow]
    host: int | None
    device: int | None


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The phases of a run, and the bytes that its machine has for it.

    `host` is None for a machine that is not known but for its card, `device` for one without a card.
    """

    phases: list[Phase]
    host: int | None
    device: int | None = None

    @property
    def too_large(self) -> list[Phase]:
        """The phases that do not fit."""
        return [phase for phase in self.phases if not self._check_fit(phase)]

    def _check_fit(self, phase: Phase) -> bool:
        if phase.idle:
            return True
        is_host_enough = self.host is None or (phase.host or 0) - phase.spare <= self.host
        return is_host_enough and (phase.device or 0) <= (self.device or 0)

    def as_dict(self) -> ForecastRow:
        """For JSON."""
        rows = [cast("PhaseRow", dataclasses.asdict(phase) | {"fits": self._check_fit(phase)}) for phase in self.phases]
        return {"phases": rows, "host": self.host, "device": self.device}


@dataclasses.dataclass(frozen=True)
class Engine:
    """What of accelerate a step needs, for one process and tensors that are shapes."""

    device: torch.device
    dtype: torch.dtype
    num_processes: int = 1
    process_index: int = 0
    scaler: None = None

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Inside, products are computed in the run's precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of a loss."""
        loss.backward()


class Silent:
    """Bars that say nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """What all trials of a forecast share: the run, what it is planned on, and what makes tensors fake.

    `max_batch_size` samples are in a batch; `settings` is a folder that stands in for the base's own settings.
    """

    run: Run
    engine: Engine
    filler: CacheFiller
    prompts: list[Prompt]
    settings: str | None
    fake: FakeTensorMode
    max_batch_size: int

    @property
    def device(self) -> torch.device:
        """Where the run's models would be."""
        return self.engine.device

    @property
    def stride(self) -> int:
        """One of so many blocks in a row is treated unlike the others."""
        config = self.run.config
        return (config.gradient_checkpointing and config.gradient_checkpointing_interval) or 1


# bytes by kind of device and moment
Peaks = Mapping[str, Mapping[str, int]]


class Trial:
    """One set of a run's models in shapes, and what is done with them. `counts` are the blocks that stay of each kind
    that repeats, where these networks are shorter than the run's; such networks stay on the device as a whole.
    """

    def __init__(
        self,
        scene: Scene,
        groups: Sequence[RepeatedBlocks] = (),
        counts: Sequence[int] = (),
        patterns: Mapping[str, nn.Module] | None = None,
    ):
        config, family = scene.run.config, scene.run.family
        self.scene, self.groups, self.counts, self.patterns = scene, groups, counts, patterns
        self.config, self.family, self.device = config, family, scene.device
        self.ledger = Ledger(scene.fake)
        self.memory_policy = FakeMemoryPolicy(config, self.device, family.blocks, self.ledger, not counts)
        dtype, policy = distributed.base_dtype(config), self.memory_policy
        self.components = FakeComponents(
            self.ledger.make_fake,
            self._prepare,
            family,
            config,
            self.device,
            dtype,
            policy.prepare_text_encoder,
            policy.prepare_vae,
            scene.settings,
        )
        # by denoiser: the kinds of blocks that repeat in it, and a copy with few of them
        self.repeated: dict[str, list[RepeatedBlocks]] = {}
        self.shortened: dict[str, nn.Module] = {}
        self.model: nn.Module
        self.stepper: Stepper
        self.steps = 0

    def _prepare(self, part: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A denoiser without weights, as long as this trial's are."""
        if self.patterns is not None:
            model = copy.deepcopy(self.patterns[part])
            shorten(model, self.groups, self.counts)
            return model
        model = make()
        targets = target_modules(self.config, self.family.targets) if self.config.model_type == "lora" else []
        self.repeated[part] = find_repeated_blocks(model, [targets] if isinstance(targets, str) else targets)
        counts = find_smallest_counts(self.repeated[part], self.scene.stride)
        self.shortened[part] = copy_shortened(
            model, list(counts), [count + self.scene.stride for count in counts.values()]
        )
        return model

    def peaks(self) -> Peaks:
        """What was held at most, since the last mark."""
        locations = (ON_HOST, ON_DEVICE)
        return {
            location: {name: bytes_by_location[location] for name, bytes_by_location in self.ledger.peaks.items()}
            for location in locations
        }

    def text(self) -> Cond:
        """A caption's cache entry."""
        filler = self.scene.filler
        captions = (filler.captions() or [""])[: filler.plan.file.default_text.text_encoder_batch_size]
        pipe = self.components.text()
        dataset, bucket = shapes(self.scene.filler.plan)[0]
        count = max(1, sum(conditioning.role == "reference" for conditioning in dataset.conditioning))
        images = [Image.new("RGB", bucket.target)] * count
        with self.ledger:
            if self.family.spec.flavour.text_images:
                return encode_caption_with_images(self.family, pipe, captions[0], images, self.config)
            return encode_captions(self.family, pipe, captions, self.config)[0]

    def latents(self) -> Samples:
        """The planned dataset and one sample's entries for each shape of its buckets."""
        self.components.vae()
        entries = []
        for dataset, bucket in shapes(self.scene.filler.plan):
            width, height = bucket.target
            facts = self.components.latents
            clip = (bucket.frames,) if facts.temporal or facts.layered else ()
            # with numbers, since some are looked at by programs that know no tensors
            pixels = self.ledger.count(torch.zeros(self.config.vae_batch_size, 3, *clip, height, width))
            with self.ledger:
                entry = stages.encode_sample(self.scene.run, self.components, pixels, [None] * len(pixels))
                entries.append((dataset, {name: tensor[:1] for name, tensor in entry.items()}))
        return entries

    def load(self) -> None:
        """The denoiser, where it is to be."""
        if self.config.keep_vae_loaded:
            self.components.vae()
        self.model = stages.load_denoiser(self.scene.run, self.components, self.memory_policy)
        gc.collect()  # what was wide before hangs in circles

    def attach(self) -> None:
        """What is trained, and what trains it."""
        run, denoisers = self.scene.run, self.components.denoisers_of(self.model)
        self.ledger.begin_phase("attached")
        adapter = stages.attach_adapter(run, self.model, self.components)
        self.memory_policy.attach_trained(adapter.model, denoisers)
        scheduler = scheduler_config(self.components)
        with self.ledger:
            self.stepper = stages.build_stepper(
                run, self.scene.engine, adapter, self.memory_policy, scheduler, denoisers, STEPS
            )
        self._move_averages()
        for part in self.components.trainable_components if self.counts else ():
            watch_blocks(denoisers[part], self.groups, functools.partial(self._moment, part))
        self._watch_updates()
        if not is_host(self.device):
            compute_together(self.stepper, self._waits)

    def _move_averages(self) -> None:
        """The averages of weights that wait on the host are there too."""
        average = self.stepper.ema
        if average is None:
            return
        for name, shadow in average.shadows.items():
            if self._waits(average.named[name]):
                self.ledger.move(shadow, ON_HOST)

    def _moment(self, part: str, name: str) -> None:
        self.ledger.begin_phase(f"{part} {name}")

    def _watch_updates(self) -> None:
        """What comes after the way back is a moment of its own, and so is the update."""
        stepper, collect_grads = self.stepper, self.stepper.collect_offloaded_grads

        def collect() -> None:
            self.ledger.begin_phase("gradients")
            collect_grads()

        stepper.collect_offloaded_grads = collect
        if hasattr(stepper.optimizer, "register_step_pre_hook"):
            stepper.optimizer.register_step_pre_hook(lambda *_: self.ledger.begin_phase("update"))

    def batch(self, dataset: PlannedDataset, text: Cond, sample: dict[str, torch.Tensor]) -> Batch:
        """A batch as the loader would make it, of one sample again and again."""
        # an entry has the config's, unless it has its own
        count = min(dataset.entry.train_batch_size, self.scene.max_batch_size)
        with self.ledger:
            extras = {name: torch.cat([tensor] * count) for name, tensor in sample.items()}
            latents = extras.pop("latents")
            roles = [conditioning.role for conditioning in dataset.conditioning]
            height, width = (edge * self.components.latents.downscale for edge in latents.shape[-2:])
            pixels = (
                torch.empty(count, 3, height, width)
                if control_input_space(self.family, self.config) == "pixels"
                else latents
            )
            return Batch(
                latents=latents,
                cond=self.family.stack_text([text] * count),
                captions=[""] * count,
                paths=[""] * count,
                original_sizes=torch.tensor([[height, width]] * count),
                target_sizes=torch.tensor([[height, width]] * count),
                crops=torch.zeros(count, 2, dtype=torch.long),
                dropped=torch.zeros(count, dtype=torch.bool),
                dataset=dataset.id,
                extras=extras,
                references=tuple(latents for role in roles if role == "reference"),
                controls=tuple(pixels for role in roles if role == "control"),
                mask=torch.ones(count, 1, *latents.shape[2:]) if "mask" in roles else None,
            )

    def step(self, batch: Batch) -> None:
        """A step of a batch that finds the optimizer's state."""
        batches = [batch.to(self.device)] * micro_batches(self.config)
        with self.ledger:
            if not self.steps and self.stepper.get_released_grad_norm is None:
                self._update_from_nothing()
            elif not self.steps:  # its updates are a part of the way back
                self.stepper.update(batches, 0)
            self.steps += 1
            self.stepper.update(batches, self.steps)

    def _update_from_nothing(self) -> None:
        """Let the optimizer make its state, without a way there and back."""
        for parameter in self.stepper.parameters:
            with self.ledger.count_as(ON_HOST) if self._waits(parameter) else contextlib.nullcontext():
                parameter.grad = torch.empty_like(parameter, dtype=parameter.grad_dtype or parameter.dtype)
        self.stepper.update([], 0)
        if self.memory_policy.offloaded:  # and the state beside them
            for weight, state in cast("torch.optim.Optimizer", self.stepper.optimizer).state.items():
                for tensor in tree_leaves(state) if self._waits(weight) else ():
                    if isinstance(tensor, torch.Tensor):
                        self.ledger.move(tensor, ON_HOST)
            self.ledger.reset_peaks()

    def _waits(self, parameter: torch.Tensor) -> bool:
        """Is a weight that is trained updated on the host?"""
        return id(parameter) in self.memory_policy.offloaded

    def render_image(self, entry: Cond) -> None:
        """A validation image."""
        renderer = Renderer(self.components, self.config, lambda caption, images=(): entry)
        self.components.vae()
        with self.ledger:
            renderer.render_shortest(self.model, self.scene.prompts, form="pt")

    def save(self) -> None:
        """A file is copied as a whole before it is written."""
        state = [t for t in tree_leaves(self.stepper.optimizer.state_dict()) if isinstance(t, torch.Tensor)]
        copies = 1 if is_host(self.device) else 2
        self.components.unload_vae()
        self.ledger.reset_peaks()
        trained = self.stepper.parameters
        # while averages are saved, the weights themselves are kept beside them
        averaged = trained if self.stepper.ema else []
        for name, times, tensors in (
            ("trained", copies, trained),
            ("state", copies, state),
            ("kept", copies + 1, averaged),
        ):
            self.ledger.begin_phase(name)
            extra = times * sum(t.numel() * t.element_size() for t in tensors)
            self.ledger.peaks[f"{name} 1"][ON_HOST] += extra


class Unlike(Exception):
    """Shortened networks do not do what the whole one does."""


class Trials:
    """Trials of the same work with more and more blocks, and how often what is more comes on top of the first.

    `extra_bytes` are bytes, by kind of device, that all moments of the whole network have beyond that.
    """

    def __init__(self, trials: list[Trial], times: Sequence[float] = ()):
        self.trials, self.times = trials, times
        self.extra_bytes: Counter[str] = Counter()

    def extend(self, rows: Sequence[Mapping[str, int]]) -> int:
        """Bytes of the whole network at the highest moment, from those of each trial by moment."""
        return extrapolate(rows[0], rows[1:], self.times)


@dataclasses.dataclass
class ForecastCache:
    """What a forecast has found that another one may take over: phases and what they answered, by their names; and the
    phases from the loading of the denoiser on, which belong together."""

    fake: FakeTensorMode = dataclasses.field(default_factory=build_fake_mode)
    phases: dict[str, tuple[Phase, object]] = dataclasses.field(default_factory=dict)
    training: list[Phase] | None = None
    # bytes of this process before anything is forecast
    start: int = 0

    def but(self, phases: Collection[str]) -> ForecastCache:
        """The same without some phases."""
        rows = {name: row for name, row in self.phases.items() if name not in phases}
        training = None if {LOAD, STEP, IMAGE_PHASE, SAVE} & set(phases) else self.training
        return ForecastCache(self.fake, rows, training, self.start)


class Forecaster:
    """Runs a run's phases in shapes. `filler` has the scanned datasets, `prompts` what validation draws.

    `settings` is a folder that stands in for the base's own settings; `cache` has phases that need not be run again;
    `tell` is told the name of each phase before it begins. `shortens`: are networks forecast with fewer blocks, where
    these repeat? Left out, where that takes less time.
    """

    def __init__(
        self,
        resolved: Resolved,
        family: Family,
        filler: CacheFiller,
        prompts: list[Prompt],
        settings: str | None = None,
        cache: ForecastCache | None = None,
        tell: Callable[[str], None] = lambda phase: None,
        shortens: bool | None = None,
    ):
        config = resolved.config
        # what is planned for larger batches can be forecast for smaller ones
        batch_limit = config.train_batch_size if resolved.sources["train_batch_size"] == ADVICE else sys.maxsize
        run = Run(resolved, family, Path(config.output_dir), Bus(), Silent())  # type: ignore[arg-type]
        self.cache = cache or ForecastCache()
        self.card, self.is_elsewhere = find_run_card(), get_assumed_card() is not None
        engine = Engine(ASSUMED if self.card else HOST, distributed.DTYPES[config.mixed_precision])
        self.scene = Scene(run, engine, filler, prompts, settings, self.cache.fake, batch_limit)
        self.device, self.config, self.prompts = self.scene.device, config, prompts
        self.tell, self.shortens = tell, shortens
        self.phases: list[Phase] = []
        missing = filler.missing()
        self.idle = {name for name, count in ((TEXT, missing.texts), (LATENTS, missing.latents)) if not count}
        # of each denoiser's blocks
        self.weights: list[list[BlockWeights]] = []
        # why the whole networks had to be forecast, if shortened ones were tried
        self.unlike: str | None = None

    def forecast(self, until_too_large: bool = False) -> Forecast:
        """All phases in their order, or those up to the first that does not fit."""
        self.cache.start = self.cache.start or size_of_process(self.scene)
        with freeze_garbage(), on_card(self.card):
            for _ in self._run_each():
                if until_too_large and self._run_phase().too_large:
                    break
        return self._run_phase()

    def _run_phase(self) -> Forecast:
        start = self.cache.start
        entry = [p if p.host is None else dataclasses.replace(p, host=p.host + start) for p in self.phases]
        host, device = memory_of(self.card)
        return Forecast(entry, None if self.is_elsewhere else host, device)

    def _run_each(self) -> Iterator[None]:
        reader = Trial(self.scene)
        entry = self._once(TEXT, reader, reader.text)
        yield
        reader.components.unload_text()
        samples = self._once(LATENTS, reader, reader.latents)
        yield
        if self.cache.training is None:
            ready = len(self.phases)
            yield from self._load_and_train(entry, samples)
            self.cache.training = self.phases[ready:]
        else:
            self.phases += self.cache.training

    def _load_and_train(self, entry: Cond | None, samples: Samples | None) -> Iterator[None]:
        first = Trial(self.scene)
        loaded = self._first_load(first)
        yield
        if not (entry and samples and loaded):
            missing = next(phase.phase for phase in self.phases if phase.host is None)
            self.phases += [Phase(name, "", None, why=f"it needs what '{missing}' makes") for name in self._training()]
            return
        ready = len(self.phases)
        try:
            yield from self._train(self._shorten_trials(first), entry, samples)
        except Unlike as cause:
            log.debug("The networks cannot be shortened: %s", cause)
            self.unlike = str(cause)
            del self.phases[ready:]
            yield from self._train(Trials([first]), entry, samples)

    def _training(self) -> list[str]:
        """The phases after the models are loaded."""
        return [STEP, *([IMAGE_PHASE] if self.renders_images else []), SAVE]

    @property
    def renders_images(self) -> bool:
        """Are there validation images?"""
        return bool(self.prompts) and not self.config.validation_disable

    def _train(self, trials: Trials, entry: Cond, samples: Samples) -> Iterator[None]:
        self._measure(trials, lambda trial: trial.attach(), marks=False)
        for dataset, sample in samples:
            batches = {trial: trial.batch(dataset, entry, sample) for trial in trials.trials}
            single = next(iter(batches.values()))
            size = "x".join(map(str, reversed(single.latents.shape[2:])))
            self._phase(STEP, trials, functools.partial(step_of, batches), f"{len(single)} latents of {size}")
            yield
        if self.renders_images:
            self._phase(IMAGE_PHASE, trials, lambda trial: trial.render_image(entry))
            yield
        self._phase(SAVE, trials, lambda trial: trial.save())
        yield

    def _once(self, name: str, trial: Trial, work: Callable[[], Answer]) -> Answer | None:
        """What a phase answers whose models repeat nothing that is worth it; taken over if it is known."""
        if name not in self.cache.phases:
            answers: list[Answer] = []
            self._phase(name, Trials([trial]), lambda _: answers.append(work()))
            self.cache.phases[name] = self.phases.pop(), next(iter(answers), None)
        phase, answer = self.cache.phases[name]
        self.phases.append(phase)
        return cast("Answer | None", answer)

    def _first_load(self, first: Trial) -> bool:
        self._phase(LOAD, Trials([first]), lambda trial: trial.load())
        row = self.phases[-1]
        if row.host is None:
            return False
        spare = sum(first.components.weight_bytes(part) or 0 for part in first.components.trainable_components)
        self.phases[-1] = dataclasses.replace(row, host=first.memory_policy.while_loading(spare), spare=spare)
        denoisers = first.components.denoisers_of(first.model).values()
        self.weights = [weights_of(first.memory_policy.blocks_of(denoiser)) for denoiser in denoisers]
        return True

    def _shorten_trials(self, first: Trial) -> Trials:
        """Trials with few blocks of each kind, and what their results are to be extended to: those of the first."""
        trial_counts, stride = (
            [find_smallest_counts(groups, self.scene.stride) for groups in first.repeated.values()],
            self.scene.stride,
        )
        rows = trial_counts[0] if trial_counts else {}
        if self.shortens is False or not rows or any(other != rows for other in trial_counts):
            return Trials([first])
        if self.card and self.config.model_type == "full" and first.memory_policy.offloaded:
            return Trials([first])  # gradients and state wait with their blocks, and shortened networks have none
        if not self.shortens and not self._is_worth(first, rows):
            return Trials([first])
        groups, smallest = list(rows), list(rows.values())
        counts = [smallest, *([*smallest[:i], smallest[i] + stride, *smallest[i + 1 :]] for i in range(len(smallest)))]
        trials = Trials(
            [Trial(self.scene, groups, numbers, first.shortened) for numbers in counts],
            [(group.count - count) / stride for group, count in rows.items()],
        )
        for trial in trials.trials:
            try:
                trial.load()
            except Exception as cause:
                raise Unlike(str(cause)) from cause
        current = [{"now": trial.ledger.current} for trial in trials.trials]
        for group in (ON_HOST, ON_DEVICE):
            # where blocks wait elsewhere, all of them say it, and the shortened networks stay where they are
            at = [{"now": row["now"][group]} for row in current]
            trials.extra_bytes[group] = first.ledger.current[group] - trials.extend(at)
        if any(trials.extra_bytes.values()) and not first.memory_policy.slots:
            raise Unlike("the weights are not those of blocks that repeat")
        return trials

    @staticmethod
    def _is_worth(first: Trial, rows: Mapping[RepeatedBlocks, int]) -> bool:
        """Do all shortened networks together have far fewer modules than the whole one?"""
        total = sum(1 for _ in first.model.modules())
        gone = sum(group.modules * (group.count - counts) // group.count for group, counts in rows.items())
        extra = sum(group.modules // group.count for group in rows)
        return (len(rows) + 1) * (total - gone) + extra < WORTH * total

    def _measure(self, trials: Trials, work: Callable[[Trial], object], marks: bool = True) -> tuple[int, int | None]:
        """Bytes on the host and on the device at the highest moment of a work. Raises whatever the work does."""
        peak_bytes = []
        for trial in trials.trials:
            if marks:
                trial.ledger.reset_peaks()
            with warnings.catch_warnings(action="ignore"):  # of what has no numbers
                work(trial)
            peak_bytes.append(trial.peaks())
        host, device = (
            trials.extend([peaks[location] for peaks in peak_bytes]) + trials.extra_bytes[location]
            for location in (ON_HOST, ON_DEVICE)
        )
        return host, device if self.card else None

    def _phase(self, name: str, trials: Trials, work: Callable[[Trial], object], of: str = "") -> None:
        """Adds the phase. Raises Unlike for what shortened networks cannot do."""
        self.tell(name)
        try:
            host, device = self._measure(trials, work)
            self.phases.append(Phase(name, of, host, device, idle=name in self.idle))
        except Exception as cause:  # any code of any model runs here
            if len(trials.trials) > 1:
                raise Unlike(str(cause)) from cause
            log.debug("%s in shapes", name, exc_info=True)
            first = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            fails = name == STEP and not needs_real_values(cause)
            self.phases.append(Phase(name, of, None, None, first[:200], fails=fails))


def step_of(batches: Mapping[Trial, Batch], trial: Trial) -> None:
    """A step of a trial's own batch."""
    trial.step(batches[trial])


def shapes(plan: DatasetPlan) -> list[tuple[PlannedDataset, Bucket]]:
    """The buckets that decide, each with its dataset: the largest of datasets that bring the same beside samples."""
    rows = [(dataset, bucket) for dataset in plan.training for bucket in dataset.buckets.buckets]
    largest: dict[tuple[str, ...], tuple[PlannedDataset, Bucket]] = {}
    for dataset, bucket in sorted(rows, key=lambda row: row[0].entry.train_batch_size * numbers_in(row[1])):
        largest[tuple(sorted(conditioning.role for conditioning in dataset.conditioning))] = dataset, bucket
    return list(largest.values())


def size_of_process(scene: Scene) -> int:
    """Bytes that a process takes which has imported what the run imports, and has no model yet."""
    family, config = scene.run.family, scene.run.config
    spec = family.spec.components
    components = [spec.denoiser, *spec.encoders.values(), *spec.extras.values(), *([spec.vae] if spec.vae else [])]
    for name in (family.spec.validation_pipeline(config), *(part.cls for part in components)):
        find_class(name)
    gc.collect()
    return resident_bytes() + LIBRARIES


def numbers_in(bucket: Bucket) -> int:
    """Pixels of a bucket's samples."""
    width, height = bucket.target
    return width * height * bucket.frames


def memory_of(card: Card | None) -> tuple[int, int | None]:
    """Bytes for a run on this host, what this process holds counted in, and on its card."""
    return available_bytes() + resident_bytes(), card.room if card else None


@contextlib.contextmanager
def on_card(card: Card | None) -> Iterator[None]:
    """Inside, devices are this card, and autocast is a GPU's; without a card nothing changes."""
    if card is None:
        yield
        return
    with assume_card(card), use_gpu_autocast_rules():
        yield


def compute_together(stepper: Stepper, waits: Callable[[nn.Parameter], bool]) -> None:
    """Let torch's optimizers update all weights in one call, as they do where all are on a GPU, which takes more."""
    if any(is_host(parameter.device) or waits(parameter) for parameter in stepper.parameters):
        return
    for group in getattr(stepper.optimizer, "param_groups", ()):
        if group.get("foreach", True) is None and not group.get("fused"):
            group["foreach"] = True
