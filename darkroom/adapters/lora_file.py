"""LoRA files of Darkroom, diffusers, peft and kohya's scripts, read as pairs of matrices by the model's own layers.

A file says how much its matrices count in one of three ways, and here each counts once: an `.alpha` tensor beside
them, else the peft settings in its header (diffusers) or in `adapter_config.json` beside it (peft), else fully. What
kohya's scripts write into `ss_network_alpha` is a note of theirs: where their `.alpha` tensors are missing, it was
multiplied in.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import safe_open
from torch import Tensor

from darkroom.adapters.stock import SETTINGS, WEIGHTS, has_loader, is_text_encoder, key_prefix

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


PEFT_WEIGHTS, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
DOWN, UP, ALPHA, MAGNITUDE = "down", "up", "alpha", "magnitude"
# what the names of a layer's tensors end in
ENDINGS: Mapping[str, str] = {
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".lora_magnitude_vector": MAGNITUDE,
    ".lora_magnitude_vector.weight": MAGNITUDE,
    ".lora_magnitude_vector.default.weight": MAGNITUDE,
    ".alpha": ALPHA,
}
# what they begin with, beside diffusers' name of the component
ANY_DENOISER = ("diffusion_model.", "base_model.model.", "lora_unet_", "lora_transformer_", "")
OF_TEXT: Mapping[str, tuple[str, ...]] = {
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
    "text_encoder_3": ("lora_te3_",),
}
# a level that CLIP's text encoders had until transformers 5
OLD_LEVEL = "text_model."
# tensors that mark adapters of another kind
OTHER_ADAPTERS = {"lokr_": "LoKr", "hada_": "LoHa", "dora_scale": "DoRA of kohya's scripts", "oft_": "OFT"}


@dataclasses.dataclass(frozen=True)
class LoraFile:
    """An adapter file as it is: tensors by name, and the peft settings that belong to it."""

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class LoraPair:
    """What an adapter adds to a layer: scale * up (out, rank) @ down (rank, in), and a DoRA's magnitudes (out,)."""

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None


def read(path: str) -> LoraFile:
    """A file on this machine or on a hub (`owner/name`, or `owner/name/folder/file.safetensors`).

    Raises OSError or SafetensorError where it cannot be read, ValueError for other kinds and numbers that are none.
    """
    file = _locate(path)
    if file.suffix != ".safetensors":
        raise ValueError(f"{file.name} is no safetensors file")
    with safe_open(file, "pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        header = content.metadata() or {}
    for name, tensor in tensors.items():
        if adapter_type := next((adapter_type for mark, adapter_type in OTHER_ADAPTERS.items() if mark in name), ""):
            raise ValueError(f"it is no LoRA but a {adapter_type}, for example in {name}")
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity")
    return LoraFile(tensors, _settings(header, file))


def _locate(path: str) -> Path:
    """Where a file is on this machine, after a download if it has to be."""
    path_or_folder = Path(path).expanduser()
    if path_or_folder.is_dir():
        names = [name for name in (WEIGHTS, PEFT_WEIGHTS) if (path_or_folder / name).exists()]
        return path_or_folder / (names or [WEIGHTS])[0]
    owner, _, subpath = path.partition("/")
    name, _, file = subpath.partition("/")
    is_path = (
        path_or_folder.is_absolute() or path.startswith((".", "~")) or not name or (path_or_folder.suffix and not file)
    )
    if path_or_folder.exists() or is_path:
        if not path_or_folder.exists():
            raise FileNotFoundError(f"there is no such file or folder (seen from {Path.cwd()})")
        return path_or_folder
    return _download(f"{owner}/{name}", file or WEIGHTS)


def _download(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, file))


def _settings(header: Mapping[str, str], file: Path) -> Mapping[str, object]:
    sidecar = file.with_name(PEFT_SETTINGS)
    try:
        if SETTINGS in header:
            settings = json.loads(header[SETTINGS])
        else:
            settings = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.exists() else {}
    except ValueError as cause:
        origin = f"the header's {SETTINGS}" if SETTINGS in header else sidecar.name
        raise ValueError(f"{origin} is no JSON: {cause}") from cause
    if not isinstance(settings, dict):
        raise ValueError(f"its peft settings are {settings!r}, not an object")
    return settings


def find_pairs(
    file: LoraFile, component: str, layers: Collection[str], pipeline: type[DiffusionPipeline] | None = None
) -> dict[str, LoraPair]:
    """What a file has for a component, by the names of its `layers`; `pipeline`, a class, may know other names.

    Raises ValueError for a file of another model, and what diffusers' readers raise.
    """
    names = _LayerNames(component, layers)
    pairs, strange = _pair_matrices(file, names)
    if strange and pipeline is not None and has_loader(pipeline, component):
        converted = pipeline.lora_state_dict(_multiply_scales(file, component))
        converted = converted[0] if isinstance(converted, tuple) else converted
        if not isinstance(converted, dict):
            raise ValueError("diffusers reads nothing out of it")
        pairs, strange = _pair_matrices(LoraFile(converted, {}), names)
    if strange and (pairs or any(name.startswith(key_prefix(component)) for name in strange)):
        examples = ", ".join(sorted(strange)[:3])
        raise ValueError(f"{len(strange)} of its layers are none of this model's, for example {examples}")
    if not pairs and not is_text_encoder(component):
        components = ", ".join(sorted({name.split(".")[0] for name in file.tensors})) or "nothing"
        raise ValueError(f"it holds nothing for '{key_prefix(component)[:-1]}', only for {components}")
    return pairs


