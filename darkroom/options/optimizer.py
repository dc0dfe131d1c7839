"""From gradients to updates: learning rate, schedule, optimizer, clipping, and the averaged weights."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import field_validator

from darkroom.options.field import IMPORT_PATH, SET, Section, option, plugin_names

OPTIMIZERS = (
    "adamw_bf16",
    "ao-adamw8bit",
    "ao-adamw4bit",
    "ao-adamfp8",
    "ao-adamwfp8",
    "adamw_schedulefree",
    "adamw_schedulefree+aggressive",
    "adamw_schedulefree+no_kahan",
    "optimi-stableadamw",
    "optimi-adamw",
    "optimi-lion",
    "optimi-radam",
    "optimi-ranger",
    "optimi-adan",
    "optimi-adam",
    "optimi-sgd",
    "soap",
    "prodigy",
    "bnb-adagrad",
    "bnb-adagrad8bit",
    "bnb-adam",
    "bnb-adam8bit",
    "bnb-adamw",
    "bnb-adamw8bit",
    "bnb-adamw-paged",
    "bnb-adamw8bit-paged",
    "bnb-lion",
    "bnb-lion8bit",
    "bnb-lion-paged",
    "bnb-lion8bit-paged",
    "bnb-ademamix",
    "bnb-ademamix8bit",
    "bnb-ademamix-paged",
    "bnb-ademamix8bit-paged",
    "sdnq-adamw",
    "sdnq-adamw+no_quant",
    "sdnq-adafactor",
    "sdnq-came",
    "sdnq-lion",
    "sdnq-muon",
    "sdnq-muon+quantized_matmul",
)
SIMPLETUNER_SCHEDULES = {"cosine": "cosine_wave", "cosine_with_restarts": "constant"}
"""SimpleTuner's schedules that are others of the same name here. Its restarts count steps modulo -1 and never move."""
_EMA = {"use_ema": True}


