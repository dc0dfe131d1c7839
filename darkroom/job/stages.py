"""The stages between a scanned dataset and a step. A run goes through them, and its forecast does so in shapes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Required, TypedDict, cast

import torch
from safetensors import SafetensorError

from darkroom import adapters
from darkroom.adapters import assistant, lora_file, stock
from darkroom.adapters.base import Adapter
from darkroom.core import log as logs
from darkroom.core.errors import ConfigError
from darkroom.core.events import Warn
from darkroom.core.memory import is_memory_full
from darkroom.families.shared import latents
from darkroom.families.shared.audio import encode_batch_audio
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.model_spec import CONTROLNET
from darkroom.job.run import Run
from darkroom.memory import checkpointing
from darkroom.memory.policy import OFFLOADS, MemoryPolicy
from darkroom.objectives import denoise, regularizers
from darkroom.objectives.base import Generators
from darkroom.optim import table
from darkroom.optim.base import Optimizer, parameters_of
from darkroom.optim.clip import clip
from darkroom.optim.offload import OffloadedOptimizer
from darkroom.optim.release import PerParameterOptimizer
from darkroom.optim.schedules import Scheduler, build_shape
from darkroom.pretrained.components import Components
from darkroom.pretrained.repository import Repository, describe_truncation
from darkroom.train import distributed
from darkroom.train.ema import EMA
from darkroom.train.state import TrainState
from darkroom.train.step import Stepper

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from torch import nn

    from darkroom.adapters.lora import LoRA
    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.trainable_text import DenoiserWithText
    from darkroom.options.config import Config

log = logs.logger(__name__)

REMEDY_OF_STARTS = "Use a whole file made for this family with the same rank and targets, or leave init_lora out."
REMEDY_OF_ASSISTANTS = "Use a LoRA that was made for training this model, or leave assistant_lora_path out."


def encode_sample(
    run: Run, components: Components, pixels: torch.Tensor, waveforms: Sequence[np.ndarray | None] = ()
) -> dict[str, torch.Tensor]:
    """All that is cached of samples: latents, and what the family keeps beside them."""
    z = encode_latents(components, pixels)
    entries = run.family.sample_entries(components, pixels, z, run.config)
    entries |= encode_batch_audio(
        run.family, components, waveforms, pixels.shape[2] if pixels.ndim == 5 else 1, run.config
    )
    return {"latents": z, **{name: tensor.cpu() for name, tensor in entries.items()}}


def encode_latents(components: Components, pixels: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) or clips (B, 3, F, H, W) in -1..1 as latents, on the host."""
    return latents.encode(components.vae(), pixels, components.latents).cpu()


def load_denoiser(run: Run, components: Components, memory_policy: MemoryPolicy) -> nn.Module:
    """The denoiser in the precision that the kind of training wants, where it is to be."""
    full = run.config.model_type == "full" and not run.config.controlnet  # beside a ControlNet it is frozen
    # a new ControlNet is made from the wide weights
    load_or_quantize = None if full or run.config.controlnet else memory_policy.load_or_quantize
    model = components.denoiser(distributed.trained_dtype(run.config) if full else None, load_or_quantize)
    if run.config.gradient_checkpointing:
        interval, backend = run.config.gradient_checkpointing_interval, run.config.gradient_checkpointing_backend
        checkpointing.enable_checkpointing(model, interval, backend, memory_policy.streams_single_layers)
    denoisers = components.denoisers_of(model)
    trained = denoisers if full else {CONTROLNET} & denoisers.keys()
    memory_policy.prepare_denoisers(denoisers, trained, distributed.trained_dtype(run.config))
    attach_assistant(run.config, components, denoisers)
    for line in memory_policy.describe():
        run.bars.print_line(f"  {line}")
    for line in memory_policy.remarks():
        run.bus.emit(Warn(message=line, about="settings"))
    return model


