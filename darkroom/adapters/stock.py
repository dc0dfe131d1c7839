"""Adapter files in a diffusers pipeline: read by its own loader, or through peft where diffusers has given it none.

Without a loader (PixArt, OmniGen, Stable Cascade, HunyuanVideo 1.5...) other programs need these few lines too; the
file is the same as everywhere: keys `<component>.<module>.lora_A.weight`, the peft settings as JSON in its header.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from peft.tuners.lora import LoraLayer
    from torch import nn

WEIGHTS = "pytorch_lora_weights.safetensors"
SETTINGS = "lora_adapter_metadata"
SECOND = "_2"
# components that files call by diffusers' usual name for a denoiser
KEY_ALIASES = {"dit": "transformer"}


def file_names(components: Iterable[str]) -> dict[str, str]:
    """The adapter file of each component: the usual one, but a second denoiser is named in a file of its own.

    >>> file_names(["transformer", "transformer_2"])["transformer_2"]
    'pytorch_lora_weights.transformer_2.safetensors'
    """
    first, *further = components
    names = {other: WEIGHTS if is_text_encoder(other) else WEIGHTS.replace(".", f".{other}.", 1) for other in further}
    return {first: WEIGHTS, **names}


def find_files(path: str, components: Iterable[str]) -> dict[str, str]:
    """Where an adapter's files are: `path` is a folder of them, the first of them, or a hub's name for that."""
    names = file_names(components)
    location = Path(path).expanduser()
    if location.is_dir():
        return {component: str(location / name) for component, name in names.items()}
    return {part: path if name == WEIGHTS else str(location.with_name(name)) for part, name in names.items()}


def key_prefix(component: str) -> str:
    """What the file's keys begin with. diffusers keeps those of a second denoiser as it keeps the first's.

    >>> key_prefix("transformer_2"), key_prefix("dit")
    ('transformer.', 'transformer.')
    """
    name = component if is_text_encoder(component) else component.removesuffix(SECOND)
    return KEY_ALIASES.get(name, name) + "."


def is_text_encoder(component: str) -> bool:
    """Is it a text encoder? Those are adapted by the file of the denoiser that they read for."""
    return component.startswith("text_encoder")


def has_loader(pipeline: object, component: str) -> bool:
    """Can the pipeline, or its class, read adapter files for a component itself?"""
    return component in getattr(pipeline, "_lora_loadable_modules", ())


def load(pipe: DiffusionPipeline, component: str, path: Path, name: str) -> None:
    """Put an adapter file on a denoiser of the pipeline, and on the text encoders that it has weights for, as `name`.

    Raises what the readers raise, also ValueError.
    """
    if has_loader(pipe, component):
        arguments = {f"load_into_{component}": True} if component.endswith(SECOND) else {}
        pipe.load_lora_weights(str(path), adapter_name=name, **arguments)
        return
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors import safe_open

    prefix = key_prefix(component)
    with safe_open(path, "pt") as file:
        settings = json.loads((file.metadata() or {}).get(SETTINGS, "{}"))
        tensors = {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
    if not tensors:
        return
    if not settings:
        raise ValueError("its header has no peft settings, so rank and scale are unknown")
    component_settings = {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
    model = getattr(pipe, component)
    inject_adapter_in_model(LoraConfig(**component_settings), model, adapter_name=name)
    set_peft_model_state_dict(model, tensors, adapter_name=name)


def restore_precision(pipe: DiffusionPipeline, component: str, path: Path, name: str, dtype: torch.dtype) -> None:
    """Give an adapter that is loaded as `name` the file's values as `dtype`. Loaders round them as its layers are."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(path)
    for part in (component, *filter(is_text_encoder, pipe.components)):
        model, prefix = getattr(pipe, part), key_prefix(part)
        if name not in getattr(model, "peft_config", {}):
            continue
        for parameter in (p for key, p in model.named_parameters() if f".{name}" in key):
            parameter.data = parameter.data.to(dtype)
        component_tensors = {
            key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)
        }
        set_peft_model_state_dict(model, component_tensors, adapter_name=name)


def set_strengths(pipe: DiffusionPipeline, components: Iterable[str], strengths: Mapping[str, float]) -> None:
    """Use these adapters together, each as strongly as it says."""
    with_loader = [component for component in components if has_loader(pipe, component)]
    if with_loader:
        pipe.set_adapters(list(strengths), list(strengths.values()))
    without_loader = [getattr(pipe, component) for component in components if component not in with_loader]
    for layer in (layer for model in without_loader for layer in find_tuner_layers(model)):
        present = [name for name in strengths if name in layer.lora_A]
        layer.set_adapter(present)
        for name in present:
            layer.set_scale(name, strengths[name])


def find_tuner_layers(model: nn.Module) -> list[LoraLayer]:
    """The layers that peft has put beside the model's own."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [cast("LoraLayer", module) for module in model.modules() if isinstance(module, BaseTunerLayer)]
