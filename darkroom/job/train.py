"""One run, from settings to a result. Read `train` downwards."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from darkroom import adapters
from darkroom.adapters import stock
from darkroom.adapters.base import Adapter
from darkroom.core import log as logs
from darkroom.core.clock import Clock
from darkroom.core.errors import (
    CheckpointError,
    ConfigError,
    DarkroomError,
    DataError,
    DiskFullError,
    Interrupted,
    MemoryFullError,
)
from darkroom.core.events import Bus, Checkpoint, Event, Progress, RunEnd, RunStart, Step, Validation, Warn
from darkroom.core.memory import give_back_freed, is_memory_full, memory_full_message, memory_full_says
from darkroom.core.units import show_size
from darkroom.data import plan as data_plan
from darkroom.data.team import Team
from darkroom.data.watch import QUIET
from darkroom.diffusion.noise import seeded
from darkroom.families import forget, latents
from darkroom.families.base import CONTROLNET, Family
from darkroom.families.classes import named
from darkroom.families.components import Parts, scheduler_config
from darkroom.families.repository import cache_home, cut_short, looks_local
from darkroom.families.sound import heard
from darkroom.families.text import too_long
from darkroom.job import preflight, rehearse
from darkroom.job.inputs import come_from_datasets, dataset_prompts
from darkroom.job.needs import needs
from darkroom.job.phases import phase
from darkroom.memory import checkpointing
from darkroom.memory.place import OFFLOADS, Placement
from darkroom.objectives import denoise
from darkroom.objectives.base import Draws
from darkroom.optim import table
from darkroom.optim.clip import clip
from darkroom.optim.offload import Offloaded
from darkroom.optim.release import Released
from darkroom.optim.schedules import Scheduler, Shape
from darkroom.options.datasets import read_datasets
from darkroom.options.sources import Resolved, located
from darkroom.publish import metadata
from darkroom.report import lock, page
from darkroom.report.eventlog import EventLog
from darkroom.report.progress import ProgressBars
from darkroom.report.trackers import Trackers
from darkroom.train import distributed
from darkroom.train.checkpoint import Keeper, Snapshot, differences
from darkroom.train.ema import EMA
from darkroom.train.guards import check_disk
from darkroom.train.loop import Loop, StopRequest, terminable
from darkroom.train.state import TrainState
from darkroom.train.step import Stepper
from darkroom.validate.prompts import Prompt
from darkroom.validate.render import Renderer, wanted
from darkroom.validate.validator import Validator

log = logs.logger(__name__)

DEFAULT_SEED = 42
# in the output folder, what the cache of validation was measured to be
MEASURED = "magcache.json"
# a resume with another value of these would train other batches than the checkpoint counted
FIXED = (
    "train_batch_size",
    "gradient_accumulation_steps",
    "seed",
    "model_family",
    "model_type",
    "data_backend_sampling",
)
# these may change on the way, but then the run is no longer the one that was interrupted
NOTED = (
    "learning_rate", "lr_scheduler", "lr_warmup_steps", "max_train_steps", "num_train_epochs", "optimizer",
    "optimizer_config", "fuse_optimizer", "mixed_precision", "caption_dropout_probability", "resolution",
    "flow_schedule_shift", "snr_gamma", "loss_type", "use_ema", "ema_decay", "max_grad_norm", "grad_clip_method",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Release:
    """What a finished run hands over."""

    output: Path
    result: Path
    report: Path
    steps: int
    seconds: float


@dataclasses.dataclass
class Run:
    """What the stages of a run share."""

    resolved: Resolved
    family: Family
    output: Path
    bus: Bus
    bars: ProgressBars
    seed: int
    step: int = 0
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def config(self) -> Any:
        """The resolved options."""
        return self.resolved.config


def train(resolved: Resolved, only_caches: bool = False, listener: Callable[[Event], None] | None = None) -> Release:
    """Run to the end, or to the filled caches. Raises UserError, or Interrupted once a signalled run is saved."""
    family, prompts = preflight.check(resolved)
    with opened(resolved, family, listener) as run:
        for note in preflight.remarks(resolved, family):
            run.bus.emit(Warn(message=str(note), about="settings"))
        engine = distributed.start(run.config)
        placement = Placement(run.config, engine.device, family.blocks, shelf=cache_home() / "quantised")
        dtype = distributed.base_dtype(run.config)
        parts = Parts(family, run.config, engine.device, dtype, placement.text, placement.vae)

        plan = prepared(run, engine, only_caches)
        prompts = drawn(run, plan, parts, prompts)
        with advised(run, plan, prompts):
            return trained(run, engine, plan, parts, placement, prompts, only_caches)


def trained(
    run: Run, engine: Any, plan: Any, parts: Parts, placement: Placement, prompts: list[Prompt], only_caches: bool
) -> Release:
    """From the scanned datasets to the result."""
    config, family = run.config, run.family
    texts(run, plan, parts, prompts)
    pixels(run, plan, parts, 0 if only_caches else engine.num_processes)
    if only_caches:
        return Release(run.output, run.output, run.output / "events.jsonl", 0, time.monotonic() - run.started)

    with phase(run.bus, "load denoiser"):
        model = denoiser(run, parts, placement)
    if config.delete_model_after_load:
        forgotten(run, engine, parts)
    text = model.entry if config.train_text_encoder else plan.text
    validator = validation(run, parts, text, prompts)
    if validator and not config.disable_benchmark:
        with phase(run.bus, "base pictures"):
            validator.base(model)
    adapter = attached(run, model, parts)
    placement.attached(adapter.model, parts.denoisers_of(model))
    start_apart(run, adapter)
    steps, epochs = plan.steps_and_epochs(engine.num_processes)
    stepper, draws = trainer(run, engine, adapter, placement, scheduler_config(parts), steps)
    state = TrainState()
    snapshot = Snapshot(adapter, stepper, draws, state, path_settings(run), describing(run, parts, plan))
    keeper = Keeper(run.output, config)
    resumed = resume(run, keeper, snapshot)

    write_lock(run, plan, parts)
    announce(run, plan, adapter, steps, epochs, resumed)
    order = plan.order(engine.num_processes)
    loader = plan.loader(rank=engine.process_index, ranks=engine.num_processes, stack=family.stack_text, order=order)
    loop = Loop(stepper, loader, order.length, state, steps, run.bus)
    run.bus.on(Step, lambda event: save_when_due(run, keeper, snapshot, event))
    run.bus.on(Step, lambda event: give_back_when_due(run, event))
    if validator:
        validator.watch(adapter.model, stepper)
        run.bus.on(Step, guarded(run, validator))
    if config.rehearsal:
        rehearsed(run, plan.loader(rank=loader.rank, stack=family.stack_text, order=order), snapshot, validator)
    if validator and config.validation_on_startup and not resumed:
        validator.run(state.step)
    with loader, phase(run.bus, "training", state.step):
        train_until_done(run, loop, keeper, snapshot)
    return released(run, parts, snapshot, validator)


@contextlib.contextmanager
def advised(run: Run, plan: Any, prompts: list[Prompt]) -> Iterator[None]:
    """Where memory runs out, find out what to change. Raises MemoryFullError."""
    try:
        yield
    except Exception as cause:
        if not is_memory_full(cause):
            raise
        run.bars.say("Out of memory. Working out what would fit...")
        raise MemoryFullError(memory_full_message(cause, remedy(run, plan, prompts))) from cause


def remedy(run: Run, plan: Any, prompts: list[Prompt]) -> str:
    """What to change, or nothing where that cannot be told."""
    from darkroom.job import advice  # it forecasts what is here

    try:
        return advice.remedy(run.resolved, run.family, plan, prompts)
    except Exception:  # what happened matters more than what could be said of it
        log.debug("%s", traceback.format_exc())
        return ""


# -- opening ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(resolved: Resolved, family: Family, listener: Callable[[Event], None] | None) -> Iterator[Run]:
    """Log, event log, progress and trackers, open for the run and closed whatever happens."""
    config = resolved.config
    os.environ.update(resolved.exports)
    give_back_freed()
    output = Path(config.output_dir)
    handler = logs.to_file(output / "debug.log")
    bus, bars = Bus(), ProgressBars()
    run = Run(resolved, family, output, bus, bars, DEFAULT_SEED if config.seed is None else config.seed)
    events = EventLog(output / "events.jsonl", Clock())
    trackers = Trackers(config, output, {name: getattr(config, name) for name in type(config).model_fields})
    bus.on(Step, lambda event: setattr(run, "step", event.step))
    bus.on(Event, events)
    bus.on(Progress, bars.on_progress)
    bus.on(Step, bars.on_step)
    bus.on(Warn, lambda event: bars.say(f"! {event.message}"))
    bus.on(Step, trackers.on_step)
    bus.on(Validation, trackers.on_validation)
    if listener:
        bus.on(Event, listener)
    status, message = "completed", ""
    try:
        with terminable(), memory_full_says():
            yield run
    except ConfigError as wrong:
        told = located(wrong, resolved.sources)
        status, message = "failed", str(told)
        raise told from wrong
    except (Interrupted, KeyboardInterrupt) as stop:
        status, message = "interrupted", str(stop)
        raise
    except BaseException as cause:
        status, message = "failed", str(cause)
        if not isinstance(cause, DarkroomError):
            log.debug("%s", traceback.format_exc())
        raise
    finally:
        bars.close()
        end = RunEnd(step=run.step, status=status, message=message)
        report = functools.partial(page.write, output, dumped(config), resolved.sources)
        for last in (functools.partial(bus.emit, end), events.close, trackers.close, report):
            try:
                last()
            except (OSError, DarkroomError) as cause:
                if status == "completed":  # else the reason why the run ended matters more
                    log.warning("%s", cause)
        logs.logger("darkroom").removeHandler(handler)
        handler.close()


def dumped(config: Any) -> dict[str, Any]:
    """Every option and its value, as JSON has it; secrets are left out."""
    values = config.model_dump(mode="json")
    hidden = {info.name for info in _every_option() if info.secret}
    return {name: "***" if name in hidden and value else value for name, value in values.items()}


def _every_option() -> list[Any]:
    from darkroom.options.config import every_option

    return every_option()


# -- data -------------------------------------------------------------------------------------------------------------


def prepared(run: Run, engine: Any, only_caches: bool) -> Any:
    """The datasets, scanned and bucketed. Filling caches does not ask whether they make whole batches."""
    datasets = read_datasets(run.config.data_backend_config, run.config, os.environ)
    team = Team(engine.process_index, engine.num_processes, engine.wait_for_everyone)
    plan = data_plan.prepare(run.config, datasets, run.bus, needs(run.family, run.config), team=team)
    refuse_parentless(run, plan)
    with phase(run.bus, "scan"):
        plan.scan()
        if not only_caches:
            plan.check(engine.num_processes)
    run.bars.say(plan.report())
    return plan


def refuse_parentless(run: Run, plan: Any) -> None:
    """Regularisation data and sliders need an adapter; a full run has none."""
    if run.config.model_type != "full":
        return
    for entry in plan.file.training:
        if entry.is_regularisation_data:
            raise DataError(
                f"Dataset '{entry.id}' has is_regularisation_data, and model_type is full.\n"
                "  Regularisation data teaches an adapter to leave the base model's answers alone; a full run has no "
                "adapter.\n  Take is_regularisation_data out, or set model_type to lora."
            )
        if entry.slider_strength not in (None, 1.0):
            raise DataError(
                f"Dataset '{entry.id}' has slider_strength = {entry.slider_strength:g}, and model_type is full.\n"
                "  A slider is an adapter that is trained in both directions; a full run has none.\n"
                "  Take slider_strength out, or set model_type to lora."
            )


def drawn(run: Run, plan: Any, parts: Parts, prompts: list[Prompt]) -> list[Prompt]:
    """The validation prompts: those of the settings, or of the datasets where a model starts from pictures."""
    config = run.config
    if config.validation_disable or not come_from_datasets(run.family, config, prompts):
        if config.eval_dataset_id:
            message = (
                f"eval_dataset_id = {config.eval_dataset_id} is without effect: validation's prompts come from the "
                "settings. Set validation_using_datasets to draw from the dataset's pictures."
            )
            run.bus.emit(Warn(message=message, about="validation"))
        return prompts
    plan.use(
        text_identity=parts.text_identity(),
        latent_identity=parts.sample_identity(),
        plain_identity=parts.vae_identity(),
    )
    found = dataset_prompts(plan, run.family, config, run.output)
    own = [prompt.name for prompt in prompts if prompt.text]
    if own:
        message = f"Validation starts from pictures of the datasets; without a picture is not drawn: {', '.join(own)}."
        run.bus.emit(Warn(message=message, about="validation"))
    return found


def texts(run: Run, plan: Any, parts: Parts, prompts: list[Prompt]) -> None:
    """Fill the text cache and let the encoders go. They are loaded only if something is missing."""

    cut: list[str] = []

    def encode(captions: list[str]) -> list[dict[str, torch.Tensor]]:
        cut.extend(too_long(parts.text(), captions, run.config.tokenizer_max_length))
        return run.family.text_entries(parts.text(), captions, run.config)

    def read(caption: str, pictures: list[Any]) -> dict[str, torch.Tensor]:
        return run.family.seen_entry(parts.text(), caption, stills(pictures), run.config)

    with phase(run.bus, "text cache"):
        plan.use(latent_identity=parts.sample_identity(), plain_identity=parts.vae_identity())
        plan.want(*wanted(parts, run.config, prompts))
        looks = run.family.flavour(run.config.model_flavour).reads
        plan.fill_text(encode, parts.text_identity(), read if looks else None)
        if not plan.reads_while_training:
            parts.unload_text()
    if cut:
        message = (
            f"{len(cut)} captions are longer than the text encoders read (tokenizer_max_length = "
            f"{run.config.tokenizer_max_length}); their ends are not seen. For example '{cut[0][:60]}...'."
        )
        run.bus.emit(Warn(message=message, about="captions"))


def stills(pictures: list[Any]) -> list[Any]:
    """uint8 (H, W, 3), or (F, H, W, 3) of which the first frame counts, as PIL pictures."""
    from PIL import Image

    return [Image.fromarray(pixels if pixels.ndim == 3 else pixels[0]) for pixels in pictures]


def pixels(run: Run, plan: Any, parts: Parts, processes: int) -> None:
    """Fill the latent cache and let the VAE go. Pictures that turn out damaged must leave enough for a batch."""
    plain, encode = functools.partial(latents_of, parts), functools.partial(sample_of, run, parts)
    with phase(run.bus, "latent cache"):
        filled = plan.fill_latents(encode, parts.sample_identity(), plain=(plain, parts.vae_identity()))
        if processes and (filled.dropped or processes > 1):
            plan.check(processes)
        if not plan.encodes_while_training:
            parts.unload_vae()


def latents_of(parts: Parts, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) or clips (B, 3, F, H, W) in -1..1 as latents, on the host."""
    return latents.encode(parts.vae(), pictures, parts.latents).cpu()