class OptimizerOptions(Section):
    """Learning rate and its schedule, the optimizer, gradient clipping, and averaged weights (EMA)."""

    page: ClassVar[str] = "optimizer"
    title: ClassVar[str] = "Optimizer"

    learning_rate: float | None = option(
        None,
        "Size of the updates; left out, 1e-4 for an adapter, 1e-5 for full training, and 1 for Prodigy.",
        resume="warn",
        gt=0,
    )
    lr_scheduler: Literal[
        "linear",
        "sine",
        "cosine",
        "cosine_wave",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "cosine_with_min_lr",
        "warmup_stable_decay",
        "piecewise_constant",
        "rex",
    ] = option("constant_with_warmup", "How the learning rate changes during the run.", resume="warn")
    lr_warmup_steps: int = option(0, "Updates over which the learning rate rises from 0.", resume="warn", ge=0)
    lr_warmup_ratio: float = option(
        0.0,
        "Share of the run over which the learning rate rises from 0, in place of lr_warmup_steps.",
        resume="warn",
        ge=0,
        lt=1,
        level="advanced",
    )
    lr_decay_steps: int = option(
        0,
        "Updates over which warmup_stable_decay falls at the end.",
        resume="warn",
        ge=0,
        level="advanced",
        when={"lr_scheduler": "warmup_stable_decay"},
    )
    lr_decay_ratio: float = option(
        0.0,
        "Share of the run over which warmup_stable_decay falls, in place of lr_decay_steps.",
        resume="warn",
        ge=0,
        lt=1,
        level="advanced",
        when={"lr_scheduler": "warmup_stable_decay"},
    )
    lr_scheduler_min_lr_ratio: float | None = option(
        None,
        "Lowest learning rate as a share of learning_rate; left out, 0.01 for rex and 0 for the others.",
        resume="warn",
        ge=0,
        le=1,
        level="advanced",
        when={"lr_scheduler": ("cosine_with_min_lr", "warmup_stable_decay", "rex")},
    )
    lr_scheduler_timescale: int | None = option(
        None,
        "Updates after which inverse_sqrt begins to fall; left out, lr_warmup_steps, or 10000 without a warm-up.",
        resume="warn",
        ge=1,
        level="advanced",
        when={"lr_scheduler": "inverse_sqrt"},
    )
    lr_scheduler_args: dict[str, object] | None = option(
        None,
        "Further settings of the schedule: step_rules of piecewise_constant, rex_alpha and rex_beta of rex.",
        resume="warn",
        json=True,
        text=True,
        also_words="name=value,name=value",
        level="expert",
        when={"lr_scheduler": ("piecewise_constant", "rex", "warmup_stable_decay", "cosine_with_min_lr")},
    )
    compat_lr_schedules: bool = option(
        False,
        "Follow SimpleTuner's cosine (swings without end, half a period in lr_warmup_steps) and cosine_with_restarts"
        " (constant); on for a config of SimpleTuner's.",
        resume="warn",
        level="advanced",
        when={"lr_scheduler": ("cosine", "cosine_with_restarts")},
    )
    lr_num_cycles: int = option(
        1,
        "How often cosine_with_restarts starts again; half cosines of cosine_with_min_lr and warmup_stable_decay.",
        resume="warn",
        ge=1,
        level="advanced",
        when={"lr_scheduler": ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay")},
    )
    lr_power: float = option(
        0.8,
        "Exponent of the polynomial decay; 1 is a straight line.",
        resume="warn",
        gt=0,
        level="advanced",
        when={"lr_scheduler": "polynomial"},
    )
    lr_end: float = option(
        0.0,
        "Learning rate at the end of the decay; 0, as SimpleTuner's 4e-7 can exceed the rate itself.",
        resume="warn",
        ge=0,
        level="advanced",
        when={"lr_scheduler": ("polynomial", "sine", "cosine", "cosine_wave")},
    )
    lr_scale: bool = option(
        False,
        "Multiply the learning rate by batch size, accumulation steps and devices.",
        resume="warn",
        level="advanced",
    )
    lr_scale_sqrt: bool = option(
        False,
        "With lr_scale, multiply by the square root of that product instead.",
        resume="warn",
        level="advanced",
        when={"lr_scale": True},
    )
    optimizer: str = option(
        "adamw_bf16",
        "The rule that turns gradients into updates.",
        resume="refuse",
        choices=(*OPTIMIZERS, *sorted(plugin_names("darkroom.optimizers") - {*OPTIMIZERS})),
        also=rf"torch-[a-z]+|muon|{IMPORT_PATH}",
        also_words="torch-NAME for one of PyTorch's own, or package.module.Class for your own",
    )
    optimizer_config: dict[str, object] | None = option(
        None,
        "Further settings of the optimizer as name=value,name=value, such as d_coef=0.1.",
        resume="warn",
        json=True,
        text=True,
        also_words="name=value,name=value",
        level="advanced",
    )
    optimizer_beta1: float | None = option(
        None,
        "How slowly the optimizer forgets past gradients; give optimizer_beta2 too.",
        resume="warn",
        ge=0,
        lt=1,
        level="advanced",
    )
    optimizer_beta2: float | None = option(
        None,
        "How slowly the optimizer forgets past squared gradients; give optimizer_beta1 too.",
        resume="warn",
        ge=0,
        lt=1,
        level="advanced",
    )
    adam_beta1: float = option(
        0.9,
        "The first beta of Adam-type optimizers, unless optimizer_beta1 says otherwise.",
        resume="warn",
        ge=0,
        lt=1,
        level="expert",
    )
    adam_beta2: float = option(
        0.999,
        "The second beta of Adam-type optimizers, unless optimizer_beta2 says otherwise.",
        resume="warn",
        ge=0,
        lt=1,
        level="expert",
    )
    adam_weight_decay: float = option(
        0.01, "Pull of the weights towards zero in Adam-type optimizers.", resume="warn", ge=0, level="advanced"
    )
    adam_epsilon: float = option(
        1e-8, "Small number that keeps Adam's division stable.", resume="warn", gt=0, level="expert"
    )
    prodigy_steps: int | None = option(
        None,
        "Updates after which Prodigy stops adapting its step size.",
        off=True,
        resume="warn",
        ge=0,
        level="advanced",
        when={"optimizer": "prodigy"},
    )
    max_grad_norm: float = option(
        2.0,
        "Limit on gradients, applied as grad_clip_method says; 0 switches it off.",
        resume="warn",
        ge=0,
        level="advanced",
    )
    grad_clip_method: Literal["value", "norm"] = option(
        "value",
        "Limit each gradient entry by itself (value, as SimpleTuner does) or their common length (norm).",
        resume="warn",
        level="advanced",
        when={"max_grad_norm": SET},
    )
    optimizer_cpu_offload_method: Literal["none", "cpu"] = option(
        "none",
        "Keep the optimizer's state on the device (none), or in host memory and update there (cpu).",
        resume="warn",
        level="advanced",
    )
    optimizer_offload_gradients: bool = option(
        False,
        "Send each gradient to host memory as soon as it is known, where the optimizer is.",
        resume="warn",
        level="advanced",
        when={"optimizer_cpu_offload_method": "cpu"},
    )
    optimizer_release_gradients: bool = option(
        False,
        "Update each weight as soon as its gradient is known and free that, so that no two gradients are held.",
        resume="warn",
        level="advanced",
    )
    fuse_optimizer: bool = option(
        False,
        "Use fused kernels of torch's Adam, AdamW, SGD or Adagrad: faster, most of all on a CPU.",
        resume="warn",
        level="expert",
    )
    use_ema: bool = option(
        False, "Keep a slowly moving average of the trained weights, which often looks better.", resume="warn"
    )
    ema_decay: float = option(
        0.995,
        "How slowly the average moves; 0.999 suits runs of many thousand updates.",
        resume="warn",
        ge=0,
        le=0.9999,
        when=_EMA,
    )
    ema_update_interval: int = option(
        1, "Updates between two steps of the average.", resume="warn", ge=1, level="advanced", when=_EMA
    )
    ema_device: Literal["auto", "accelerator", "cpu"] = option(
        "auto",
        "Where the average is kept and updated; auto: an adapter's on the accelerator, a whole model's in host memory.",
        resume="free",
        level="advanced",
        when=_EMA,
    )
    ema_cpu_only: bool = option(
        False,
        "Keep and update the average in host memory, whatever ema_device says.",
        resume="free",
        level="expert",
        when={"use_ema": True, "ema_device": ("auto", "accelerator")},
    )
    ema_foreach_disable: bool = option(
        False,
        "Update the average tensor by tensor, for devices that lack grouped operations.",
        resume="free",
        level="expert",
        when=_EMA,
    )
    ema_validation: Literal["none", "ema_only", "comparison"] = option(
        "comparison",
        "Validate with the trained weights, with their average, or with both side by side.",
        resume="free",
        when=_EMA,
    )

    @field_validator("optimizer_config", "lr_scheduler_args", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        return parse_pairs(value) if isinstance(value, str | list) else value


def parse_pairs(text: str | list[object]) -> object:
    """`"d_coef=0.1,betas=(0.9,0.99)"` or a list of such words to a dictionary; JSON and `none` pass through."""
    joined = ",".join(map(str, text)) if isinstance(text, list) else text.strip()
    if joined[:1] == "{" or joined.lower() in ("none", "null"):
        return joined
    pairs = {}
    for part in re.split(r",(?![^(\[]*[)\]])", joined):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not name.isidentifier():
            raise ValueError(f"'{part.strip()}' is not name=value")
        pairs[name] = literal(value)
    return pairs


SCHEDULE_ARGUMENTS = ("step_rules", "rex_alpha", "rex_beta", "num_cycles", "min_lr_ratio", "min_lr_rate")
"""What `lr_scheduler_args` may hold."""


def find_schedule_fault(arguments: Mapping[str, object] | None) -> str:
    """What is wrong with `lr_scheduler_args`, as a sentence without its end; empty if nothing is."""
    for name, value in (arguments or {}).items():
        if name not in SCHEDULE_ARGUMENTS:
            return f"no schedule has an argument '{name}'; there are {', '.join(SCHEDULE_ARGUMENTS)}"
        if name == "step_rules":
            try:
                parse_step_rules(str(value))
            except ValueError as wrong:
                return str(wrong)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            return f"{name} is a number"
    return ""


def parse_step_rules(text: str) -> tuple[tuple[tuple[int, float], ...], float]:
    """`"1:10,0.1:20,0.01"`, the rules of diffusers: factor 1 before step 10, 0.1 before step 20, 0.01 after it.

    Returns the steps with their factors, ascending, and the last factor. Raises ValueError.
    """
    *rules, last = text.split(",")
    try:
        pairs = [(int(step), float(factor)) for factor, _, step in (rule.partition(":") for rule in rules)]
        return tuple(sorted(pairs)), float(last)
    except ValueError:
        raise ValueError(f"step_rules is factor:step,...,factor, as in 1:10,0.1:20,0.01, and not '{text}'") from None


def literal(text: str) -> object:
    """A number, truth value, none or tuple as Python writes it, else the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
