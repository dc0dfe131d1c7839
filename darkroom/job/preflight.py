"""Everything that can fail, before weights load."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from darkroom import families
from darkroom.adapters import stock
from darkroom.core.device import is_host, run_device
from darkroom.core.errors import ConfigError, ConfigErrors, ModelError
from darkroom.core.units import parse_resolutions
from darkroom.diffusion.shift import find_shift_line
from darkroom.families.base import Family
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.control_methods import ControlChannels
from darkroom.families.shared.rule_facts import family_facts
from darkroom.families.shared.spec import Limits
from darkroom.memory import policy
from darkroom.objectives import regularizers
from darkroom.optim import table
from darkroom.options import conflicts
from darkroom.options.config import option_info
from darkroom.options.sources import FAMILY_DEFAULT, Note, Resolved, add_source
from darkroom.pretrained.components import Components, scheduler_config
from darkroom.pretrained.repository import Repository
from darkroom.report import trackers
from darkroom.validate import schedulers
from darkroom.validate.prompts import Prompt, collect

if TYPE_CHECKING:
    from darkroom.options.config import Config

WITHOUT_EFFECT = {
    "checkpointing_use_tempdir": "checkpoints are always completed in a folder of their own and then renamed",
    "read_batch_size": "files are read one by one, ahead of the encoder",
    "vae_cache_scan_behaviour": "a cache entry is named by what made it, so it cannot disagree with its bucket",
    "override_dataset_config": "the dataset file always counts as it is; nothing is taken from an earlier run",
    "offload_during_startup": "text encoders are let go before the VAE comes, and the VAE before the denoiser",
    "fully_unload_text_encoder": "text encoders are let go as soon as all captions are read",
    "offload_during_save": "a checkpoint is written from copies in host memory, so the device holds nothing more",
    "ramtorch_disable_sync_hooks": "a layer waits for its own weights, and nothing for the whole device",
    "enable_multiprocessing": "files are prepared by threads, and shared out when a run has several processes",
}
"""Options whose purpose is met in another way, with how."""


def validate_run(resolved: Resolved, settings: str | None = None) -> tuple[Family, list[Prompt]]:
    """The run's family and its validation prompts. Raises ConfigErrors with all that is wrong at once.

    `settings` is a folder that stands in for the base's own, where those cannot be had.
    """
    config = resolved.config
    device, errors = run_device(), []
    try:
        family = families.get(config.model_family, config.model_flavour)
    except ConfigError as error:  # what else is wrong is told as well, of the default flavour
        family, errors = families.get(config.model_family), [error]
    errors += conflicts.validate_options(config, resolved.sources, family_facts(family, config))
    prompts: list[Prompt] = []
    for probe in (
        lambda: table.validate_optimizer(config, device),
        lambda: trackers.validate_trackers(config.report_to),
        lambda: policy.validate_memory_options(config, device),
        lambda: schedulers.changes(config, family.prediction == "flow_matching"),
        lambda: prompts.extend(collect(config)),
        lambda: _writable("output_dir", config.output_dir),
        *(
            lambda option=option: _writable(option, getattr(config, option))
            for option in ("cache_dir", "cache_dir_text", "cache_dir_vae")
            if getattr(config, option) not in (None, "", "cache")  # "cache" stands for the usual place
        ),
    ):
        errors += _collect_problem(probe)
    if not errors:
        base = Repository(family, config, torch.device("cpu"), torch.float32, settings)
        errors = _collect_problem(base.examine)
        errors = errors or [
            *validate_limits(family, config, base.limits),
            *_collect_problem(lambda: validate_models(base)),
        ]
        checks = (validate_init_lora, validate_assistant, validate_shift, validate_regularizers)
        for check in checks if not errors else ():
            errors += _collect_problem(functools.partial(check, base))
    if errors:
        raise ConfigErrors([add_source(error, resolved.sources) for error in errors])
    return family, prompts


def validate_models(base: Repository) -> None:
    """Raises ConfigError for what the options ask of models that cannot do it, from their settings alone."""
    memory_policy = policy.MemoryPolicy(base.options, base.device, base.family.blocks)
    try:
        memory_policy.validate_models(
            lambda: [base.empty_model(part) for part in base.trainable_components], base.empty_vae
        )
    except ModelError:
        if base.settings is None:  # else it is not known how large they are, which is told where that matters
            raise


def validate_init_lora(base: Repository) -> None:
    """Raises ConfigError for an `init_lora` that is no start for this run, from its tensors and the model's shapes."""
    config = base.options
    if not config.init_lora or config.model_type != "lora":
        return
    from darkroom.adapters import lora_file
    from darkroom.adapters.lora import LoRA
    from darkroom.job import stages

    if config.controlnet:  # which has layers of its own, known once it is loaded
        with stages.explain_unusable("init_lora", config.init_lora, stages.REMEDY_OF_STARTS):
            lora_file.read(config.init_lora)
        return
    for part, file in stock.find_files(config.init_lora, base.trainable_components).items():
        model = base.empty_model(part)
        if isinstance(method := base.family.spec.control(config), ControlChannels):
            method.add_input_channels(model)
        # what it has for text encoders is looked at once those are loaded
        adapter = LoRA(model, config, base.family.targets, part, torch.float32, seed=0)
        stages.start_from(adapter, base, file)