def sample_of(run: Run, parts: Parts, pictures: torch.Tensor, sounds: Sequence[Any] = ()) -> dict[str, torch.Tensor]:
    """All that is cached of samples: latents, and what the family keeps beside them."""
    z = latents_of(parts, pictures)
    beside = run.family.sample_entries(parts, pictures, z, run.config)
    beside |= heard(run.family, parts, sounds, pictures.shape[2] if pictures.ndim == 5 else 1, run.config)
    return {"latents": z, **{name: tensor.cpu() for name, tensor in beside.items()}}


# -- model ------------------------------------------------------------------------------------------------------------


def denoiser(run: Run, parts: Parts, placement: Placement) -> Any:
    """The denoiser in the precision that the kind of training wants, where it is to be."""
    full = run.config.model_type == "full" and not run.config.controlnet  # beside a ControlNet it is frozen
    # a new ControlNet is made from the wide weights
    keeper = None if full or run.config.controlnet else placement.kept
    model = parts.denoiser(distributed.trained_dtype(run.config) if full else None, keeper)
    if run.config.gradient_checkpointing:
        checkpointing.enable(
            model, run.config.gradient_checkpointing_interval, run.config.gradient_checkpointing_backend
        )
    denoisers = parts.denoisers_of(model)
    whole = denoisers if full else {CONTROLNET} & denoisers.keys()
    placement.base(denoisers, whole, distributed.trained_dtype(run.config))
    for line in placement.describe():
        run.bars.say(f"  {line}")
    for line in placement.remarks():
        run.bus.emit(Warn(message=line, about="settings"))
    return model


