"""One run, from settings to a result. Read `train` downwards."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError

from darkroom.adapters.base import Adapter
from darkroom.core import log as logs
from darkroom.core.errors import (
    DarkroomError,
    DataError,
    DiskFullError,
    Interrupted,
    MemoryFullError,
)
from darkroom.core.events import Checkpoint, Event, RunStart, Step, Warn
from darkroom.core.files import follow_umask
from darkroom.core.memory import (
    freeze_garbage,
    import_libraries,
    is_memory_full,
    keep_freed_memory,
    memory_full_message,
)
from darkroom.core.units import show_size
from darkroom.data import manifest
from darkroom.data import plan as data_plan
from darkroom.data.batches.source import BatchSource
from darkroom.data.cache.caches import DatasetCaches
from darkroom.data.cache.filler import CacheFiller
from darkroom.data.debug_log import NO_DEBUG_LOG
from darkroom.data.manifest import DataChanges
from darkroom.data.plan import DatasetPlan
from darkroom.data.process_group import ProcessGroup
from darkroom.families.shared.classes import find_class
from darkroom.job import advice, preflight, rehearse, resume
from darkroom.job.caches import RunEncoders, fill_latent_cache, fill_text_cache, require_prompts
from darkroom.job.claim import claim_folder
from darkroom.job.inputs import dataset_prompts, uses_dataset_prompts
from darkroom.job.needs import build_data_requirements
from darkroom.job.phases import phase
from darkroom.job.resume import Resumption
from darkroom.job.run import Run, config_as_dict, open_run
from darkroom.job.stages import attach_adapter, build_stepper, load_denoiser
from darkroom.memory.policy import MemoryPolicy
from darkroom.options.datasets import DatasetFile, read_datasets
from darkroom.options.sources import Resolved
from darkroom.pretrained import deletion
from darkroom.pretrained.components import Components, scheduler_config
from darkroom.pretrained.repository import find_cache_home
from darkroom.publish import metadata
from darkroom.report import lock
from darkroom.train import distributed
from darkroom.train.checkpoint import CheckpointManager, Snapshot
from darkroom.train.guards import ensure_disk_space
from darkroom.train.loop import Loop
from darkroom.train.state import TrainState
from darkroom.validate.prompts import Prompt
from darkroom.validate.render import Renderer, TextReader
from darkroom.validate.validator import Validator

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from darkroom.data.batches.loader import BatchLoader
    from darkroom.families.shared.trainable_text import DenoiserWithText

log = logs.logger(__name__)

# in the output folder, what the cache of validation was measured to be
MEASURED = "magcache.json"


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a finished run hands over."""

    output: Path
    result: Path
    report: Path
    steps: int
    seconds: float


def train(resolved: Resolved, only_caches: bool = False, listener: Callable[[Event], None] | None = None) -> RunResult:
    """Run to the end, or to the filled caches. Raises UserError, or Interrupted once a signalled run is saved."""
    family, prompts = preflight.validate_run(resolved)
    gc.collect()  # the models of an earlier run in this process, which hold each other
    output = Path(resolved.config.output_dir)
    with claim_folder(output, resolved.sources.get("output_dir", "")), open_run(resolved, family, listener) as run:
        for note in preflight.remarks(resolved, family):
            run.bus.emit(Warn(message=str(note), about="settings"))
        engine = distributed.start(run.config)
        memory_policy = MemoryPolicy(
            run.config, engine.device, family.blocks, quantized_cache_dir=find_cache_home() / "quantised"
        )
        dtype = distributed.base_dtype(run.config)
        components = Components(
            family, run.config, engine.device, dtype, memory_policy.prepare_text_encoder, memory_policy.prepare_vae
        )
        encoders = RunEncoders(run, components)
        if only_caches:
            filler, prompts = prepare_caches(run, scan_datasets(run, engine, only_caches), encoders, prompts)
            with advise_on_full_memory(run, filler, prompts):
                fill_caches(filler, encoders, 0)
            return RunResult(output, output, output / "events.jsonl", 0, time.monotonic() - run.started)

        keeper = CheckpointManager(output, run.config)
        if engine.is_main_process:
            resume.clear_leftovers(output)
        settings = resume.collect_compared_settings(resolved, family, components)
        start = resume.find(resolved, keeper, settings)
        plan = scan_datasets(run, engine, only_caches)
        if finished := resume.find_finished(output, keeper, run.config, plan, engine.num_processes):
            return report_finished(run, *finished)
        filler, prompts = prepare_caches(run, plan, encoders, prompts)
        with advise_on_full_memory(run, filler, prompts):
            return train_model(run, engine, filler, encoders, memory_policy, prompts, keeper, settings, start)


