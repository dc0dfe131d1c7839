"""musubi-tuner's `optimizer_type` as an optimizer of Darkroom's, with the settings that make it the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from darkroom.options.optimizer import OPTIMIZERS


class Choice(NamedTuple):
    """An optimizer, the settings under those that the user gives, and how it differs."""

    optimizer: str
    settings: Mapping[str, object] = {}
    remark: str = ""
    rate: float | None = None


_EPS = {"eps": 1e-8}
_BITSANDBYTES = "bitsandbytes.optim."
_TORCH = ("adam", "adamw", "sgd", "radam", "nadam", "rmsprop", "adagrad", "adadelta", "adamax", "asgd")
_CLASSES = {
    "schedulefree.AdamWScheduleFree": Choice("adamw_schedulefree", {"weight_decay": 0.0}),
    "prodigyplus.ProdigyPlusScheduleFree": Choice("prodigy"),
    "prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree": Choice("prodigy"),
    "pytorch_optimizer.SOAP": Choice("soap"),
}


def choose_optimizer(kind: str, arguments: Mapping[str, object]) -> Choice:
    """The optimizer of an `optimizer_type`; any other dotted path is imported as it is."""
    lower = kind.lower()
    if lower in ("", "adamw"):
        remark = "musubi-tuner fails without one, and its help calls AdamW the default" if not kind else ""
        return Choice("torch-adamw", {}, remark)
    if lower == "adamw8bit":
        return Choice("bnb-adamw8bit", _EPS)
    if lower == "adafactor":
        return _adafactor(arguments)
    if kind in _CLASSES:
        return _CLASSES[kind]
    if kind.startswith(_BITSANDBYTES) and (name := _bitsandbytes(kind.removeprefix(_BITSANDBYTES))):
        return Choice(name, _EPS if "adamw" in name else {})
    if lower in _TORCH:
        return Choice(f"torch-{lower}")
    return Choice(kind if "." in kind else f"torch.optim.{kind}")


def _bitsandbytes(name: str) -> str:
    """`PagedAdamW8bit` as `bnb-adamw8bit-paged`; empty where there is none."""
    plain = name.lower()
    name_here = f"bnb-{plain.removeprefix('paged')}{'-paged' if plain.startswith('paged') else ''}"
    return name_here if name_here in OPTIMIZERS else ""


def _adafactor(arguments: Mapping[str, object]) -> Choice:
    """transformers' class with a rate of its own; with relative steps torch's, whose rule is the same there."""
    relative = bool(arguments.get("warmup_init")) or arguments.get("relative_step", True) is not False
    if not relative:
        return Choice("transformers.optimization.Adafactor", {"relative_step": False})
    remark = "relative steps: min(0.01, 1/sqrt(step)) times the size of the weight, by torch's Adafactor"
    return Choice("torch-adafactor", {"eps": (1e-30, 1e-3)}, remark, rate=0.01)