def forgotten(run: Run, engine: Any, parts: Parts) -> None:
    """Delete the downloads that every process of this machine has in memory, or has no more use for."""
    engine.wait_for_everyone()
    if not engine.is_local_main_process:
        return
    freed = forget.forget([*forget.denoisers(parts), *forget.readers(parts)], run.config.revision)
    run.bars.say(f"Deleted {show_size(freed)} of downloaded weights; the next run downloads them again.")


def attached(run: Run, model: Any, parts: Parts) -> Adapter:
    """The adapter on the model, started from `init_lora` if given."""
    config, family = run.config, run.family
    dtype = distributed.trained_dtype(config)
    adapter = adapters.attach(model, config, family.targets, parts.trained[0], dtype, run.seed)
    if config.init_lora and config.model_type == "lora":
        start_from(adapter, parts, config.init_lora, run.resolved.sources["init_lora"])
    model.train()
    return adapter


def start_from(adapter: Any, parts: Parts, path: str, source: str = "") -> None:
    """Read an adapter in any format that the stock pipeline reads, and begin with its weights."""
    try:
        if looks_local(path) and not Path(path).expanduser().exists():
            raise FileNotFoundError(f"there is no such file or folder (seen from {Path.cwd()})")
        if path.endswith(".safetensors") and Path(path).is_file() and (problem := cut_short(Path(path))):
            raise ValueError(f"the file is damaged: {problem}")
        files = stock.files_of(path, adapter.members)
        pipeline = named(parts.family.drawn_by(parts.options))
        count = adapter.start_from({part: stock.tensors_of(pipeline, part, file) for part, file in files.items()})
    except (OSError, ValueError, KeyError, SafetensorError) as cause:
        raise ConfigError(
            "init_lora",
            path,
            source,
            f"Its weights cannot be used: {str(cause).rstrip('.')}.",
            "Use a whole file made for this family with the same rank and targets, or leave init_lora out.",
        ) from cause
    log.info("Started from %d tensors of %s.", count, path)


