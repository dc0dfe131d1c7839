"""The memory that a run would take, phase by phase: the run itself, in shapes.

The models are built without weights and do what they do in the run, on fake tensors, under a ledger of what lives at
each moment. What shapes do not show are a few constants, measured: what the process takes before any model, and what
libraries keep for themselves. A phase whose code cannot run in shapes is said to be unknown, with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from darkroom.core.events import Bus
from darkroom.core.log import logger
from darkroom.core.memory import available, held
from darkroom.data.sample import Batch
from darkroom.families.components import scheduler_config
from darkroom.families.hollow import HollowParts
from darkroom.job import stages
from darkroom.job.rehearse import micro_batches
from darkroom.job.run import Run
from darkroom.memory.hollow import HollowPlacement
from darkroom.memory.ledger import Ledger, wants_numbers
from darkroom.options.sources import Resolved
from darkroom.train import distributed
from darkroom.validate.prompts import Prompt
from darkroom.validate.render import Renderer

log = logger(__name__)
MB = 2**20
# what torch's libraries take at the first product and convolution
LIBRARIES = 18 * MB
# steps that show the peak: the second one finds the optimizer's state
STEPS = 2
HOST = "cpu"
# where an option comes from that is tried
ADVICE = "advice"
TEXT, LATENTS, LOAD = "text cache", "latent cache", "load denoiser"
STEP, PICTURE, SAVE = "step", "picture", "save"


@dataclasses.dataclass(frozen=True)
class Phase:
    """Bytes at the highest moment of a phase, on the host and on the device; None where it is not known, for `why`.

    `of` says of what, where there are several of a kind; `spare` bytes are of files that are mapped while they are
    read, which the system takes back when it is short. `idle`: the run finds its result cached, and passes it over.
    `fails`: its code failed for a reason that holds for the run too.
    """

    phase: str
    of: str
    host: int | None
    device: int | None = None
    why: str = ""
    spare: int = 0
    idle: bool = False
    fails: bool = False


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The phases of a run, the memory that this machine has for it now, in bytes, and the denoiser's blocks."""

    phases: list[Phase]
    host: int
    device: int | None = None
    blocks: int = 0

    @property
    def too_large(self) -> list[Phase]:
        """The phases that do not fit."""
        return [phase for phase in self.phases if not self._fits(phase)]

    def _fits(self, phase: Phase) -> bool:
        if phase.idle:
            return True
        return (phase.host or 0) - phase.spare <= self.host and (phase.device or 0) <= (self.device or 0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [dataclasses.asdict(phase) | {"fits": self._fits(phase)} for phase in self.phases]
        return {"phases": rows, "host": self.host, "device": self.device}


class Silent:
    """Bars that say nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class Forecaster:
    """Runs a run's phases in shapes. `plan` has the scanned datasets, `prompts` what validation draws."""

    def __init__(self, resolved: Resolved, family: Any, plan: Any, prompts: list[Prompt]):
        config = resolved.config
        # what is planned for larger batches can be forecast for smaller ones
        self.most = config.train_batch_size if resolved.sources["train_batch_size"] == ADVICE else sys.maxsize
        self.engine = distributed.start(config)
        self.device = self.engine.device
        self.family, self.config, self.plan, self.prompts = family, config, plan, prompts
        self.run = Run(resolved, family, Path(config.output_dir), Bus(), Silent())  # type: ignore[arg-type]
        self.ledger = Ledger()
        self.placement = HollowPlacement(config, self.device, family.blocks, self.ledger)
        dtype, placement = distributed.base_dtype(config), self.placement
        self.parts = HollowParts(self.ledger.hollow, family, config, self.device, dtype, placement.text, placement.vae)
        self.phases: list[Phase] = []
        missing = plan.missing()
        self.idle = {name for name, count in ((TEXT, missing.texts), (LATENTS, missing.latents)) if not count}
        self.blocks = 0

    @staticmethod
    def place() -> torch.device:
        """Where a run's models would be."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def forecast(self, until_too_large: bool = False) -> Forecast:
        """All phases in their order, or those up to the first that does not fit."""
        for _ in self._each():
            if until_too_large and self._made().too_large:
                break
        return self._made()

    def _made(self) -> Forecast:
        # by now this process has imported what the run imports
        start = held() + LIBRARIES
        known = [p if p.host is None else dataclasses.replace(p, host=p.host + start) for p in self.phases]
        return Forecast(known, *memory_of(self.device), self.blocks)

    def _each(self) -> Iterator[Any]:
        yield (entry := self._phase(TEXT, self._text))
        self.parts.unload_text()
        yield (samples := self._phase(LATENTS, self._latents))
        self.parts.unload_vae()
        yield (made := self._phase(LOAD, self._model))
        if not (made and entry and samples):
            return
        model, stepper = made
        for dataset, sample in samples:
            with self.ledger:
                batch = self._batch(dataset, entry, sample)
            size = "x".join(map(str, reversed(batch.latents.shape[2:])))
            step = functools.partial(self._step, stepper, batch)
            yield self._phase(STEP, step, f"{len(batch)} latents of {size}")
        if self.prompts and not self.config.validation_disable:
            yield self._phase(PICTURE, lambda: self._picture(model, entry))
        yield self._phase(SAVE, lambda: self._save(stepper))

    def _phase(self, name: str, work: Callable[[], Any], of: str = "") -> Any:
        """What a phase answers; None if it cannot run in shapes."""
        self.ledger.mark()
        try:
            with warnings.catch_warnings(action="ignore"):  # of what has no numbers
                answer = work()
        except Exception as cause:  # any code of any model runs here
            log.debug("%s in shapes", name, exc_info=True)
            first = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            fails = name == STEP and not wants_numbers(cause)
            self.phases.append(Phase(name, of, None, None, first[:200], fails=fails))
            return None
        peak = self.ledger.peak
        spare = sum(self.parts.weight_bytes(part) or 0 for part in self.parts.trained) if name == LOAD else 0
        device = None if self.device.type == HOST else peak[self.device.type]
        host = self.placement.while_loading(spare) if name == LOAD else peak[HOST]
        self.phases.append(Phase(name, of, host, device, spare=spare, idle=name in self.idle))
        return answer

    # -- phases ----------------------------------------------------------------------------------------------------

    def _text(self) -> dict[str, Any]:
        captions = (self.plan.captions() or [""])[: self.plan.file.default_text.text_encoder_batch_size]
        pipe = self.parts.text()
        dataset, bucket = self._shapes()[0]
        count = max(1, sum(companion.role == "reference" for companion in dataset.companions))
        pictures = [Image.new("RGB", bucket.target)] * count
        with self.ledger:
            if self.family.flavour(self.config.model_flavour).reads:
                return self.family.seen_entry(pipe, captions[0], pictures, self.config)
            return self.family.text_entries(pipe, captions, self.config)[0]

    def _latents(self) -> list[tuple[Any, dict[str, Any]]]:
        """The planned dataset and one sample's entries for each shape of its buckets."""
        self.parts.vae()
        found = []
        for dataset, bucket in self._shapes():
            width, height = bucket.target
            facts = self.parts.latents
            clip = (bucket.frames,) if facts.temporal or facts.layered else ()
            # with numbers, since some are looked at by programs that know no tensors
            pictures = self.ledger.count(torch.zeros(self.config.vae_batch_size, 3, *clip, height, width))
            with self.ledger:
                entry = stages.sample_of(self.run, self.parts, pictures, [None] * len(pictures))
                found.append((dataset, {name: tensor[:1] for name, tensor in entry.items()}))
        return found

    def _shapes(self) -> list[tuple[Any, Any]]:
        """The buckets that decide: the largest and the smallest, each with its dataset."""
        rows = [(dataset, bucket) for dataset in self.plan.training for bucket in dataset.buckets.buckets]
        by_size = sorted(rows, key=lambda row: row[0].entry.train_batch_size * numbers_in(row[1]))
        return [by_size[-1]] + ([by_size[0]] if numbers_in(by_size[0][1]) != numbers_in(by_size[-1][1]) else [])

    def _model(self) -> tuple[Any, Any]:
        model = stages.denoiser(self.run, self.parts, self.placement)
        denoisers = self.parts.denoisers_of(model)
        self.blocks = min(len(self.placement.blocks_of(each)) for each in denoisers.values())
        adapter = stages.attached(self.run, model, self.parts)
        self.placement.attached(adapter.model, denoisers)
        stepper, _ = stages.trainer(self.run, self.engine, adapter, self.placement, scheduler_config(self.parts), STEPS)
        return model, stepper

    def _batch(self, dataset: Any, text: dict[str, Any], sample: dict[str, Any]) -> Batch:
        """A batch as the loader would make it, of one sample again and again."""
        # an entry has the config's, unless it has its own
        count = min(dataset.entry.train_batch_size, self.most)
        kept = {name: torch.cat([tensor] * count) for name, tensor in sample.items()}
        latents = kept.pop("latents")
        roles = [companion.role for companion in dataset.companions]
        height, width = (edge * self.parts.latents.downscale for edge in latents.shape[-2:])
        pixels = torch.empty(count, 3, height, width) if self.family.sees(self.config) == "pixels" else latents
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
            extras=kept,
            references=tuple(latents for role in roles if role == "reference"),
            controls=tuple(pixels for role in roles if role == "control"),
            mask=torch.ones(count, 1, *latents.shape[2:]) if "mask" in roles else None,
        )

    def _step(self, stepper: Any, batch: Batch) -> None:
        with self.ledger:
            for step in range(STEPS):
                stepper.update([batch.to(self.device)] * micro_batches(self.config), step)

    def _picture(self, model: Any, entry: dict[str, Any]) -> None:
        renderer = Renderer(self.parts, self.config, lambda caption, looks=(): entry)
        self.parts.vae()
        with self.ledger:
            renderer.shortest(model, self.prompts, form="pt")

    def _save(self, stepper: Any) -> None:
        """A file is copied as a whole before it is written."""
        state = [t for row in stepper.optimizer.state.values() for t in row.values() if isinstance(t, torch.Tensor)]
        trained, moments = (
            sum(t.numel() * t.element_size() for t in tensors) for tensors in (stepper.parameters, state)
        )
        copies = 1 if self.device.type == HOST else 2
        self.parts.unload_vae()
        self.ledger.peak[HOST] = self.ledger.mark()[HOST] + copies * max(trained, moments)


def numbers_in(bucket: Any) -> int:
    """Pixels of a bucket's samples."""
    width, height = bucket.target
    return width * height * bucket.frames


def memory_of(device: torch.device) -> tuple[int, int | None]:
    """Bytes for a run on the host, what this process holds counted in, and on the device."""
    own = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
    return available() + held(), torch.cuda.mem_get_info(device)[0] + own if device.type == "cuda" else None
