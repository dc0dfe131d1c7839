"""Optimizers by name. A row is data: where the class is, its defaults, what it needs. Any import path works too."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from darkroom.core.errors import ConfigError, MissingPackage
from darkroom.core.registry import Table, import_path


@dataclasses.dataclass(frozen=True)
class Row:
    """One optimizer: its class, the defaults that differ from the library's, the extra that installs it.

    own_clip       it limits its own updates, so gradients are not clipped before it
    schedule_free  it averages weights itself: no learning-rate schedule; train() and eval() switch weights
    warmup         the argument that takes `lr_warmup_steps`, for those that warm up by themselves
    """

    path: str
    sentence: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra: str = "optim"
    own_clip: bool = False
    schedule_free: bool = False
    warmup: str = ""


OPTIMIZERS: Table[Row] = Table("optimizer", entry_points="darkroom.optimizers")

OPTIMIZERS.add(
    "adamw_bf16",
    Row("darkroom.optim.adamw_bf16:AdamWBF16", "AdamW on bfloat16 weights with stochastic rounding.", extra=""),
)

_KAHAN = {"kahan_sum": True}
for _name, _class, _sentence, _defaults in (
    ("stableadamw", "StableAdamW", "AdamW that limits its own updates.", {"weight_decay": 0.01, **_KAHAN}),
    ("adamw", "AdamW", "AdamW with Kahan summation for low precision.", {"weight_decay": 0.0, **_KAHAN}),
    ("lion", "Lion", "Sign of the momentum; wants a rate about ten times smaller.", _KAHAN),
    ("radam", "RAdam", "Adam with a rectified warm-up.", {"decouple_wd": True, **_KAHAN}),
    ("ranger", "Ranger", "RAdam with lookahead.", {"decouple_wd": True, **_KAHAN}),
    ("adan", "Adan", "Nesterov momentum on three moments.", {"betas": (0.98, 0.92, 0.999), **_KAHAN}),
    ("adam", "Adam", "Adam with Kahan summation for low precision.", _KAHAN),
    ("sgd", "SGD", "Plain gradient descent with Kahan summation.", _KAHAN),
):
    OPTIMIZERS.add(f"optimi-{_name}", Row(f"optimi.{_class}", _sentence, _defaults, own_clip=_name == "stableadamw"))

for _name, _sentence, _defaults in (
    ("", "AdamW that needs no schedule: it averages the weights on the way.", {"weight_decay": 0.01}),
    ("+aggressive", "The same with a tenth of the weight decay.", {"weight_decay": 1e-3, "eps": 1e-6}),
    ("+no_kahan", "Like +aggressive; the library has no Kahan summation.", {"weight_decay": 1e-3, "eps": 1e-6}),
):
    OPTIMIZERS.add(
        f"adamw_schedulefree{_name}",
        Row("schedulefree.AdamWScheduleFree", _sentence, _defaults, schedule_free=True, warmup="warmup_steps"),
    )

OPTIMIZERS.add(
    "prodigy",
    Row(
        "prodigyplus.prodigy_plus_schedulefree:ProdigyPlusScheduleFree",
        "Finds its own learning rate; leave learning_rate at 1.",
        # every run has one group of parameters, and the library prints a line when it finds nothing to split
        {"betas": (0.9, 0.99), "prodigy_steps": 0, "split_groups": False},
        own_clip=True,
        schedule_free=True,
    ),
)

for _name, _class in (
    ("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD"), ("radam", "RAdam"), ("nadam", "NAdam"),
    ("rmsprop", "RMSprop"), ("adagrad", "Adagrad"), ("adadelta", "Adadelta"), ("adafactor", "Adafactor"),
    ("adamax", "Adamax"), ("asgd", "ASGD"),
):  # fmt: skip
    _weight_decay = {"weight_decay": 0.01} if _name == "adamw" else {}
    OPTIMIZERS.add(f"torch-{_name}", Row(f"torch.optim.{_class}", f"torch's {_class}.", _weight_decay, extra=""))


def row_of(name: str) -> Row:
    """The row of `name`; a dotted path becomes a row of its own. Raises ConfigError with the nearest names."""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if "." in name or ":" in name:
        return Row(name, "A class of your own.", extra="")
    try:
        return OPTIMIZERS[name]
    except KeyError as cause:
        raise ConfigError(
            "optimizer", name, "", str(cause).strip('"'), f"Choose one of: {', '.join(OPTIMIZERS)}."
        ) from None


def build(options: Any, parameters: Iterable[Any], rate: float, seed: int) -> Any:
    """The optimizer that the options ask for, on `parameters` (tensors or groups), ready for its first step.

    Raises MissingPackage if its library is absent and ConfigError for arguments that its class does not take.
    """
    row = row_of(options.optimizer)
    cls = _class_of(row, options.optimizer)
    arguments = _arguments(row, cls, options, rate, seed)
    try:
        optimizer = cls(parameters, **arguments)
    except (ValueError, TypeError) as cause:
        if not options.optimizer_config:
            raise
        raise ConfigError(
            "optimizer_config",
            options.optimizer_config,
            "",
            f"{cls.__name__} refuses it: {cause}.",
            "Correct the value or leave it out.",
        ) from cause
    if row.schedule_free:
        optimizer.train()
    return optimizer


def _class_of(row: Row, name: str) -> type:
    try:
        return import_path(row.path)
    except ImportError as cause:
        if row.extra:
            package = row.path.split(".")[0].split(":")[0]
            raise MissingPackage(package, row.extra, f"optimizer = {name}") from cause
        raise ConfigError("optimizer", name, "", f"{cause}.", "Check the path of the class.") from cause


def _arguments(row: Row, cls: type, options: Any, rate: float, seed: int) -> dict[str, Any]:
    """What the class is called with: the row's defaults, then options of their own, then `optimizer_config`."""
    accepted = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    takes_anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    own = dict(options.optimizer_config or {})
    if unknown := [name for name in own if name not in accepted and not takes_anything]:
        raise ConfigError(
            "optimizer_config",
            own,
            "",
            f"{cls.__name__} has no argument {', '.join(unknown)}.",
            f"It takes: {', '.join(n for n in accepted if n not in ('self', 'params'))}.",
        )
    arguments = {"lr": rate, "seed": seed, **row.defaults, **_from_options(options, cls), **own}
    if row.warmup:
        arguments.setdefault(row.warmup, options.lr_warmup_steps)
    return {name: value for name, value in arguments.items() if name in accepted or (takes_anything and name != "seed")}


def _from_options(options: Any, cls: type) -> dict[str, Any]:
    """Arguments that have options of their own. Those named adam_... count only where the user set them."""
    arguments: dict[str, Any] = {}
    given = options.model_fields_set
    if "adam" in cls.__name__.lower():
        if given & {"adam_beta1", "adam_beta2"}:
            arguments["betas"] = (options.adam_beta1, options.adam_beta2)
        for name, argument in (("adam_weight_decay", "weight_decay"), ("adam_epsilon", "eps")):
            if name in given:
                arguments[argument] = getattr(options, name)
    if options.optimizer_beta1 is not None and options.optimizer_beta2 is not None:
        arguments["betas"] = (options.optimizer_beta1, options.optimizer_beta2)
    if options.prodigy_steps is not None:
        arguments["prodigy_steps"] = options.prodigy_steps
    return arguments
