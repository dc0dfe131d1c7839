"""What a run would do, worked out without loading weights: data, steps, caches, disk, memory, time."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import torch

from darkroom import families
from darkroom.core.device import get_assumed_card, run_device
from darkroom.core.errors import ConfigError, ModelError
from darkroom.core.events import Bus
from darkroom.core.files import free_bytes
from darkroom.core.units import show_duration, show_size
from darkroom.data import plan as data_plan
from darkroom.data.cache.caches import DatasetCaches
from darkroom.data.cache.filler import CacheFiller, RequiredCaptions
from darkroom.families.base import Family
from darkroom.job import preflight, resume
from darkroom.job.advice import Adviser, Change, words
from darkroom.job.caches import identify_encoders, require_prompts
from darkroom.job.forecast import Forecaster, PhaseRow
from darkroom.job.inputs import uses_dataset_prompts
from darkroom.job.needs import build_data_requirements
from darkroom.job.rehearse import REHEARSAL
from darkroom.options.datasets import read_datasets
from darkroom.options.sources import Resolved
from darkroom.pretrained.repository import PublishedSettings, Repository
from darkroom.report.eventlog import read
from darkroom.train import distributed
from darkroom.train.checkpoint import CheckpointManager
from darkroom.validate.prompts import Prompt

if TYPE_CHECKING:
    from darkroom.options.config import Config

# bytes that a shard spends on naming one tensor
TENSOR_HEADER = 140
MAX_LISTED = 20


TimeEstimate = TypedDict("TimeEstimate", {"seconds": float | None, "from": str})
"""How long the steps take, and from what that is told."""


class CacheCounts(TypedDict):
    """Entries to make and to reuse, and the bytes that those to make will take, if it is known how wide text is."""

    latents_to_make: int
    latents_to_reuse: int
    texts_to_make: int
    texts_to_reuse: int
    bytes_to_write: int | None


class DeletedFile(TypedDict):
    """A file that filling the caches would delete."""

    dataset: str
    path: str
    reason: str


class AssumedSizes(TypedDict):
    """Why sizes are those under which the base was published, and for what none are known."""

    why: str
    unknown: list[str]


class PlanValues(TypedDict):
    """What a run would do, but for memory."""

    settings: dict[str, dict[str, object]]
    notes: list[str]
    warnings: list[str]
    datasets: dict[str, object]
    table: str
    batches_per_epoch: int
    steps_per_epoch: int
    steps: int
    epochs: int
    resume: str | None
    resume_changes: list[str]
    finished: bool
    caches: CacheCounts
    to_generate: dict[str, int]
    to_delete: list[DeletedFile]
    disk_free: int
    weights: dict[str, int | None]
    sizes: AssumedSizes | None
    validation: dict[str, int]
    time: TimeEstimate


MemoryValues = TypedDict(
    "MemoryValues",
    {
        "phases": list[PhaseRow],
        "host": int | None,
        "device": int | None,
        "for": str | None,
        "measured": dict[str, int],
        "change": NotRequired[Change | None],
    },
)
"""The most that each phase takes, what there is, and if that is too little, what to change."""


@dataclasses.dataclass(frozen=True)
class PlanStart:
    """A plan but for memory, `values` as JSON-able data, and what memory is told from.

    `published` stands in for the settings of a base that cannot be asked for them.
    """

    resolved: Resolved
    family: Family
    filler: CacheFiller
    prompts: list[Prompt]
    published: PublishedSettings | None
    values: PlanValues


def begin(resolved: Resolved) -> PlanStart:
    """All that needs no model. Raises what would stop the run."""
    config = resolved.config
    published = find_published_settings(resolved)
    folder = published and published.folder
    family, prompts = preflight.validate_run(resolved, folder)
    datasets = read_datasets(config.data_backend_config, config, os.environ, family.spec.fps)
    data = data_plan.scan_datasets(config, datasets, Bus(), build_data_requirements(family, config))
    data.validate()
    repository = Repository(family, config, run_device(), distributed.base_dtype(config), folder)
    if not config.validation_disable and uses_dataset_prompts(family, config, prompts):
        required = RequiredCaptions()  # their captions are encoded for training anyway
        settings_of_run = [d for d in data.datasets if d.id == config.eval_dataset_id] or data.training
        renders = sum(min(config.num_eval_images, len(d.index.usable)) for d in settings_of_run)
    else:
        required = require_prompts(repository, config, prompts)
        renders = len(prompts)
    filler = CacheFiller(DatasetCaches(data, identify_encoders(repository)), required)
    point = resume_point(resolved, family, repository, data)
    steps, epochs = point.steps, point.epochs
    values: PlanValues = {
        "settings": settings(resolved),
        "notes": [str(note) for note in preflight.remarks(resolved, family)],
        "warnings": data.reporter.warnings,
        "datasets": data.as_dict(),
        "table": data.report(),
        "batches_per_epoch": data.lengths.batches_per_epoch,
        "steps_per_epoch": data.lengths.steps_per_epoch,
        "steps": steps,
        "epochs": epochs,
        "resume": point.checkpoint,
        "resume_changes": point.changes,
        "finished": point.finished,
        "caches": caches(filler, family, repository),
        "to_generate": data.count_missing_generated(),
        "to_delete": [{"dataset": name, "path": path, "reason": reason} for name, path, reason in data.to_delete()],
        "disk_free": free_bytes(Path(config.output_dir)),
        "weights": weights(repository, family),
        "sizes": None if published is None else {"why": published.reason, "unknown": published.unknown},
        "validation": validation(config, renders, steps, data.lengths.steps_per_epoch),
        "time": estimate_time(config, steps),
    }
    return PlanStart(resolved, family, filler, prompts, published, values)


def find_published_settings(resolved: Resolved) -> PublishedSettings | None:
    """What stands in for settings that neither a folder nor the hub has given; None where they are at hand."""
    config = resolved.config
    try:
        family = families.get(config.model_family, config.model_flavour)
        return Repository(family, config, torch.device("cpu"), torch.float32).find_published_settings()
    except ConfigError:  # which preflight tells together with all else
        return None


def settings(resolved: Resolved) -> dict[str, dict[str, object]]:
    """Options that are not at their general default, with where each came from."""
    values = resolved.config.model_dump(mode="json")
    return {
        name: {"value": values[name], "from": source}
        for name, source in resolved.sources.items()
        if source != "default" and name in values
    }


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """Where the run would go on, how long it would be then, and what has changed since."""

    checkpoint: str | None
    changes: list[str]
    steps: int
    epochs: int
    finished: bool


def resume_point(
    resolved: Resolved, family: Family, repository: Repository, data: data_plan.DatasetPlan
) -> ResumePoint:
    """Where the run would go on. Raises CheckpointError where it would be refused."""
    config, output = resolved.config, Path(resolved.config.output_dir)
    keeper = CheckpointManager(output, config)
    start = resume.find(resolved, keeper, resume.collect_compared_settings(resolved, family, repository))
    changes = resume.changes_of_data(start, data, 1)
    state = resume.initial_state(start, changes, config)
    steps, epochs = data.steps_and_epochs(1, resume.base_of(state))
    return ResumePoint(
        start.folder.name if start else None,
        resume.sentences(start, changes, state) if start else [],
        steps,
        epochs,
        resume.find_finished(output, keeper, config, data, 1) is not None,
    )


def caches(filler: CacheFiller, family: Family, repository: Repository) -> CacheCounts:
    """Entries to make and to reuse, and the bytes that those to make will take, if it is known how wide text is."""
    facts = repository.latents
    try:
        numbers = family.count_text_values(repository.text_configs, repository.options)
    except ModelError:
        if repository.settings is None:
            raise
        numbers = None
    width = torch.empty(0, dtype=repository.text_dtype).element_size()

    def latent_bytes(w: int, h: int, frames: int) -> int:
        return math.prod(facts.shape(h, w, frames)) * 4 + TENSOR_HEADER

    # a caption is stored as two tensors, its tokens and its pooled vector
    estimate = filler.estimate(latent_bytes, lambda caption: (numbers or 0) * width + 2 * TENSOR_HEADER)
    return {
        "latents_to_make": estimate.latents_to_make,
        "latents_to_reuse": estimate.latents_to_reuse,
        "texts_to_make": estimate.texts_to_make,
        "texts_to_reuse": estimate.texts_to_reuse,
        "bytes_to_write": None if numbers is None and estimate.texts_to_make else estimate.bytes_to_write,
    }


def memory(begun: PlanStart, tell: Callable[[str], None] = lambda text: None) -> MemoryValues:
    """The most that each phase takes, what there is, and if that is too little, what to change.

    `tell` is told what is being forecast.
    """
    run = (begun.resolved, begun.family, begun.filler, begun.prompts)
    forecaster = Forecaster(*run, begun.published and begun.published.folder, tell=tell)
    forecast = forecaster.forecast()
    result: MemoryValues = {
        **forecast.as_dict(),
        "for": str(card) if (card := get_assumed_card()) else None,
        "measured": read_measured(Path(begun.resolved.config.output_dir)),
    }
    if forecast.too_large:
        result["change"] = Adviser(*run, forecaster).advise(forecast)
    return result


def read_measured(output: Path) -> dict[str, int]:
    """What phases took in an earlier run in the same folder: on the GPU, if it had one, else on the host."""
    log = output / "events.jsonl"
    rows = [row for row in read(log) if row["event"] == "phase" and "host_memory" in row] if log.exists() else []
    return {row["phase"].removeprefix(REHEARSAL): row["device_memory"] or row["host_memory"] for row in rows}


def weights(repository: Repository, family: Family) -> dict[str, int | None]:
    """Bytes of each part's weights on disk, where they are local: the least memory its phase needs."""
    text = [repository.weight_bytes(name) for name in family.tiny.encoders]
    sizes = [size for size in text if size is not None]
    denoisers = [size for size in map(repository.weight_bytes, repository.trainable_components) if size is not None]
    return {
        "text encoders": sum(sizes) if sizes else None,
        "vae": repository.weight_bytes("vae"),
        "denoiser": sum(denoisers) if denoisers else None,
    }