def attach_assistant(config: Config, components: Components, denoisers: Mapping[str, nn.Module]) -> None:
    """Let denoisers train with `assistant_lora_path`, if there is one. Raises ConfigError."""
    if not config.assistant_lora_path:
        return
    denoisers_to_train = {part: denoisers[part] for part in components.trainable_components}
    with explain_unusable("assistant_lora_path", config.assistant_lora_path, REMEDY_OF_ASSISTANTS):
        pairs = assistant.read_assistants(
            config.assistant_lora_path,
            denoisers_to_train,
            find_class(components.family.spec.validation_pipeline(components.options)),
        )
    assistant.attach_assistants(denoisers_to_train, pairs, config.validation_assistant_lora)


@contextlib.contextmanager
def explain_unusable(option: str, path: str, change: str, source: str = "") -> Iterator[None]:
    """Raises ConfigError for an adapter file that cannot be used for what is done inside."""
    try:
        yield
    except (OSError, ValueError, KeyError, AssertionError, RuntimeError, SafetensorError) as cause:
        if is_memory_full(cause):
            raise
        reason = str(cause).rstrip(".") or "diffusers cannot convert its names"
        raise ConfigError(option, path, source, f"Its weights cannot be used: {reason}.", change) from cause


def attach_adapter(run: Run, model: nn.Module, components: Components) -> Adapter:
    """The adapter on the model, started from `init_lora` if given."""
    config, family = run.config, run.family
    dtype = distributed.trained_dtype(config)
    adapter = adapters.attach(model, config, family.targets, components.trainable_components[0], dtype, run.seed)
    if config.init_lora and config.model_type == "lora":
        start_from(cast("LoRA", adapter), components, config.init_lora, run.resolved.sources["init_lora"])
    model.train()
    return adapter


def start_from(adapter: LoRA, components: Repository, path: str, source: str = "") -> None:
    """Read an adapter in any format that is known, and begin with what it does. Raises ConfigError."""
    pipeline = find_class(components.family.spec.validation_pipeline(components.options))
    with explain_unusable("init_lora", path, REMEDY_OF_STARTS, source):
        if path.endswith(".safetensors") and Path(path).is_file() and (problem := describe_truncation(Path(path))):
            raise ValueError(f"the file is damaged: {problem}")
        tensors = {}
        for part, file in stock.find_files(path, adapter.members).items():
            pairs = lora_file.find_pairs(lora_file.read(file), part, adapter.layer_names(part), pipeline)
            tensors[part] = lora_file.to_adapter_tensors(pairs, part, adapter.scale)
        count = adapter.start_from(tensors)
    log.info("Started from %d tensors of %s.", count, path)


def build_stepper(
    run: Run,
    engine: Accelerator,
    adapter: Adapter,
    memory_policy: MemoryPolicy,
    scheduler: Mapping[str, object],
    denoisers: Mapping[str, torch.nn.Module],
    steps: int,
    state: TrainState | None = None,
) -> Stepper:
    """Objective, optimizer, schedule, average and generators around the adapter.

    `denoisers` are those in the adapter's model, by component. `state` says where the run stands on the schedule; left
    out, at its beginning.
    """
    state = state or TrainState(total=steps)
    config = run.config
    rank = engine.process_index if config.seed_for_each_device else 0
    generators = Generators(run.seed, rank)
    torch.manual_seed(run.seed + rank)
    if config.gradient_precision == "fp32":
        for parameter in adapter.trainable_parameters.values():
            parameter.grad_dtype = torch.float32
    if engine.num_processes > 1:
        refuse_offloaded_gradients(config, memory_policy)
    rate = scale_learning_rate(config, config.effective_learning_rate, engine.num_processes)
    row = table.find_optimizer(config.optimizer)
    raw, step_arguments = build_optimizer(
        config, memory_policy, group_parameters(config, adapter, engine.num_processes), rate, run.seed
    )
    shape = build_shape(config, state.schedule_total or steps, rate)
    schedule = "constant" if row.schedule_free else config.effective_lr_schedule
    return Stepper(
        accelerator=engine,
        model=engine.prepare_model(adapter.model) if engine.num_processes > 1 else adapter.model,
        objective=denoise.build(
            run.family,
            config,
            scheduler,
            generators,
            adapter.disable,
            build_text_reader(config, adapter, steps),
            regularizers.build(run.family, config, [*denoisers.values()]),
        ),
        optimizer=engine.prepare_optimizer(raw) if engine.scaler else raw,
        scheduler=Scheduler(raw, schedule, shape, state.find_schedule_position),
        ema=EMA(adapter.trainable_parameters, config) if config.use_ema else None,
        options=config,
        own_clip=row.clips_gradients,
        scale_adapter=adapter.rescale,
        start_step=generators.start_step,
        start_update=generators.start_update,
        **step_arguments,
    )


