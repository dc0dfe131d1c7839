"""Optimizers by name. A row is data: where the class is, its defaults, what it needs. Any import path works too."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import os
import shutil
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, cast

import torch

from darkroom.core.device import capability, is_host
from darkroom.core.errors import ConfigError, MissingPackage
from darkroom.core.registry import Table, import_path
from darkroom.optim.base import Optimizer

if TYPE_CHECKING:
    from torch import Tensor

    from darkroom.options.config import Config


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """One optimizer: its class, the defaults that differ from the library's, the extra that installs it.

    clips_gradients       it limits its own updates, so gradients are not clipped before it
    schedule_free  it averages weights itself: no learning-rate schedule; train() and eval() switch weights
    warmup         the argument that takes `lr_warmup_steps`, for those that warm up by themselves
    compiles       torch compiles its update, for which there has to be a compiler
    gpu            the compute capability of a GPU without which it is not what its name says; (0, 0) is any
    on_cpu         it runs without a GPU
    """

    path: str
    sentence: str
    defaults: Mapping[str, object] = dataclasses.field(default_factory=dict)
    extra: str = "optim"
    clips_gradients: bool = False
    schedule_free: bool = False
    warmup: str = ""
    compiles: bool = False
    gpu: tuple[int, int] = (0, 0)
    on_cpu: bool = True

    @property
    def package(self) -> str:
        """What has to be installed."""
        return self.path.split(".")[0].split(":")[0]


OPTIMIZERS: Table[OptimizerSpec] = Table("optimizer", entry_points="darkroom.optimizers")

OPTIMIZERS.add(
    "adamw_bf16",
    OptimizerSpec(
        "darkroom.optim.adamw_bf16:AdamWBF16", "AdamW on bfloat16 weights with stochastic rounding.", extra=""
    ),
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
    OPTIMIZERS.add(
        f"optimi-{_name}",
        OptimizerSpec(f"optimi.{_class}", _sentence, _defaults, clips_gradients=_name == "stableadamw"),
    )

for _name, _sentence, _defaults in (
    ("", "AdamW that needs no schedule: it averages the weights on the way.", {"weight_decay": 0.01}),
    ("+aggressive", "The same with a tenth of the weight decay.", {"weight_decay": 1e-3, "eps": 1e-6}),
    ("+no_kahan", "Like +aggressive; the library has no Kahan summation.", {"weight_decay": 1e-3, "eps": 1e-6}),
):
    OPTIMIZERS.add(
        f"adamw_schedulefree{_name}",
        OptimizerSpec(
            "schedulefree.AdamWScheduleFree", _sentence, _defaults, schedule_free=True, warmup="warmup_steps"
        ),
    )

OPTIMIZERS.add(
    "prodigy",
    OptimizerSpec(
        "prodigyplus.prodigy_plus_schedulefree:ProdigyPlusScheduleFree",
        "Finds its own learning rate; leave learning_rate at 1.",
        # every run has one group of parameters, and the library prints a line when it finds nothing to split
        {"betas": (0.9, 0.99), "prodigy_steps": 0, "split_groups": False},
        clips_gradients=True,
        schedule_free=True,
    ),
)

for _name, _class in (
    ("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD"), ("radam", "RAdam"), ("nadam", "NAdam"),
    ("rmsprop", "RMSprop"), ("adagrad", "Adagrad"), ("adadelta", "Adadelta"), ("adafactor", "Adafactor"),
    ("adamax", "Adamax"), ("asgd", "ASGD"),
):  # fmt: skip
    _weight_decay = {"weight_decay": 0.01} if _name == "adamw" else {}
    OPTIMIZERS.add(
        f"torch-{_name}", OptimizerSpec(f"torch.optim.{_class}", f"torch's {_class}.", _weight_decay, extra="")
    )

_ANY, _FP8 = (0, 0), (8, 9)  # eight-bit floats are computed with from there on
for _name, _class, _sentence, _gpu in (
    ("adamw8bit", "AdamW8bit", "AdamW whose state has 8 bits, in blocks of 256.", _ANY),
    ("adamw4bit", "AdamW4bit", "AdamW whose state has 4 bits, in blocks of 128.", _ANY),
    ("adamfp8", "AdamFp8", "Adam whose state is in eight-bit floats, in blocks of 256.", _FP8),
    ("adamwfp8", "AdamWFp8", "AdamW whose state is in eight-bit floats, in blocks of 256.", _FP8),
):
    _usual = {"weight_decay": 0.01, "eps": 1e-6}
    OPTIMIZERS.add(
        f"ao-{_name}", OptimizerSpec(f"torchao.optim.{_class}", _sentence, _usual, "quant", compiles=True, gpu=_gpu)
    )

_settings: Mapping[str, object]
for _name, _class, _sentence, _settings, _pages in (
    ("adagrad", "Adagrad", "bitsandbytes' Adagrad", {}, False),
    ("adam", "Adam", "bitsandbytes' Adam", {}, False),
    ("adamw", "AdamW", "bitsandbytes' AdamW", {"weight_decay": 0.01, "eps": 1e-6}, True),
    ("lion", "Lion", "bitsandbytes' Lion", {}, True),
    ("ademamix", "AdEMAMix", "Adam with a second, slower momentum (2409.03137)", {"weight_decay": 0.01}, True),
):
    for _bits, _words in (("", ""), ("8bit", ", its state in 8 bits")):
        _path, _description = f"bitsandbytes.optim.{_class}{_bits}", f"{_sentence}{_words}"
        OPTIMIZERS.add(f"bnb-{_name}{_bits}", OptimizerSpec(_path, f"{_description}.", _settings, "quant"))
        if _pages:
            _path, _description = (
                _path.replace(_class, f"Paged{_class}"),
                f"{_description}, in pages that go to the host and back.",
            )
            OPTIMIZERS.add(
                f"bnb-{_name}{_bits}-paged", OptimizerSpec(_path, _description, _settings, "quant", on_cpu=False)
            )

_SDNQ: Mapping[str, object] = {"use_quantized_buffers": True}
for _name, _class, _sentence, _settings in (
    ("adamw", "AdamW", "AdamW whose state is in 8 bits, in groups of 32.", {"betas": (0.9, 0.95), **_SDNQ}),
    ("adamw+no_quant", "AdamW", "The same with its state in full.", {"betas": (0.9, 0.95)}),
    ("adafactor", "Adafactor", "Adafactor: of squares it keeps sums of rows and columns.", _SDNQ),
    ("came", "CAME", "Adafactor with a momentum that it trusts by its steadiness.", _SDNQ),
    ("lion", "Lion", "Lion whose momentum is in 8 bits.", {"betas": (0.9, 0.99), **_SDNQ}),
    ("muon", "Muon", "Muon: momentum made orthogonal; vectors by AdamW.", {"betas": (0.9, 0.95), **_SDNQ}),
    ("muon+quantized_matmul", "Muon", "The same, multiplying in 8 bits.",
     {"betas": (0.9, 0.95), "use_quantized_matmul": True, **_SDNQ}),
):  # fmt: skip
    OPTIMIZERS.add(f"sdnq-{_name}", OptimizerSpec(f"sdnq.optim.{_class}", _sentence, _settings, "quant"))

OPTIMIZERS.add("soap", OptimizerSpec("pytorch_optimizer.SOAP", "Adam in the axes of Shampoo (2409.11321).", {}))


def find_optimizer(name: str) -> OptimizerSpec:
    """The row of `name`; a dotted path becomes a row of its own. Raises ConfigError with the nearest names."""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if "." in name or ":" in name:
        return OptimizerSpec(name, "A class of your own.", extra="")
    try:
        return OPTIMIZERS[name]
    except KeyError as cause:
        raise ConfigError(
            "optimizer", name, "", str(cause).strip('"'), f"Choose one of: {', '.join(OPTIMIZERS)}."
        ) from None


def validate_optimizer(options: Config, device: torch.device) -> None:
    """Raises MissingPackage, or ConfigError for an optimizer that there is not or that this machine cannot run."""
    name, spec = options.optimizer, find_optimizer(options.optimizer)
    if options.optimizer_cpu_offload_method == "cpu":
        device = torch.device("cpu")
    if is_host(device) and not spec.on_cpu:
        problem = "Its state moves between a GPU and the host, and here it would be on the host alone."
        raise ConfigError("optimizer", name, "", problem, f"Choose {name.removesuffix('-paged')}.")
    if (available := capability(device)) and available < spec.gpu:
        required, actual = _format_version(spec.gpu), _format_version(available)
        problem = f"Its eight-bit floats need compute capability {required}, and this GPU has {actual}."
        raise ConfigError("optimizer", name, "", problem, "Choose ao-adamw8bit.")
    if spec.extra and importlib.util.find_spec(spec.package) is None:
        raise MissingPackage(spec.package, spec.extra, f"optimizer = {name}")
    if spec.compiles and not shutil.which(os.environ.get("CXX", "g++")):
        problem = "torch compiles its update when it first runs, and there is no C++ compiler here."
        raise ConfigError("optimizer", name, "", problem, "Install g++, or choose bnb-adamw8bit.")
    if options.fuse_optimizer:
        _require_fused(_import_class(spec, name), name)
    blocking = [n for n in NOT_ON_MODEL_WEIGHTS if getattr(options, n) not in (False, "none")]
    if blocking and hasattr(cls := _import_class(spec, name), "train") and hasattr(cls, "eval"):
        problem = f"{name} changes all weights before they are saved or drawn with, which it has to have together."
        raise ConfigError(blocking[0], getattr(options, blocking[0]), "", problem, "Choose another optimizer.")


# with these an optimizer is not on the model's weights themselves, or not on all of them
NOT_ON_MODEL_WEIGHTS = ("optimizer_cpu_offload_method", "optimizer_release_gradients")


def _format_version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _require_fused(cls: type, name: str) -> None:
    if "fused" not in inspect.signature(cls.__init__).parameters:  # type: ignore[misc]
        fit = [n for n in OPTIMIZERS if n in ("torch-adam", "torch-adamw", "torch-sgd", "torch-adagrad")]
        problem = f"{name} has no fused kernels."
        raise ConfigError("fuse_optimizer", True, "", problem, f"Set it to false, or choose one of: {', '.join(fit)}.")


class OptimizerClass(Protocol):
    """A class of optimizers: groups first, then settings by name."""

    def __call__(self, groups: list[dict[str, object]], /, **settings: object) -> Optimizer: ...


class ScheduleFree(Protocol):
    """An optimizer that trains on other weights than those it means."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