def report_finished(run: Run, steps: int, result: Path) -> RunResult:
    """Say that this run has ended before, and how to train on."""
    run.step = steps
    run.bars.print_line(
        f"This run is finished: {steps} steps, {result}. Nothing was done.\n"
        "  To train on, raise max_train_steps or num_train_epochs; to begin anew, set resume_from_checkpoint to none."
    )
    return RunResult(run.output, result, run.output / "report.html", steps, time.monotonic() - run.started)


def fill_caches(filler: CacheFiller, encoders: RunEncoders, processes: int) -> None:
    """Encode what the caches lack. With `processes` what is left must make whole batches for so many."""
    fill_text_cache(filler, encoders)
    fill_latent_cache(filler, encoders, processes)


def train_model(
    run: Run,
    engine: Accelerator,
    filler: CacheFiller,
    encoders: RunEncoders,
    memory_policy: MemoryPolicy,
    prompts: list[Prompt],
    keeper: CheckpointManager,
    settings: Mapping[str, object],
    start: Resumption | None,
) -> RunResult:
    """From the scanned datasets to the result."""
    config, family, processes = run.config, run.family, engine.num_processes
    plan, components = filler.plan, encoders.components
    with import_libraries():
        find_class(components.specs.denoiser.cls)
    fill_caches(filler, encoders, processes)
    choose_tf32(run, plan, engine.device)
    changes = resume.changes_of_data(start, plan, processes)
    state = resume.initial_state(start, changes, config)
    base = resume.base_of(state)
    steps, epochs = plan.steps_and_epochs(processes, base)
    state.total = steps

    with phase(run.bus, "load denoiser"):
        model = load_denoiser(run, components, memory_policy)
    if config.delete_model_after_load:
        delete_loaded_weights(run, engine, components)
    text = cast("DenoiserWithText", model).entry if config.train_text_encoder else filler.caches.text
    validator = build_validator(run, components, text, prompts)
    if validator and not config.disable_benchmark:
        with phase(run.bus, "base pictures"):
            validator.base(model)
    adapter = attach_adapter(run, model, components)
    denoisers = components.denoisers_of(model)
    memory_policy.attach_trained(adapter.model, denoisers)
    start_extra_modules(run, adapter)
    stepper = build_stepper(run, engine, adapter, memory_policy, scheduler_config(components), denoisers, steps, state)
    data = {manifest.FILE: plan.manifest(processes).to_bytes()}
    snapshot = Snapshot(adapter, stepper, state, settings, build_metadata_writer(run, components, plan), data)
    restore(run, engine, keeper, snapshot, start, changes)

    write_lock(run, plan, components)
    announce(run, plan, adapter, state, epochs, resumed=start is not None)
    batches = BatchSource(filler.caches, rank=engine.process_index, ranks=processes, base=base, stack=family.stack_text)
    loader = batches.loader(pins=engine.device.type == "cuda")
    loop = Loop(stepper, loader, batches.order.length, state, steps, run.bus)
    run.bus.on(Step, lambda event: save_when_due(run, keeper, snapshot, event))
    run.bus.on(Step, lambda event: give_back_when_due(run, event))
    if validator:
        validator.watch(adapter.model, stepper)
        validator.stopped = lambda: bool(run.stop.name)
        run.bus.on(Step, validate_on_step(run, validator))
    if config.rehearsal:
        run_rehearsal(run, batches.loader(), snapshot, validator)
    if validator and config.validation_on_startup and not start:
        validator.run(state.step)
    with loader, phase(run.bus, "training", state.step):
        run_training_loop(run, loop, keeper, snapshot)
    return export_result(run, components, keeper, snapshot, validator)