def start_apart(run: Run, adapter: Adapter) -> None:
    """Read what lies beside `init_lora` where this run learns the like; it begins afresh if nothing does."""
    if not (run.config.init_lora and adapter.apart):
        return
    path = Path(run.config.init_lora).expanduser()
    try:
        adapter.read_apart(path if path.is_dir() else path.parent)
    except (OSError, KeyError, RuntimeError, SafetensorError) as cause:
        message = (
            f"Beside init_lora nothing of its attention can be read ({cause}); this run learns it from the beginning."
        )
        run.bus.emit(Warn(message=message, about="settings"))


def trainer(
    run: Run, engine: Any, adapter: Adapter, placement: Placement, scheduler: dict, steps: int
) -> tuple[Stepper, Draws]:
    """Objective, optimizer, schedule, average and generators around the adapter."""
    config = run.config
    rank = engine.process_index if config.seed_for_each_device else 0
    draws = Draws(seeded(run.seed, rank, 1), seeded(run.seed, rank, 2, device=engine.device))
    torch.manual_seed(run.seed + rank)
    if config.gradient_precision == "fp32":
        for parameter in adapter.named.values():
            parameter.grad_dtype = torch.float32
    if engine.num_processes > 1:
        refuse_apart(config, placement)
    rate = scaled_rate(config, config.effective_learning_rate, engine.num_processes)
    row = table.row_of(config.optimizer)
    raw, way = updater(config, placement, grouped(config, adapter, engine.num_processes), rate, run.seed)
    end = config.lr_end / rate if rate else 0.0
    shape = Shape(config.lr_warmup_steps, steps, config.lr_num_cycles, config.lr_power, end)
    stepper = Stepper(
        engine=engine,
        model=engine.prepare_model(adapter.model) if engine.num_processes > 1 else adapter.model,
        objective=denoise.build(
            run.family, config, scheduler, draws, adapter.disabled, reading(config, adapter, steps)
        ),
        optimizer=engine.prepare_optimizer(raw) if engine.scaler else raw,
        scheduler=Scheduler(raw, "constant" if row.schedule_free else config.lr_scheduler, shape),
        ema=EMA(adapter.named, config) if config.use_ema else None,
        options=config,
        own_clip=row.own_clip,
        scaled=adapter.scaled,
        **way,
    )
    return stepper, draws