class _LayerNames:
    """The layers of a component under the names that files have for them."""

    def __init__(self, component: str, layers: Collection[str]):
        self.component = component
        self.layers = {name: name for name in layers}
        self.layers |= {name.replace(".", "_"): name for name in layers}
        if is_text_encoder(component):
            self.layers |= {_other_level(name): name for name in layers}
            self.layers |= {_other_level(name).replace(".", "_"): name for name in layers}
        prefix = key_prefix(component)
        self.beginnings = (prefix, *(OF_TEXT.get(component, ()) if is_text_encoder(component) else ANY_DENOISER))

    def find(self, name: str) -> str | None:
        """The layer that a file's name means."""
        for beginning in self.beginnings:
            if name.startswith(beginning) and (layer := self.layers.get(name.removeprefix(beginning))):
                return layer
        return None

    def is_another_components(self, name: str) -> bool:
        """Does the name say that it is of another part of the pipeline?"""
        texts = ("text_encoder", "lora_te")
        return not name.startswith(texts) if is_text_encoder(self.component) else name.startswith(texts)


def _other_level(name: str) -> str:
    return name.removeprefix(OLD_LEVEL) if name.startswith(OLD_LEVEL) else OLD_LEVEL + name


def _pair_matrices(file: LoraFile, names: _LayerNames) -> tuple[dict[str, LoraPair], set[str]]:
    """The pairs of known layers, and the names that mean no layer of the component."""
    pairs: dict[str, LoraPair] = {}
    strange: set[str] = set()
    for name, layer_tensors in _group_by_layer(file.tensors).items():
        layer = names.find(name)
        if layer is None:
            strange |= set() if names.is_another_components(name) else {name}
        elif not {DOWN, UP} <= layer_tensors.keys():
            raise ValueError(f"{name} has no pair of matrices")
        else:
            scale = _scale(file.settings, names.component, layer, layer_tensors)
            pairs[layer] = LoraPair(layer_tensors[DOWN], layer_tensors[UP], scale, layer_tensors.get(MAGNITUDE))
    return pairs, strange


def _group_by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the name of their layer, whatever that means, and their kind. What is none has an empty kind."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        ending = next((end for end in ENDINGS if name.endswith(end)), "")
        layers.setdefault(name.removesuffix(ending), {})[ENDINGS.get(ending, "")] = tensor
    return layers


def _scale(settings: Mapping[str, object], component: str, layer: str, tensors: Mapping[str, Tensor]) -> float:
    """How much a layer's product counts."""
    rank = tensors[DOWN].shape[0]
    if ALPHA in tensors:
        return float(tensors[ALPHA]) / rank
    prefix = key_prefix(component)
    of_component = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    component_settings = of_component or {key: value for key, value in settings.items() if "." not in key}
    patterns = cast("dict[str, float]", component_settings.get("alpha_pattern") or {})
    alphas = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
    alpha = next(alphas, component_settings.get("lora_alpha", rank))
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ValueError(f"its settings say lora_alpha {alpha!r}")
    return alpha / math.sqrt(rank) if component_settings.get("use_rslora") else alpha / rank


def _multiply_scales(file: LoraFile, component: str) -> dict[str, Tensor]:
    """A file's tensors with each scale multiplied in, so that a reader finds nothing more to count.

    Where `.alpha` tensors were they say so: some of diffusers' readers expect them.
    """
    tensors = dict(file.tensors)
    for name, layer_tensors in _group_by_layer(file.tensors).items():
        if not {DOWN, UP} <= layer_tensors.keys():
            continue
        scale, rank = _scale(file.settings, component, name, layer_tensors), layer_tensors[DOWN].shape[0]
        up = next(name + end for end, role in ENDINGS.items() if role == UP and name + end in tensors)
        tensors[up] = tensors[up] if scale == 1 else (tensors[up].float() * scale).to(tensors[up].dtype)
        if ALPHA in layer_tensors and up.endswith(".lora_up.weight"):
            tensors[f"{name}.alpha"] = torch.tensor(float(rank))
        else:
            tensors.pop(f"{name}.alpha", None)
    return tensors


def to_adapter_tensors(pairs: Mapping[str, LoraPair], component: str, scale: float) -> dict[str, Tensor]:
    """The same as the tensors of an adapter that counts its products `scale` times, under the names of its files."""
    prefix = key_prefix(component)
    tensors = {}
    for layer, pair in pairs.items():
        factor = pair.scale / scale
        tensors[f"{prefix}{layer}.lora_A.weight"] = pair.down
        tensors[f"{prefix}{layer}.lora_B.weight"] = pair.up if factor == 1 else pair.up.float() * factor
        if pair.magnitude is not None:
            tensors[f"{prefix}{layer}.lora_magnitude_vector"] = pair.magnitude
    return tensors