def validate_assistant(base: Repository) -> None:
    """Raises ConfigError for an `assistant_lora_path` that is not for this model."""
    if not base.options.assistant_lora_path:
        return
    from darkroom.adapters import assistant
    from darkroom.job import stages

    path, pipeline = base.options.assistant_lora_path, find_class(base.family.spec.validation_pipeline(base.options))
    with stages.explain_unusable("assistant_lora_path", path, stages.REMEDY_OF_ASSISTANTS):
        assistant.read_assistants(path, {part: base.empty_model(part) for part in base.trainable_components}, pipeline)


def validate_shift(base: Repository) -> None:
    """Raises ConfigError where the shift should follow sizes, and nobody has published how."""
    if base.options.flow_schedule_auto_shift and base.family.prediction == "flow_matching":
        scheduler = scheduler_config(
            Components(base.family, base.options, base.device, base.dtype, settings=base.settings)
        )
        find_shift_line(scheduler, base.family.shift_line)


def validate_regularizers(base: Repository) -> None:
    """Raises ConfigError for regularizers that this model cannot have, such as on blocks that it lacks."""
    if not regularizers.find_enabled(base.options):
        return
    try:
        denoisers = [base.empty_model(part) for part in base.trainable_components]
    except ModelError:
        if base.settings is None:  # else the network's settings are not known, and the run itself will tell
            raise
        return
    regularizers.build(base.family, base.options, denoisers)


def validate_limits(family: Family, config: Config, limits: Limits) -> Iterator[ConfigError]:
    """What options ask of the denoiser that it cannot be given."""
    if limits.tokens and config.tokenizer_max_length > limits.tokens:
        yield ConfigError(
            "tokenizer_max_length",
            config.tokenizer_max_length,
            "",
            f"{family.title}'s network has positions for captions of up to {limits.tokens} tokens.",
            f"Set it to {limits.tokens} or less.",
        )
    if config.aspect_bucket_alignment % limits.step:
        yield ConfigError(
            "aspect_bucket_alignment",
            config.aspect_bucket_alignment,
            "",
            f"The network of this base model takes edges that are multiples of {limits.step} pixels.",
            f"Set it to {limits.step}.",
        )
    for width, height in [] if config.validation_disable else validation_sizes(family, config):
        size = f"{width}x{height}"
        if width % limits.step or height % limits.step:
            problem = f"The network of this base model takes edges that are multiples of {limits.step} pixels"
        elif limits.edge and max(width, height) > limits.edge:
            problem = f"The network of this base model has positions for edges of up to {limits.edge} pixels"
        else:
            continue
        problem = f"{problem}, not {size}."
        yield ConfigError("validation_resolution", config.validation_resolution, "", problem, "Choose another size.")


def validation_sizes(family: Family, config: Config) -> list[tuple[int, int]]:
    """Width and height of validation's images."""
    latents = family.spec.latents
    requested = parse_resolutions(
        config.validation_resolution or str(config.resolution), latents.downscale * latents.patch
    )
    return [family.round_size(*size, config) for size in requested]


def _collect_problem(probe: Callable[[], object]) -> list[ConfigError]:
    """What a check has to say."""
    try:
        probe()
    except ConfigErrors as several:
        return several.errors
    except ConfigError as one:
        return [one]
    return []


def remarks(resolved: Resolved, family: Family) -> list[Note]:
    """What a person should know of these settings although nothing is wrong with them."""
    config, sources = resolved.config, resolved.sources
    notes = [*resolved.notes, *conflicts.collect_remarks(config, sources, family_facts(family, config))]
    if config.flow_schedule_auto_shift and sources["flow_schedule_auto_shift"] == FAMILY_DEFAULT:
        reason = (
            "noise levels are shifted by the size of samples, as in its pipeline; flow_schedule_shift replaces that"
        )
        notes.append(Note("flow_schedule_auto_shift", True, FAMILY_DEFAULT, reason, ineffective=False))
    notes += note_distillation(config, sources, family)
    for name, reason in WITHOUT_EFFECT.items():
        value = getattr(config, name)
        if value != option_info(name).default:
            notes.append(Note(name, value, sources[name], f"no effect: {reason}", ineffective=True))
    for name, (unused, reason) in policy.WITHOUT_EFFECT_ON_CPU.items() if is_host(run_device()) else ():
        if getattr(config, name) == unused:
            notes.append(Note(name, unused, sources[name], f"no effect: {reason}", ineffective=True))
    return notes


def note_distillation(config: Config, sources: Mapping[str, str], family: Family) -> list[Note]:
    """What becomes of a distilled flavour that is trained."""
    spec = family.spec
    if not spec.flavour.distilled:
        return []
    reason = f"{spec.name} is distilled to {spec.flavour.distilled}"
    if config.assistant_lora_path:
        reason += "; assistant_lora_path is applied while training, and left out of the result"
    else:
        such = f", such as {spec.flavour.assistant}" if spec.flavour.assistant else ""
        reason += (
            f", and training wears the distillation off: set assistant_lora_path to an adapter that undoes it while "
            f"training{such}; or train another flavour ({', '.join(list_full_flavours(family))})"
        )
    return [Note("model_flavour", spec.name, sources.get("model_flavour", ""), reason, ineffective=False)]


def list_full_flavours(family: Family) -> list[str]:
    """The published flavours of a family that are not distilled."""
    return [name for name, flavour in family.flavours.items() if not flavour.distilled]


def _writable(option: str, value: str) -> None:
    folder = Path(value).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(option, value, "", "This is a file, and a folder is needed.", "Choose another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as cause:
        problem = f"Nothing can be written there: {cause.strerror}."
        raise ConfigError(option, value, "", problem, "Choose another folder.") from cause