def refuse_apart(config: Any, placement: Placement) -> None:
    """Raises ConfigError for gradients that leave a process before those of the others are added."""
    away = ["optimizer_release_gradients", "optimizer_offload_gradients", *(OFFLOADS if placement.learning else ())]
    for name in away:
        if getattr(config, name):
            problem = "Several processes add their gradients up, which this one takes away before."
            raise ConfigError(name, getattr(config, name), "", problem, "Leave it out.")


def updater(
    config: Any, placement: Placement, groups: list[dict[str, Any]], rate: float, seed: int
) -> tuple[Any, dict[str, Any]]:
    """The optimizer where the options want it, and what a step has to know of that."""

    def build(given: Any, number: int = 0) -> Any:
        return table.build(config, given, rate, seed + number)

    if config.optimizer_cpu_offload_method != "none":
        away = Offloaded(groups, build, config.optimizer_offload_gradients)
        return away, {"parameters": list(away.twins.values()), "settle": away.collect}
    parameters = [p for group in groups for p in group["params"]]
    if config.optimizer_release_gradients:
        limit = 0.0 if table.row_of(config.optimizer).own_clip else config.max_grad_norm
        limited = functools.partial(clip, method=config.grad_clip_method, limit=limit)
        each = Released(groups, build, limited, together=config.grad_clip_method == "norm")
        return each, {"parameters": parameters, "released": each.size}
    return build(groups), {"parameters": parameters, "settle": placement.settle}