def build(
    options: Config, parameters: Iterable[Tensor] | Iterable[Mapping[str, object]], rate: float, seed: int
) -> Optimizer:
    """The optimizer that the options ask for, on `parameters` (tensors or groups), ready for its first step.

    Raises MissingPackage if its library is absent and ConfigError for arguments that its class does not take.
    """
    spec = find_optimizer(options.optimizer)
    cls = _import_class(spec, options.optimizer)
    arguments, overrides = _arguments(spec, cls, options, rate, seed), options.optimizer_config or {}
    try:
        optimizer = cast(OptimizerClass, cls)(as_groups(parameters), **arguments)
    except (ValueError, TypeError, AssertionError) as cause:
        if not overrides:
            raise
        summary = f"{cls.__name__} refuses it: {str(cause) or 'not every name is one that it knows'}."
        raise _config_error(overrides, summary, "Correct the value or leave it out.") from cause
    accepted = {*inspect.signature(cls.__init__).parameters, *(name for g in optimizer.param_groups for name in g)}
    if unknown := overrides.keys() - accepted:  # swallowed by a class that takes anything
        problem = f"{cls.__name__} has no argument {', '.join(sorted(unknown))}."
        raise _config_error(
            overrides, problem, f"It takes: {', '.join(sorted(accepted - {'self', 'params', 'kwargs'}))}."
        )
    if spec.schedule_free:
        cast("ScheduleFree", optimizer).train()
    return optimizer


