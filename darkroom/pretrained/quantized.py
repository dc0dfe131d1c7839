"""Components that diffusers and transformers quantize while loading them: `quantize_via pipeline`.

`quantization_config` has the settings by component name or under `default`: a precision, or the arguments of one of
the libraries' config classes. The keys tell which class:

    {"transformer": {"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"},     # BitsAndBytesConfig
     "text_encoder_2": {"weights_dtype": "int8"},                             # QuantoConfig
     "text_encoder": {"quant_type": "Int8WeightOnlyConfig"},                  # TorchAoConfig
     "default": "int8-quanto"}                                                # as base_model_precision has it
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from darkroom.core.device import ASSUMED, is_host
from darkroom.core.errors import ConfigError
from darkroom.core.optional import import_optional

if TYPE_CHECKING:
    from darkroom.families.shared.types import Settings
    from darkroom.options.config import Config

OPTION = "quantization_config"
DEFAULT, NONE = "default", "no_change"
# precisions that the libraries also have, as their arguments
PRESETS: Mapping[str, Settings] = {
    "nf4-bnb": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8-quanto": {"weights_dtype": "int8"},
    "int4-quanto": {"weights_dtype": "int4"},
    "int2-quanto": {"weights_dtype": "int2"},
    "fp8-quanto": {"weights_dtype": "float8"},
    "int8-torchao": {"quant_type": "Int8WeightOnlyConfig"},
    "int4-torchao": {"quant_type": "Int4WeightOnlyConfig"},
    "fp8-torchao": {"quant_type": "Float8WeightOnlyConfig"},
}
# a key, the class that it belongs to, and the package that it needs
CLASSES = (
    ("load_in_4bit", "BitsAndBytesConfig", "bitsandbytes"),
    ("load_in_8bit", "BitsAndBytesConfig", "bitsandbytes"),
    ("weights_dtype", "QuantoConfig", "optimum.quanto"),
    ("quant_type", "TorchAoConfig", "torchao.quantization"),
)
# the argument for layers to skip, where it is not `modules_to_not_convert`
LEFT_OUT = {"BitsAndBytesConfig": "llm_int8_skip_modules"}
# the class of torchao settings without a class name, as SimpleTuner writes them
BY_ARGUMENTS = "Int4WeightOnlyConfig"
# size of the test layer; a multiple of all group sizes
PROBE = 512


def find_quantization(options: Config, component: str, number: int) -> Settings | None:
    """The settings of a denoiser (number 0) or of a text encoder (from 1); None if it is not quantized."""
    if options.quantize_via != "pipeline":
        return None
    if options.quantization_config is None:
        settings = getattr(options, f"text_encoder_{number}_precision" if number else "base_model_precision")
    else:
        settings = options.quantization_config.get(component, options.quantization_config.get(DEFAULT))
    if settings in (None, NONE):
        return None
    return PRESETS[settings] if isinstance(settings, str) else settings


def validate_quantization_config(
    options: Config, denoisers: Mapping[str, type], encoders: Mapping[str, type], device: torch.device
) -> None:
    """Raises ConfigError for settings that do not fit the base's components (name to class) or this machine, and
    MissingPackage.
    """
    for name, settings in (options.quantization_config or {}).items():
        if name not in (*denoisers, *encoders, DEFAULT):
            names = ", ".join([*denoisers, *encoders, DEFAULT])
            raise _config_error(name, settings, "The model has no such component", f"one of: {names}")
        if isinstance(settings, str) and settings not in (*PRESETS, NONE):
            raise _config_error(
                name, settings, "diffusers has no such precision", f"one of: {', '.join((*PRESETS, NONE))}"
            )
        if not isinstance(settings, (str, dict, type(None))):
            raise _config_error(
                name, settings, "These are no settings", "an object, or a precision such as int8-quanto"
            )
    for option in ("base_model_precision", *(f"text_encoder_{number}_precision" for number in range(1, 5))):
        settings = getattr(options, option)
        if settings not in (*PRESETS, NONE):
            change = f"Set quantize_via to cpu, or choose one of: {', '.join(PRESETS)}."
            raise ConfigError(
                option, settings, "", "diffusers has no such precision to quantize with while loading.", change
            )
    for number, (name, cls) in enumerate({**encoders, **denoisers}.items(), 1):
        is_text = name in encoders
        settings = find_quantization(options, name, number if is_text else 0)
        if settings is None:
            continue
        if is_text and options.train_text_encoder:
            problem = "A text encoder that is trained keeps its own precision."
            raise ConfigError(OPTION, options.quantization_config, "", problem, f"Set {name} to {NONE} in it.")
        config = build_config(settings, cls, torch.float32)
        method = config.quant_method.value
        if method == "bitsandbytes" and not is_text and is_host(device):
            problem = "diffusers quantizes with bitsandbytes on GPUs only, and there is none here."
            raise ConfigError("quantize_via", "pipeline", "", problem, "Set it to cpu, or choose another precision.")
        if method == "torchao" and device != ASSUMED:  # where nothing can be tried
            _try_torchao(settings, config.quant_type, device, trains=not is_text)


def build_config(settings: Mapping[str, object], cls: type, dtype: torch.dtype, skip: Sequence[str] = ()) -> Any:
    """The quantization config object of the library of `cls`; layers compute in `dtype`.

    `skip` are names of layers to leave, unless `settings` lists its own. The libraries match layers at the
    top of a network, and quanto all layers, by the last word of the name: equal names inside blocks are skipped too.
    Raises ConfigError for unknown settings, and MissingPackage.
    """
    import diffusers
    import transformers

    # diffusers warns at every use that a future release drops quanto
    warnings.filterwarnings("ignore", message=".*Quanto.* is deprecated", category=FutureWarning)
    library = transformers if issubclass(cls, transformers.PreTrainedModel) else diffusers
    row = next((row for row in CLASSES if row[0] in settings), None)
    if row is None:
        keys = ", ".join(dict.fromkeys(key for key, _, _ in CLASSES))
        raise ConfigError(
            OPTION, dict(settings), "", "Its keys do not tell which library quantizes.", f"Give one of: {keys}."
        )
    key, name, package = row
    module = import_optional(package, "quant", f"{OPTION} with {key}")
    arguments = dict(settings)
    if name == "TorchAoConfig":
        arguments[key] = _build_torchao_config(module, arguments[key])
    if skip:
        names = sorted({layer.rpartition(".")[2] for layer in skip}) if name == "QuantoConfig" else list(skip)
        arguments.setdefault(LEFT_OUT.get(name, "modules_to_not_convert"), names)
    if name == "BitsAndBytesConfig":
        arguments.setdefault("bnb_4bit_compute_dtype", dtype)
    if name == "QuantoConfig" and library is transformers:
        arguments["weights"] = arguments.pop(key)
    config_class = getattr(library, name)
    unknown = arguments.keys() - inspect.signature(config_class.__init__).parameters.keys()
    try:
        if unknown:
            raise ValueError(f"{name} has no {' and no '.join(sorted(unknown))}")
        return config_class(**arguments)
    except (TypeError, ValueError) as cause:
        problem = f"{library.__name__} does not take it: {str(cause).splitlines()[0].rstrip('.')}."
        raise ConfigError(OPTION, dict(settings), "", problem, f"Give what its {name} takes.") from cause


def _build_torchao_config(module: ModuleType, value: Any) -> Any:
    """A torchao config from the name of its class, or from arguments. Raises ConfigError."""
    name, arguments = (value, {}) if isinstance(value, str) else (BY_ARGUMENTS, value)
    cls = getattr(module, str(name), None)
    try:
        if cls is None:
            raise TypeError(f"torchao.quantization has no {name}")
        return cls(**arguments)
    except (TypeError, ValueError, AssertionError) as cause:
        change = "Name one of its classes, such as Int8WeightOnlyConfig, or give the arguments of Int4WeightOnlyConfig."
        raise ConfigError(OPTION, {"quant_type": value}, "", f"{cause}.", change) from cause


def _try_torchao(settings: Mapping[str, object], config: Config, device: torch.device, trains: bool) -> None:
    """Raises ConfigError if torchao cannot quantize a layer on the device, or if gradients do not pass through it."""
    layer = nn.Sequential(nn.Linear(PROBE, PROBE, dtype=torch.bfloat16, device=device)).requires_grad_(False)
    x = torch.zeros(PROBE, PROBE, dtype=torch.bfloat16, device=device, requires_grad=True)
    change = "Take another of its classes, such as Int8WeightOnlyConfig."
    try:
        import_optional("torchao.quantization", "quant", OPTION).quantize_(layer, config)
        passes = layer(x).requires_grad
    except (AssertionError, AttributeError, ImportError, RuntimeError, TypeError, ValueError) as cause:
        problem = f"torchao cannot do it here: {str(cause).splitlines()[0].rstrip('.')}."
        raise ConfigError(OPTION, dict(settings), "", problem, change) from cause
    if trains and not passes:
        problem = "No gradient passes through such layers, so the layers before them would not train."
        raise ConfigError(OPTION, dict(settings), "", problem, change)


def _config_error(name: str, value: object, problem: str, expected: str) -> ConfigError:
    return ConfigError(OPTION, {name: value}, "", f"{problem}.", f"Give {expected}.")