def grouped(config: Any, adapter: Adapter, processes: int) -> list[dict[str, Any]]:
    """The parameters, those of text encoders apart where they learn at a rate of their own."""
    if config.text_encoder_lr is None or not adapter.trained_text:
        return [{"params": list(adapter.named.values())}]
    rate = scaled_rate(config, config.text_encoder_lr, processes)
    text = {name: parameter for name, parameter in adapter.named.items() if adapter.is_text(name)}
    others = [parameter for name, parameter in adapter.named.items() if name not in text]
    return [{"params": others}, {"params": list(text.values()), "lr": rate}]


def reading(config: Any, adapter: Adapter, steps: int) -> Callable[[Any, int], dict[str, torch.Tensor]]:
    """How a step comes to its text: out of the cache, or read anew by encoders that learn."""
    if not config.train_text_encoder:
        return denoise.cached_text
    until = steps * config.text_encoder_limit / 100
    model: Any = adapter.model

    def read(batch: Any, step: int) -> dict[str, torch.Tensor]:
        made = model.read(batch.captions, learns=step < until)
        return {name: value.to(batch.cond[name]) for name, value in made.items()}

    return read


def scaled_rate(config: Any, rate: float, processes: int) -> float:
    """A learning rate, times the effective batch (or its root) if `lr_scale` asks for it."""
    if not config.lr_scale:
        return rate
    batch = config.train_batch_size * config.gradient_accumulation_steps * processes
    return rate * (batch**0.5 if config.lr_scale_sqrt else batch)