def refuse_offloaded_gradients(config: Config, memory_policy: MemoryPolicy) -> None:
    """Raises ConfigError for gradients that leave a process before those of the others are added."""
    away = [
        "optimizer_release_gradients",
        "optimizer_offload_gradients",
        *(OFFLOADS if memory_policy.trained_streamers else ()),
    ]
    for name in away:
        if getattr(config, name):
            problem = "Several processes add their gradients up, which this one takes away before."
            raise ConfigError(name, getattr(config, name), "", problem, "Leave it out.")


class StepArguments(TypedDict, total=False):
    """What a step has to know of where the optimizer is."""

    parameters: Required[list[nn.Parameter]]
    collect_offloaded_grads: Callable[[], None]
    get_released_grad_norm: Callable[[], torch.Tensor]


def build_optimizer(
    config: Config, memory_policy: MemoryPolicy, groups: list[dict[str, object]], rate: float, seed: int
) -> tuple[Optimizer, StepArguments]:
    """The optimizer where the options want it, and what a step has to know of that."""

    def build(groups_or_parameters: Sequence[Mapping[str, object]], number: int = 0) -> Optimizer:
        return table.build(config, groups_or_parameters, rate, seed + number)

    if config.optimizer_cpu_offload_method != "none":
        offloaded = OffloadedOptimizer(groups, build, config.optimizer_offload_gradients)
        return offloaded, {
            "parameters": list(offloaded.master_parameters.values()),
            "collect_offloaded_grads": offloaded.collect,
        }
    parameters = [p for group in groups for p in parameters_of(group)]
    if config.optimizer_release_gradients:
        limit = 0.0 if table.find_optimizer(config.optimizer).clips_gradients else config.max_grad_norm
        limited = functools.partial(clip, method=config.grad_clip_method, limit=limit)
        optimizer = PerParameterOptimizer(groups, build, limited, together=config.grad_clip_method == "norm")
        return optimizer, {"parameters": parameters, "get_released_grad_norm": optimizer.size}
    return build(groups), {
        "parameters": parameters,
        "collect_offloaded_grads": memory_policy.collect_offloaded_grads,
    }


def group_parameters(config: Config, adapter: Adapter, processes: int) -> list[dict[str, object]]:
    """The parameters, those of text encoders apart where they learn at a rate of their own."""
    if config.text_encoder_lr is None or not adapter.trainable_text:
        return [{"params": list(adapter.trainable_parameters.values())}]
    rate = scale_learning_rate(config, config.text_encoder_lr, processes)
    text = {name: parameter for name, parameter in adapter.trainable_parameters.items() if adapter.is_text(name)}
    denoiser_parameters = [parameter for name, parameter in adapter.trainable_parameters.items() if name not in text]
    return [{"params": denoiser_parameters}, {"params": list(text.values()), "lr": rate}]


def build_text_reader(config: Config, adapter: Adapter, steps: int) -> Callable[[Batch, int], dict[str, torch.Tensor]]:
    """How a step comes to its text: out of the cache, or read anew by encoders that learn."""
    if not config.train_text_encoder:
        return denoise.get_cached_text
    until = steps * config.text_encoder_limit / 100
    model = cast("DenoiserWithText", adapter.model)

    def read(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        entries = model.read(batch.captions, learns=step < until)
        return {name: value.to(batch.cond[name]) for name, value in entries.items()}

    return read


def scale_learning_rate(config: Config, rate: float, processes: int) -> float:
    """A learning rate, times the effective batch (or its root) if `lr_scale` asks for it."""
    if not config.lr_scale:
        return rate
    batch = config.train_batch_size * config.gradient_accumulation_steps * processes
    return rate * (batch**0.5 if config.lr_scale_sqrt else batch)