@contextlib.contextmanager
def advise_on_full_memory(run: Run, filler: CacheFiller, prompts: list[Prompt]) -> Iterator[None]:
    """Where memory runs out, find out what to change. Raises MemoryFullError."""
    try:
        yield
    except Exception as cause:
        if not is_memory_full(cause):
            raise
        run.bars.print_line("Out of memory. Working out what would fit...")
        raise MemoryFullError(memory_full_message(cause, remedy(run, filler, prompts))) from cause


def remedy(run: Run, filler: CacheFiller, prompts: list[Prompt]) -> str:
    """What to change, or nothing where that cannot be told."""
    try:
        return advice.remedy(run.resolved, run.family, filler, prompts)
    except Exception:  # what happened matters more than what could be said of it
        log.debug("%s", traceback.format_exc())
        return ""


# -- data -------------------------------------------------------------------------------------------------------------


def scan_datasets(run: Run, engine: Accelerator, only_caches: bool) -> DatasetPlan:
    """The datasets, scanned and bucketed. Filling caches does not ask whether they make whole batches."""
    rate = run.family.spec.fps
    datasets = read_datasets(run.config.data_backend_config, run.config, os.environ, rate)
    team = ProcessGroup(engine.process_index, engine.num_processes, engine.wait_for_everyone)
    refuse_parentless(run, datasets)
    requirements = build_data_requirements(run.family, run.config)
    with phase(run.bus, "scan"):
        plan = data_plan.scan_datasets(run.config, datasets, run.bus, requirements, process_group=team)
        if not only_caches:
            plan.validate(engine.num_processes)
    run.bars.print_line(plan.report())
    return plan


def refuse_parentless(run: Run, datasets: DatasetFile) -> None:
    """Regularization data and sliders need an adapter; a full run has none."""
    if run.config.model_type != "full":
        return
    for entry in datasets.training:
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


def prepare_caches(
    run: Run, plan: DatasetPlan, encoders: RunEncoders, prompts: list[Prompt]
) -> tuple[CacheFiller, list[Prompt]]:
    """What fills the caches, and the validation prompts, whose captions have to be in them too."""
    caches = DatasetCaches(plan, encoders.as_encoders())
    prompts = collect_prompts(run, caches, prompts)
    return CacheFiller(caches, require_prompts(encoders.components, run.config, prompts)), prompts


def collect_prompts(run: Run, caches: DatasetCaches, prompts: list[Prompt]) -> list[Prompt]:
    """The validation prompts: those of the settings, or of the datasets where a model starts from images."""
    config = run.config
    if config.validation_disable or not uses_dataset_prompts(run.family, config, prompts):
        if config.eval_dataset_id:
            message = (
                f"eval_dataset_id = {config.eval_dataset_id} is without effect: validation's prompts come from the "
                "settings. Set validation_using_datasets to draw from the dataset's pictures."
            )
            run.bus.emit(Warn(message=message, about="validation"))
        return prompts
    dataset_based = dataset_prompts(caches, run.family, config, run.output)
    ignored = [prompt.name for prompt in prompts if prompt.text]
    if ignored:
        message = (
            f"Validation starts from pictures of the datasets; without a picture is not drawn: {', '.join(ignored)}."
        )
        run.bus.emit(Warn(message=message, about="validation"))
    return dataset_based


def choose_tf32(run: Run, plan: DatasetPlan, device: torch.device) -> None:
    """Let training use TF32 unless `disable_tf32`; not where samples are encoded meanwhile, whose cache is shared."""
    encodes = plan.encodes_while_training or plan.reads_while_training
    distributed.allow_tf32(not run.config.disable_tf32 and not encodes)
    if encodes and not run.config.disable_tf32 and device.type == "cuda":
        message = "This run computes without TF32, as disable_tf32 would: it encodes samples while it trains."
        run.bus.emit(Warn(message=message, about="settings"))


# -- model ------------------------------------------------------------------------------------------------------------


