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
    rate           a base learning rate that replaces the usual one (Prodigy finds its own and wants 1)
    """

    path: str
    sentence: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra: str = "optim"
    own_clip: bool = False
    schedule_free: bool = False
    rate: float | None = None


OPTIMIZERS: Table[Row] = Table("optimizer", entry_points="darkroom.optimizers")

OPTIMIZERS.add(
    "adamw_bf16",
    Row("darkroom.optim.adamw_bf16:AdamWBF16", "AdamW on bfloat16 weights with stochastic rounding.", extra=""),
)

_KAHAN = {"kahan_sum": True}
for _name, _class, _sentence, _defaults in (
    ("stableadamw", "StableAdamW", "AdamW that limits its own updates.", {"weight_decay": 0.01, **_KAHAN}),
    ("adamw", "AdamW", "AdamW with Kahan summation for low precision.", {"betas": (0.9, 0.99), **_KAHAN}),
    ("lion", "Lion", "Sign of the momentum; wants a rate about ten times smaller.", _KAHAN),
    ("radam", "RAdam", "Adam with a rectified warm-up.", {"decouple_wd": True, **_KAHAN}),
    ("ranger", "Ranger", "RAdam with lookahead.", {"decouple_wd": True, **_KAHAN}),
    ("adan", "Adan", "Nesterov momentum on three moments.", {"weight_decay": 0.02, **_KAHAN}),
    ("adam", "Adam", "Adam with Kahan summation for low precision.", _KAHAN),
    ("sgd", "SGD", "Plain gradient descent with Kahan summation.", _KAHAN),
):
    OPTIMIZERS.add(f"optimi-{_name}", Row(f"optimi.{_class}", _sentence, _defaults, own_clip=_name == "stableadamw"))

OPTIMIZERS.add(
    "prodigy",
    Row(
        "prodigyplus.prodigy_plus_schedulefree:ProdigyPlusScheduleFree",
        "Finds its own learning rate; leave learning_rate at 1.",
        {"betas": (0.9, 0.99), "prodigy_steps": 0},
        own_clip=True,
        schedule_free=True,
        rate=1.0,
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
    """The optimizer that the options ask for, on `parameters` (tensors or groups).

    Raises MissingPackage if its library is absent and ConfigError for arguments that its class does not take.
    """
    row = row_of(options.optimizer)
    try:
        cls = import_path(row.path)
    except ImportError as cause:
        if row.extra:
            raise MissingPackage(
                row.path.split(".")[0].split(":")[0], row.extra, f"optimizer = {options.optimizer}"
            ) from cause
        raise ConfigError("optimizer", options.optimizer, "", str(cause), "Check the path of the class.") from cause
    accepted = inspect.signature(cls.__init__).parameters
    arguments = {**row.defaults, **_from_options(options, accepted)}
    own = dict(options.optimizer_config or {})
    unknown = [name for name in own if name not in accepted and not _takes_anything(accepted)]
    if unknown:
        raise ConfigError(
            "optimizer_config",
            own,
            "",
            f"{cls.__name__} has no argument {', '.join(unknown)}.",
            f"It takes: {', '.join(n for n in accepted if n not in ('self', 'params'))}.",
        )
    arguments |= own
    if "seed" in accepted:
        arguments.setdefault("seed", seed)
    arguments = {name: value for name, value in arguments.items() if name in accepted or _takes_anything(accepted)}
    return cls(parameters, **{"lr": row.rate or rate, **arguments})


def _takes_anything(accepted: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())


def _from_options(options: Any, accepted: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Arguments that have options of their own."""
    arguments: dict[str, Any] = {}
    if options.optimizer_beta1 is not None and options.optimizer_beta2 is not None:
        arguments["betas"] = (options.optimizer_beta1, options.optimizer_beta2)
    if options.prodigy_steps is not None and "prodigy_steps" in accepted:
        arguments["prodigy_steps"] = options.prodigy_steps
    return arguments