def validation(config: Config, prompts: int, steps: int, per_epoch: int) -> dict[str, int]:
    """How many times so many prompts are rendered, and how many images each time."""
    if config.validation_disable or not prompts:
        return {"times": 0, "pictures": 0}
    sizes = len(str(config.validation_resolution or config.resolution).split(","))
    due = set()
    if config.validation_step_interval:
        due |= set(range(config.validation_step_interval, steps + 1, config.validation_step_interval))
    if config.validation_epoch_interval:
        stride = per_epoch * config.validation_epoch_interval
        due |= set(range(stride, steps + 1, stride))
    return {"times": len(due | {steps}), "pictures": prompts * sizes * config.num_validation_images}


def estimate_time(config: Config, steps: int) -> TimeEstimate:
    """Seconds, from the pace of an earlier run in the same output folder; unknown before the first."""
    log = Path(config.output_dir) / "events.jsonl"
    paces = [row["metrics"]["seconds"] for row in read(log) if row["event"] == "step"] if log.exists() else []
    if not paces:
        return {"seconds": None, "from": "no step of this run has been timed yet"}
    pace = sorted(paces)[len(paces) // 2]
    return {"seconds": pace * steps, "from": f"the median of {len(paces)} steps of an earlier run here"}


def show(plan: PlanValues) -> str:
    """The plan but for memory, for a person."""
    cache, check = plan["caches"], plan["validation"]
    lines = ["Settings that are not the general defaults:"]
    width = max((len(name) for name in plan["settings"]), default=0)
    for name, row in sorted(plan["settings"].items()):
        lines.append(f"  {name:<{width}}  {json.dumps(row['value'])}  ({row['from']})")
    lines += [f"! {note}" for note in plan["notes"]]
    lines += [f"! {warning}" for warning in plan["warnings"]]
    lines += ["", plan["table"], ""]
    start = f", going on from {plan['resume']}" if plan["resume"] else ""
    lines += [f"! {sentence}" for sentence in plan["resume_changes"]]
    lines.append(f"Training: {plan['steps']} steps, {plan['epochs']} epochs{start}.")
    lines += ["This run is finished: `darkroom train` would do nothing."] if plan["finished"] else []
    lines.append(
        f"Caches: {cache['latents_to_make']} pictures and {cache['texts_to_make']} captions to encode "
        f"({format_size(cache['bytes_to_write'])} to write, {show_size(plan['disk_free'])} free); "
        f"{cache['latents_to_reuse']} and {cache['texts_to_reuse']} are there already."
    )
    for name, count in plan["to_generate"].items():
        lines.append(f"To generate: {count} conditioning pictures for '{name}'.")
    if plan["to_delete"]:
        lines.append(f"! To delete from the datasets themselves: {len(plan['to_delete'])} files; there is no way back:")
        lines += [f"    {row['dataset']}: {row['path']} ({row['reason']})" for row in plan["to_delete"][:MAX_LISTED]]
        further = len(plan["to_delete"]) - MAX_LISTED
        lines += [f"    and {further} more; --json lists all"] if further > 0 else []
    lines.append(f"Validation: {check['times']} times {check['pictures']} pictures.")
    seconds = plan["time"]["seconds"]
    lines.append(f"Time for the steps: {show_duration(seconds) if seconds else 'unknown'} ({plan['time']['from']}).")
    if plan["sizes"]:
        lines.append(f"! Sizes are those under which the base was published: {plan['sizes']['why'].rstrip('.')}.")
        unknown = ", ".join(plan["sizes"]["unknown"])
        lines += [f"!   Not known here: {unknown}."] if unknown else []
    return "\n".join(lines)


def format_size(size: int | None) -> str:
    """A number of bytes for a person."""
    return "an unknown size" if size is None else show_size(size)


def show_memory(plan: MemoryValues) -> str:
    """The phases' memory for a person."""
    available = [
        *([f"{show_size(plan['host'])} on the host"] if plan["host"] is not None else []),
        *([f"{show_size(plan['device'])} on the GPU"] if plan["device"] is not None else []),
    ]
    lines = [f"Memory, at most ({', '.join(available)}):"]
    lines[:0] = [f"As on a machine with {plan['for']}."] if plan.get("for") else []
    for row in plan["phases"]:
        sizes = [row["device"] and f"{show_size(row['device'])} on the GPU", row["host"] and show_size(row["host"])]
        measured_sizes = (
            ", ".join(size for size in sizes if size) or f"{'fails' if row['fails'] else 'not known'}: {row['why']}"
        )
        before = plan["measured"].get(row["phase"])
        measured_sizes += ", and is cached already" * row["idle"]
        phases_printed = f" (was {show_size(before)} in an earlier run)" if before else ""
        mark = "" if row["fits"] and not row["fails"] else "! "
        lines.append(f"  {mark}{row['phase']:<14} {row['of']:<26} {measured_sizes}{phases_printed}")
    if any(row["fails"] for row in plan["phases"]):
        lines.append("! The run would stop there, before its first update.")
    if "change" in plan:
        lines.append(f"! It does not fit. {words(plan['change'])}")
    return "\n".join(lines)