def delete_loaded_weights(run: Run, engine: Accelerator, components: Components) -> None:
    """Delete the downloads that every process of this machine has in memory, or has no more use for."""
    engine.wait_for_everyone()
    if not engine.is_local_main_process:
        return
    freed = deletion.delete_weights(
        [*deletion.find_denoiser_sources(components), *deletion.find_encoder_sources(components)], run.config.revision
    )
    run.bars.print_line(f"Deleted {show_size(freed)} of downloaded weights; the next run downloads them again.")


def start_extra_modules(run: Run, adapter: Adapter) -> None:
    """Read what lies beside `init_lora` where this run learns the like; it begins afresh if nothing does."""
    if not (run.config.init_lora and adapter.extra_modules):
        return
    path = Path(run.config.init_lora).expanduser()
    try:
        adapter.load_extra_modules(path if path.is_dir() else path.parent)
    except (OSError, KeyError, RuntimeError, SafetensorError) as cause:
        message = (
            f"Beside init_lora nothing of its attention can be read ({cause}); this run learns it from the beginning."
        )
        run.bus.emit(Warn(message=message, about="settings"))


def build_validator(run: Run, components: Components, text: TextReader, prompts: list[Prompt]) -> Validator | None:
    """The validator, unless there is nothing to render; `text` gives the condition of a caption."""
    if run.config.validation_disable or not prompts:
        return None
    return Validator(
        Renderer(components, run.config, text, ratios_file=run.output / MEASURED), prompts, run.output, run.bus
    )


def validate_on_step(run: Run, validator: Validator) -> Callable[[Step], None]:
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
    """An image that cannot be rendered is reported, for it is not worth a run; the user's own errors go on."""
    try:
        yield
    except DarkroomError:
        raise
    except Exception as cause:
        log.debug("%s", traceback.format_exc())
        run.bus.emit(Warn(step=step, message=f"Validation failed: {cause}", about="validation"))
        forget_frames(cause)


