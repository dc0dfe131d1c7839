"""Components that diffusers and transformers quantise while they load them: `quantize_via pipeline`.

What a component gets stands in `quantization_config`, by its name or under `default`, or is one of the precisions. A
setting is what the libraries' own classes take; which class is meant shows in its keys:

    {"transformer": {"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"},     # BitsAndBytesConfig
     "text_encoder_2": {"weights_dtype": "int8"},                             # QuantoConfig
     "text_encoder": {"quant_type": "Int8WeightOnlyConfig"},                  # TorchAoConfig
     "default": "int8-quanto"}                                                # as base_model_precision has it
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from darkroom.core.device import ASSUMED, is_host
from darkroom.core.errors import ConfigError
from darkroom.core.optional import import_optional

if TYPE_CHECKING:
    from darkroom.options.config import Config

OPTION = "quantization_config"
DEFAULT, NONE = "default", "no_change"
# the precisions that the libraries have too, as they take them
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "nf4-bnb": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8-quanto": {"weights_dtype": "int8"},
    "int4-quanto": {"weights_dtype": "int4"},
    "int2-quanto": {"weights_dtype": "int2"},
    "fp8-quanto": {"weights_dtype": "float8"},
    "int8-torchao": {"quant_type": "Int8WeightOnlyConfig"},
    "int4-torchao": {"quant_type": "Int4WeightOnlyConfig"},
    "fp8-torchao": {"quant_type": "Float8WeightOnlyConfig"},
}
# a key that shows which class is meant, the class, and the package behind it
CLASSES = (
    ("load_in_4bit", "BitsAndBytesConfig", "bitsandbytes"),
    ("load_in_8bit", "BitsAndBytesConfig", "bitsandbytes"),
    ("weights_dtype", "QuantoConfig", "optimum.quanto"),
    ("quant_type", "TorchAoConfig", "torchao.quantization"),
)
# their argument for layers that are left as they are, where it is not the usual one
LEFT_OUT = {"BitsAndBytesConfig": "llm_int8_skip_modules"}
# what torchao is asked for by arguments alone, as SimpleTuner writes it
BY_ARGUMENTS = "Int4WeightOnlyConfig"
# edges of a layer to try it on; they are multiples of all its groups
PROBE = 512


def chosen(options: Config, component: str, number: int) -> Mapping[str, Any] | None:
    """The settings of a denoiser (number 0) or of a text encoder (from 1); None if it is left as it is."""
    if options.quantize_via != "pipeline":
        return None
    if options.quantization_config is None:
        own = getattr(options, f"text_encoder_{number}_precision" if number else "base_model_precision")
    else:
        own = options.quantization_config.get(component, options.quantization_config.get(DEFAULT))
    if own in (None, NONE):
        return None
    return PRESETS[own] if isinstance(own, str) else own


def check(options: Config, denoisers: Mapping[str, type], encoders: Mapping[str, type], device: torch.device) -> None:
    """Raises ConfigError for settings that do not fit the base's components, given by name with their classes, or this
    machine; and MissingPackage.
    """
    for name, own in (options.quantization_config or {}).items():
        if name not in (*denoisers, *encoders, DEFAULT):
            names = ", ".join([*denoisers, *encoders, DEFAULT])
            raise _refused(name, own, "The model has no such component", f"one of: {names}")
        if isinstance(own, str) and own not in (*PRESETS, NONE):
            raise _refused(name, own, "diffusers has no such precision", f"one of: {', '.join((*PRESETS, NONE))}")
        if not isinstance(own, (str, dict, type(None))):
            raise _refused(name, own, "These are no settings", "an object, or a precision such as int8-quanto")
    for option in ("base_model_precision", *(f"text_encoder_{number}_precision" for number in range(1, 5))):
        own = getattr(options, option)
        if own not in (*PRESETS, NONE):
            change = f"Set quantize_via to cpu, or choose one of: {', '.join(PRESETS)}."
            raise ConfigError(
                option, own, "", "diffusers has no such precision, to quantise with while loading.", change
            )
    for number, (name, cls) in enumerate({**encoders, **denoisers}.items(), 1):
        is_text = name in encoders
        own = chosen(options, name, number if is_text else 0)
        if own is None:
            continue
        if is_text and options.train_text_encoder:
            problem = "A text encoder that is trained keeps its own precision."
            raise ConfigError(OPTION, options.quantization_config, "", problem, f"Set {name} to {NONE} in it.")
        made = settings(own, cls, torch.float32)
        by = made.quant_method.value
        if by == "bitsandbytes" and not is_text and is_host(device):
            problem = "diffusers quantises with bitsandbytes on GPUs only, and there is none here."
            raise ConfigError("quantize_via", "pipeline", "", problem, "Set it to cpu, or take another quantiser.")
        if by == "torchao" and device != ASSUMED:  # where nothing can be tried
            _try(own, made.quant_type, device, trains=not is_text)


def settings(own: Mapping[str, Any], cls: type, dtype: torch.dtype, wide: Sequence[str] = ()) -> Any:
    """The object that the library of `cls` wants; what is not quantised is computed in `dtype`.

    `wide` are the names of layers that are left as they are, unless `own` says which. The libraries know a layer at
    the top of a network, and quanto any, by the last part of its name: those of that name in blocks stay wide too.
    Raises ConfigError for settings that it does not know, and MissingPackage.
    """
    import diffusers
    import transformers

    # diffusers repeats with every use that a release to come will have no quanto
    warnings.filterwarnings("ignore", message=".*Quanto.* is deprecated", category=FutureWarning)
    library = transformers if issubclass(cls, transformers.PreTrainedModel) else diffusers
    row = next((row for row in CLASSES if row[0] in own), None)
    if row is None:
        keys = ", ".join(dict.fromkeys(key for key, _, _ in CLASSES))
        raise ConfigError(OPTION, dict(own), "", "Its keys do not say what quantises.", f"Give one of: {keys}.")
    key, name, package = row
    module = import_optional(package, "quant", f"{OPTION} with {key}")
    arguments = dict(own)
    if name == "TorchAoConfig":
        arguments[key] = _torchao(module, arguments[key])
    if wide:
        names = sorted({layer.rpartition(".")[2] for layer in wide}) if name == "QuantoConfig" else list(wide)
        arguments.setdefault(LEFT_OUT.get(name, "modules_to_not_convert"), names)
    if name == "BitsAndBytesConfig":
        arguments.setdefault("bnb_4bit_compute_dtype", dtype)
    if name == "QuantoConfig" and library is transformers:
        arguments["weights"] = arguments.pop(key)
    made = getattr(library, name)
    unknown = arguments.keys() - inspect.signature(made.__init__).parameters.keys()
    try:
        if unknown:
            raise ValueError(f"{name} has no {' and no '.join(sorted(unknown))}")
        return made(**arguments)
    except (TypeError, ValueError) as cause:
        problem = f"{library.__name__} does not take it: {str(cause).splitlines()[0].rstrip('.')}."
        raise ConfigError(OPTION, dict(own), "", problem, f"Give what its {name} takes.") from cause


def _torchao(module: Any, given: Any) -> Any:
    """torchao's settings by the name of their class, or by arguments. Raises ConfigError."""
    name, arguments = (given, {}) if isinstance(given, str) else (BY_ARGUMENTS, given)
    made = getattr(module, str(name), None)
    try:
        if made is None:
            raise TypeError(f"torchao.quantization has no {name}")
        return made(**arguments)
    except (TypeError, ValueError, AssertionError) as cause:
        change = "Name one of its classes, such as Int8WeightOnlyConfig, or give the arguments of Int4WeightOnlyConfig."
        raise ConfigError(OPTION, {"quant_type": given}, "", f"{cause}.", change) from cause


