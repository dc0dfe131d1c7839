"""`Config`: all sections joined into one flat, frozen object, and the one walk over everything that can be set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from darkroom.core.errors import ConfigError
from darkroom.options.adapter import AdapterOptions
from darkroom.options.captions import CaptionOptions
from darkroom.options.checkpoint import CheckpointOptions
from darkroom.options.data import DataOptions
from darkroom.options.distillation import DistillationOptions
from darkroom.options.families import FamilyOptions
from darkroom.options.field import OptionInfo, Section, describe
from darkroom.options.loss import LossOptions
from darkroom.options.memory import MemoryOptions
from darkroom.options.model import ModelOptions
from darkroom.options.noise import NoiseOptions
from darkroom.options.optimizer import SIMPLETUNER_SCHEDULES, OptimizerOptions
from darkroom.options.precision import PrecisionOptions
from darkroom.options.publishing import PublishingOptions
from darkroom.options.regularisers import RegulariserOptions
from darkroom.options.tracking import TrackingOptions
from darkroom.options.training import TrainingOptions
from darkroom.options.validation import ValidationOptions

SECTIONS: tuple[type[Section], ...] = (
    ModelOptions,
    AdapterOptions,
    TrainingOptions,
    OptimizerOptions,
    DataOptions,
    CaptionOptions,
    NoiseOptions,
    LossOptions,
    PrecisionOptions,
    MemoryOptions,
    CheckpointOptions,
    ValidationOptions,
    TrackingOptions,
    PublishingOptions,
    RegulariserOptions,
    DistillationOptions,
    FamilyOptions,
)
"""The sections in the order in which pages and forms show them."""


class Config(
    ModelOptions,
    AdapterOptions,
    TrainingOptions,
    OptimizerOptions,
    DataOptions,
    CaptionOptions,
    NoiseOptions,
    LossOptions,
    PrecisionOptions,
    MemoryOptions,
    CheckpointOptions,
    ValidationOptions,
    TrackingOptions,
    PublishingOptions,
    RegulariserOptions,
    DistillationOptions,
    FamilyOptions,
):
    """Every setting of a run, read as `config.learning_rate`. Frozen; made by `sources.resolve` or from keywords."""

    @property
    def effective_learning_rate(self) -> float:
        """`learning_rate`, or what suits the optimizer and model type when it was left out."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.optimizer.lower().startswith("prodigy"):
            return 1.0
        return 1e-4 if self.model_type == "lora" else 1e-5

    @property
    def effective_lr_schedule(self) -> str:
        """`lr_scheduler`, or under `compat_lr_schedules` the schedule that SimpleTuner calls by that name."""
        return (
            SIMPLETUNER_SCHEDULES.get(self.lr_scheduler, self.lr_scheduler)
            if self.compat_lr_schedules
            else self.lr_scheduler
        )

    @property
    def effective_lora_alpha(self) -> float:
        """`lora_alpha`, or the rank."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    @property
    def effective_epochs(self) -> int | None:
        """Passes over the data, or None when `max_train_steps` decides."""
        if self.num_train_epochs:
            return self.num_train_epochs
        return None if self.max_train_steps else 1

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `report_to`; empty for none."""
        return tuple(name for name in self.report_to.split(",") if name != "none")


@cache
def _every_option() -> tuple[OptionInfo, ...]:
    return tuple(describe(section, name) for section in SECTIONS for name in section.model_fields)


def every_option() -> list[OptionInfo]:
    """All options, section by section: the one walk behind readers, help, pages and forms."""
    return list(_every_option())


def construct(values: Mapping[str, object]) -> Config:
    """A configuration of values that were checked before, such as those of an earlier run; other names are left out."""
    known = {name: value for name, value in values.items() if name in Config.model_fields}
    return Config.model_construct(set(known), **known)


@cache
def option_names() -> Mapping[str, OptionInfo]:
    """Every name and alias to its option."""
    return {name: info for info in _every_option() for name in info.names}


def option_info(name: str) -> OptionInfo:
    """The option called `name` (or with that alias). Raises KeyError."""
    return option_names()[name]


def find_idle_reason(info: OptionInfo, config: Config) -> str:
    """Why an option has no effect beside the others, or an empty text; what it depends on has to act as well."""
    if reason := info.applies(config):
        return reason
    for name in info.when:
        other = option_info(name)
        if getattr(config, name) != other.default and (reason := find_idle_reason(other, config)):
            return f"it depends on {name}, and {reason}"
    return ""


def not_offered(config: Config, sources: Mapping[str, str] | None = None) -> list[ConfigError]:
    """An error for each option, or choice of one, that would act in this run and is not implemented yet."""
    errors = []
    for info in every_option():
        value = getattr(config, info.name)
        reason = _find_pending_reason(info, value)
        if reason and not find_idle_reason(info, config):
            change = f"Leave {info.name} out" + (
                "" if info.default is None else f" or set it to {info.show(info.default)}"
            )
            source = (sources or {}).get(info.name, "")
            errors.append(ConfigError(info.name, info.safe(value), source, f"Not offered yet. {reason}", f"{change}."))
    return errors


def _find_pending_reason(info: OptionInfo, value: object) -> str:
    """Why this value of an option is not implemented yet, or an empty text."""
    if value == info.default or (info.default is None and not value):
        return ""
    return info.pending or next(
        (info.pending_choices[choice] for choice in _as_values(info, value) if choice in info.pending_choices), ""
    )


def _as_values(info: OptionInfo, value: object) -> list[object]:
    if info.many and isinstance(value, str):
        return [*value.split(",")]
    return [value] if info.kind == "choice" else []