def validation(run: Run, parts: Parts, text: Callable[..., Any], prompts: list[Prompt]) -> Validator | None:
    """The validator, unless there is nothing to render; `text` gives the condition of a caption."""
    if run.config.validation_disable or not prompts:
        return None
    return Validator(Renderer(parts, run.config, text, kept=run.output / MEASURED), prompts, run.output, run.bus)


def guarded(run: Run, validator: Validator) -> Callable[[Step], None]:
    """Validation that fails is reported and training goes on, also on a full disk: the next save is what counts."""

    def on_step(event: Step) -> None:
        try:
            with forgiving(run, event.step):
                validator.on_step(event)
        except DiskFullError as cause:
            run.bus.emit(Warn(step=event.step, message=f"No validation pictures. {cause}", about="validation"))

    return on_step


@contextlib.contextmanager
def forgiving(run: Run, step: int) -> Iterator[None]:
    """A picture that cannot be rendered is reported, for it is not worth a run; the user's own errors go on."""
    try:
        yield
    except DarkroomError:
        raise
    except Exception as cause:
        log.debug("%s", traceback.format_exc())
        run.bus.emit(Warn(step=step, message=f"Validation failed: {cause}", about="validation"))


# -- running ----------------------------------------------------------------------------------------------------------


def path_settings(run: Run) -> dict[str, Any]:
    """Settings that decide the path of training; a checkpoint keeps them."""
    values = dumped(run.config)
    return {**{name: values[name] for name in (*FIXED, *NOTED)}, "seed": run.seed}


def describing(run: Run, parts: Parts, plan: Any) -> Callable[[TrainState], dict[str, str]]:
    """Writes the metadata of saved weights."""
    words = [p for d in plan.training for p in _prompts(d.entry.instance_prompt)]
    flavour = run.config.model_flavour or run.family.default_flavour
    return metadata.writer(run.config, flavour, words)