def as_groups(parameters: Iterable[Tensor] | Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
    """Parameters, or groups of them, as groups; those given stay as they are."""
    items = list(parameters)
    groups = [dict(item) for item in items if isinstance(item, Mapping)]
    return groups or [{"params": items}]


def _config_error(value: Mapping[str, object], problem: str, change: str) -> ConfigError:
    return ConfigError("optimizer_config", value, "", problem, change)


def _import_class(spec: OptimizerSpec, name: str) -> type[Optimizer]:
    try:
        return cast("type[Optimizer]", import_path(spec.path))
    except ImportError as cause:
        if spec.extra:
            raise MissingPackage(spec.package, spec.extra, f"optimizer = {name}") from cause
        raise ConfigError("optimizer", name, "", f"{cause}.", "Check the path of the class.") from cause


def _arguments(spec: OptimizerSpec, cls: type, options: Config, rate: float, seed: int) -> dict[str, object]:
    """What the class is called with: the row's defaults, then options of their own, then `optimizer_config`."""
    accepted = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    takes_anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    overrides = dict(options.optimizer_config or {})
    if unknown := [name for name in overrides if name not in accepted and not takes_anything]:
        problem = f"{cls.__name__} has no argument {', '.join(unknown)}."
        raise _config_error(
            overrides, problem, f"It takes: {', '.join(n for n in accepted if n not in ('self', 'params'))}."
        )
    if options.fuse_optimizer:
        _require_fused(cls, options.optimizer)
        overrides.setdefault("fused", True)
    arguments = {"lr": rate, "seed": seed, **spec.defaults, **_from_options(options, cls), **overrides}
    if spec.warmup:
        arguments.setdefault(spec.warmup, options.lr_warmup_steps)
    return {name: value for name, value in arguments.items() if name in accepted or (takes_anything and name != "seed")}


def _from_options(options: Config, cls: type) -> dict[str, object]:
    """Arguments that have options of their own. Those named adam_... count only where the user set them."""
    arguments: dict[str, object] = {}
    set_options = options.model_fields_set
    if "adam" in cls.__name__.lower():
        if set_options & {"adam_beta1", "adam_beta2"}:
            arguments["betas"] = (options.adam_beta1, options.adam_beta2)
        for name, argument in (("adam_weight_decay", "weight_decay"), ("adam_epsilon", "eps")):
            if name in set_options:
                arguments[argument] = getattr(options, name)
    if options.optimizer_beta1 is not None and options.optimizer_beta2 is not None:
        arguments["betas"] = (options.optimizer_beta1, options.optimizer_beta2)
    if options.prodigy_steps is not None:
        arguments["prodigy_steps"] = options.prodigy_steps
    return arguments