def _try(own: Mapping[str, Any], how: Any, device: torch.device, trains: bool) -> None:
    """Raises ConfigError if torchao cannot quantise a layer so on a device, or gradients end there."""
    layer = nn.Sequential(nn.Linear(PROBE, PROBE, dtype=torch.bfloat16, device=device)).requires_grad_(False)
    x = torch.zeros(PROBE, PROBE, dtype=torch.bfloat16, device=device, requires_grad=True)
    change = "Take another of its classes, such as Int8WeightOnlyConfig."
    try:
        import_optional("torchao.quantization", "quant", OPTION).quantize_(layer, how)
        passes = layer(x).requires_grad
    except (AssertionError, AttributeError, ImportError, RuntimeError, TypeError, ValueError) as cause:
        problem = f"torchao cannot do it here: {str(cause).splitlines()[0].rstrip('.')}."
        raise ConfigError(OPTION, dict(own), "", problem, change) from cause
    if trains and not passes:
        problem = "No gradient passes through layers of this kind, and what is before them would not learn."
        raise ConfigError(OPTION, dict(own), "", problem, change)


def _refused(name: str, own: Any, problem: str, wanted: str) -> ConfigError:
    return ConfigError(OPTION, {name: own}, "", f"{problem}.", f"Give {wanted}.")