def _prompts(value: str | list[str] | tuple[str, ...] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def resume(run: Run, keeper: Keeper, snapshot: Snapshot) -> bool:
    """Go on from a checkpoint if there is one. Raises CheckpointError if it belongs to another run."""
    keeper.clear_leftovers()
    folder = keeper.find(run.config.resume_from_checkpoint)
    if folder is None:
        return False
    changed = differences(folder, snapshot.settings)
    refused = {k: v for k, v in changed.items() if k in FIXED}
    if refused and not run.config.i_know_what_i_am_doing:
        lines = "\n".join(f"  {name}: {old!r} then, {new!r} now" for name, (old, new) in refused.items())
        raise CheckpointError(
            f"{folder} was made with other settings, so the run cannot go on where it was:\n{lines}\n"
            "  Put them back, set resume_from_checkpoint to none, or set i_know_what_i_am_doing to go on regardless."
        )
    snapshot.read(folder)
    for name, (old, new) in changed.items():
        run.bus.emit(
            Warn(
                step=snapshot.state.step, message=f"{name} was {old!r} before this resume, now {new!r}.", about="resume"
            )
        )
    run.bars.say(f"Going on from {folder.name}: step {snapshot.state.step}, epoch {snapshot.state.epoch}.")
    return True


def write_lock(run: Run, plan: Any, parts: Parts) -> None:
    """`run.lock.json`."""
    lock.write(
        run.output / "run.lock.json",
        dumped(run.config),
        run.resolved.sources,
        plan.manifest_hash(),
        parts.base_identity(),
        {"seed": run.seed},
    )


def announce(run: Run, plan: Any, adapter: Adapter, steps: int, epochs: int, resumed: bool) -> None:
    """Say what is about to happen."""
    config = run.config
    described = adapter.describe()
    sizes = sorted({d.entry.train_batch_size for d in plan.training})
    clip = f"{config.grad_clip_method} {config.max_grad_norm:g}" if config.max_grad_norm else "off"
    summary = {
        "model": f"{run.family.title} ({config.model_flavour or run.family.default_flavour})",
        "training": f"{described['kind']}, {described['parameters']:,} parameters",
        "samples": sum(len(d.index.usable) for d in plan.training),
        "epochs": epochs,
        "batch": f"{' or '.join(map(str, sizes))} x {config.gradient_accumulation_steps}",
        "optimizer": config.optimizer,
        "gradient clipping": clip,
    }
    run.bus.emit(RunStart(summary={**summary, "resumed": resumed}))
    run.bars.say("\n".join(f"  {name}: {value}" for name, value in {**summary, "steps": steps}.items()))


def rehearsed(run: Run, loader: Any, snapshot: Snapshot, validator: Validator | None) -> None:
    """Try the largest step, a picture and a save, and say what they took."""
    with loader:
        loader.watch = QUIET
        batch = rehearse.largest(loader, snapshot.state.epoch)
    held = rehearse.rehearse(run, snapshot, batch, validator.rehearse if validator else None)
    said = ", ".join(f"{name.removeprefix(rehearse.REHEARSAL)} {show_size(size)}" for name, size in held.items())
    run.bars.say(f"  most memory in a rehearsal: {said}")


def give_back_when_due(run: Run, event: Step) -> None:
    """Give unused memory of the device back every so many steps, for others on it."""
    interval = run.config.accelerator_cache_clear_interval
    if interval and event.step % interval == 0 and torch.cuda.is_available():
        torch.cuda.empty_cache()


def save_when_due(run: Run, keeper: Keeper, snapshot: Snapshot, event: Step) -> None:
    """Checkpoint by step, by epoch, or rolling."""
    config, step = run.config, event.step
    by_step = config.checkpoint_step_interval and step % config.checkpoint_step_interval == 0
    by_epoch = (
        config.checkpoint_epoch_interval and event.epoch_ended and event.epoch % config.checkpoint_epoch_interval == 0
    )
    rolling = config.checkpointing_rolling_steps and step % config.checkpointing_rolling_steps == 0
    if by_step or by_epoch:
        save(run, keeper, snapshot, "step" if by_step else "epoch")
    elif rolling:
        save(run, keeper, snapshot, "rolling")


def save(run: Run, keeper: Keeper, snapshot: Snapshot, kind: str) -> None:
    """Write a checkpoint and tell the bus."""
    check_disk(run.output, run.config)
    path = keeper.save(snapshot, rolling=kind == "rolling")
    run.bus.emit(Checkpoint(step=snapshot.state.step, path=str(path), kind=kind))


def train_until_done(run: Run, loop: Loop, keeper: Keeper, snapshot: Snapshot) -> None:
    """The loop; a signal leaves a checkpoint of the last finished step."""
    with StopRequest() as stop:
        try:
            loop.run(stop)
        except Interrupted:
            here = run.output / f"checkpoint-{snapshot.state.step}"
            if not here.exists():
                save(run, keeper, snapshot, "interrupted")
            run.bars.say(f"Stopped after step {snapshot.state.step}; saved. The same command goes on from there.")
            raise


def released(run: Run, parts: Parts, snapshot: Snapshot, validator: Validator | None) -> Release:
    """Final weights, final pictures."""
    step = snapshot.state.step
    result = run.output / snapshot.adapter.result
    with phase(run.bus, "final save", step), snapshot.stepper.weights_for_use():
        if snapshot.adapter.result == "pipeline":
            parts.save_pipeline(snapshot.adapter.model, result)
            snapshot.adapter.save_apart(result)
        else:
            snapshot.adapter.save(run.output, snapshot.metadata(snapshot.state))
            if run.config.save_text_encoder:
                for component in snapshot.adapter.trained_text:
                    snapshot.adapter.whole(component).save_pretrained(run.output / component)
        if snapshot.stepper.ema:
            with snapshot.stepper.ema.applied():
                snapshot.adapter.save(run.output / "ema", snapshot.metadata(snapshot.state))
    if validator:
        with phase(run.bus, "final validation", step), forgiving(run, step):
            validator.final(step)
    run.bars.say(f"Done: {result}")
    return Release(run.output, result, run.output / "report.html", step, time.monotonic() - run.started)