def forget_frames(cause: BaseException) -> None:
    """Let go what the functions that failed were holding, such as a VAE: the next step needs the room."""
    traceback.clear_frames(cause.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -- running ----------------------------------------------------------------------------------------------------------


def build_metadata_writer(
    run: Run, components: Components, plan: DatasetPlan
) -> Callable[[TrainState], dict[str, str]]:
    """Writes the metadata of saved weights."""
    words = [p for d in plan.training for p in _prompts(d.entry.instance_prompt)]
    flavour = run.family.spec.name
    return metadata.writer(run.config, flavour, words)


def _prompts(value: str | list[str] | tuple[str, ...] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def restore(
    run: Run,
    engine: Accelerator,
    keeper: CheckpointManager,
    snapshot: Snapshot,
    start: Resumption | None,
    changes: DataChanges,
) -> None:
    """Put the checkpoint's contents into the run, and what it does not come from out of its way."""
    state = snapshot.state
    if start is not None:
        planned = dataclasses.replace(state)
        snapshot.read(start.folder, start.fresh_optimizer)
        vars(state).update(vars(planned))
        run.step = state.step
        if start.is_untouched and not changes.reorders and start.folder.parent == run.output:
            keeper.newest = state.step
        resume.announce(run, start, changes, state)
    if engine.is_main_process:
        resume.leave_branch(run, keeper, start.folder if start else None)


def write_lock(run: Run, plan: DatasetPlan, components: Components) -> None:
    """`run.lock.json`."""
    lock.write(
        run.output / "run.lock.json",
        config_as_dict(run.config),
        run.resolved.sources,
        plan.manifest_hash(),
        components.base_identity(),
        {"seed": run.seed},
    )


def announce(run: Run, plan: DatasetPlan, adapter: Adapter, state: TrainState, epochs: int, resumed: bool) -> None:
    """Say what is about to happen."""
    config = run.config
    described = adapter.describe()
    sizes = sorted({d.entry.train_batch_size for d in plan.training})
    clip = f"{config.grad_clip_method} {config.max_grad_norm:g}" if config.max_grad_norm else "off"
    summary = {
        "model": f"{run.family.title} ({run.family.spec.name})",
        "training": f"{described['kind']}, {described['parameters']:,} parameters",
        "samples": sum(len(d.index.usable) for d in plan.training),
        "epochs": epochs,
        "batch": f"{' or '.join(map(str, sizes))} x {config.gradient_accumulation_steps}",
        "optimizer": config.optimizer,
        "gradient clipping": clip,
    }
    run.bus.emit(RunStart(step=state.step, summary={**summary, "resumed": resumed}))
    run.bars.print_line("\n".join(f"  {name}: {value}" for name, value in {**summary, "steps": state.total}.items()))


def run_rehearsal(run: Run, loader: BatchLoader, snapshot: Snapshot, validator: Validator | None) -> None:
    """Try the largest step, an image and a save, and say what they took."""
    with loader:
        loader.debug_log = NO_DEBUG_LOG
        batch = rehearse.largest(loader, snapshot.state.epoch)
    peaks = rehearse.dry_run(run, snapshot, batch, validator.dry_run if validator else None)
    summary = ", ".join(f"{name.removeprefix(rehearse.REHEARSAL)} {show_size(size)}" for name, size in peaks.items())
    run.bars.print_line(f"  most memory in a rehearsal: {summary}")


def give_back_when_due(run: Run, event: Step) -> None:
    """Give unused memory of the device back every so many steps, for others on it."""
    interval = run.config.accelerator_cache_clear_interval
    if interval and event.step % interval == 0 and torch.cuda.is_available():
        torch.cuda.empty_cache()


def save_when_due(run: Run, keeper: CheckpointManager, snapshot: Snapshot, event: Step) -> None:
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


def save(run: Run, keeper: CheckpointManager, snapshot: Snapshot, reason: str) -> None:
    """Write a checkpoint and tell the bus."""
    ensure_disk_space(run.output, run.config, stopped=lambda: bool(run.stop.name))
    path = keeper.save(snapshot, rolling=reason == "rolling")
    run.bus.emit(Checkpoint(step=snapshot.state.step, path=str(path), kind=reason))


def run_training_loop(run: Run, loop: Loop, keeper: CheckpointManager, snapshot: Snapshot) -> None:
    """The loop; a signal leaves a checkpoint of the last finished step."""
    with run.stop as stop, keep_freed_memory(), freeze_garbage():
        try:
            loop.run(stop)
        except Interrupted:
            step = snapshot.state.step
            if not step:
                run.bars.print_line("Stopped before the first step was finished; there is nothing to save.")
                raise
            if keeper.newest != step:
                save(run, keeper, snapshot, "interrupted")
            again = run.config.resume_from_checkpoint == "latest"
            how = "The same command goes on" if again else "With resume_from_checkpoint latest the run goes on"
            run.bars.print_line(f"Stopped after step {step}; saved. {how} from there.")
            raise


def export_result(
    run: Run, components: Components, keeper: CheckpointManager, snapshot: Snapshot, validator: Validator | None
) -> RunResult:
    """Final weights, final images."""
    step = snapshot.state.step
    result = run.output / snapshot.adapter.result
    with phase(run.bus, "final save", step), snapshot.stepper.use_inference_weights():
        if snapshot.adapter.result == "pipeline":
            components.save_pipeline(snapshot.adapter.model, result)
            snapshot.adapter.save_extra_modules(result)
        else:
            snapshot.adapter.save(run.output, snapshot.metadata(snapshot.state))
            if run.config.save_text_encoder:
                for component in snapshot.adapter.trainable_text:
                    member = cast("PreTrainedModel", snapshot.adapter.merge_member(component))
                    member.save_pretrained(run.output / component)
                    follow_umask(run.output / component)
        if snapshot.stepper.ema:
            with snapshot.stepper.ema.use_average():
                snapshot.adapter.save(run.output / "ema", snapshot.metadata(snapshot.state))
    if validator:
        with phase(run.bus, "final validation", step), forgiving(run, step):
            validator.final(step)
    resume.write_finished(run.output, keeper, snapshot.state, result)
    run.bars.print_line(f"Done: {result}")
    return RunResult(run.output, result, run.output / "report.html", step, time.monotonic() - run.started)
