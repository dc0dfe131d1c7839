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
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from darkroom.adapters.stock import SETTINGS, WEIGHTS, has_loader, is_text, key_prefix

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
OTHER_KINDS = {"lokr_": "LoKr", "hada_": "LoHa", "dora_scale": "DoRA of kohya's scripts", "oft_": "OFT"}


@dataclasses.dataclass(frozen=True)
class LoraFile:
    """An adapter file as it is: tensors by name, and the peft settings that belong to it."""

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a layer: scale * up (out, rank) @ down (rank, in), and a DoRA's magnitudes (out,)."""

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None


def read(path: str) -> LoraFile:
    """A file on this machine or on a hub (`owner/name`, or `owner/name/folder/file.safetensors`).

    Raises OSError or SafetensorError where it cannot be read, ValueError for other kinds and numbers that are none.
    """
    file = _located(path)
    if file.suffix != ".safetensors":
        raise ValueError(f"{file.name} is no safetensors file")
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        header = opened.metadata() or {}
    for name, tensor in tensors.items():
        if kind := next((kind for mark, kind in OTHER_KINDS.items() if mark in name), ""):
            raise ValueError(f"it is no LoRA but a {kind}, for example in {name}")
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity")
    return LoraFile(tensors, _settings(header, file))


def _located(path: str) -> Path:
    """Where a file is on this machine, after a download if it has to be."""
    place = Path(path).expanduser()
    if place.is_dir():
        names = [name for name in (WEIGHTS, PEFT_WEIGHTS) if (place / name).exists()]
        return place / (names or [WEIGHTS])[0]
    owner, _, rest = path.partition("/")
    name, _, file = rest.partition("/")
    is_path = place.is_absolute() or path.startswith((".", "~")) or not name or (place.suffix and not file)
    if place.exists() or is_path:
        if not place.exists():
            raise FileNotFoundError(f"there is no such file or folder (seen from {Path.cwd()})")
        return place
    return _downloaded(f"{owner}/{name}", file or WEIGHTS)


def _downloaded(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, file))


def _settings(header: Mapping[str, str], file: Path) -> Mapping[str, Any]:
    beside = file.with_name(PEFT_SETTINGS)
    try:
        if SETTINGS in header:
            found = json.loads(header[SETTINGS])
        else:
            found = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    except ValueError as cause:
        where = f"the header's {SETTINGS}" if SETTINGS in header else beside.name
        raise ValueError(f"{where} is no JSON: {cause}") from cause
    if not isinstance(found, dict):
        raise ValueError(f"its peft settings are {found!r}, not an object")
    return found


def low_rank(file: LoraFile, component: str, layers: Collection[str], pipeline: Any = None) -> dict[str, LowRank]:
    """What a file has for a component, by the names of its `layers`; `pipeline`, a class, may know other names.

    Raises ValueError for a file of another model, and what diffusers' readers raise.
    """
    known = _Names(component, layers)
    found, strange = _paired(file, known)
    if strange and pipeline is not None and has_loader(pipeline, component):
        converted = pipeline.lora_state_dict(_counting_fully(file, component))
        converted = converted[0] if isinstance(converted, tuple) else converted
        if not isinstance(converted, dict):
            raise ValueError("diffusers reads nothing out of it")
        found, strange = _paired(LoraFile(converted, {}), known)
    if strange and (found or any(name.startswith(key_prefix(component)) for name in strange)):
        few = ", ".join(sorted(strange)[:3])
        raise ValueError(f"{len(strange)} of its layers are none of this model's, for example {few}")
    if not found and not is_text(component):
        held = ", ".join(sorted({name.split(".")[0] for name in file.tensors})) or "nothing"
        raise ValueError(f"it holds nothing for '{key_prefix(component)[:-1]}', only for {held}")
    return found


class _Names:
    """The layers of a component under the names that files have for them."""

    def __init__(self, component: str, layers: Collection[str]):
        self.component = component
        self.layers = {name: name for name in layers}
        self.layers |= {name.replace(".", "_"): name for name in layers}
        if is_text(component):
            self.layers |= {_other_level(name): name for name in layers}
            self.layers |= {_other_level(name).replace(".", "_"): name for name in layers}
        own = key_prefix(component)
        self.beginnings = (own, *(OF_TEXT.get(component, ()) if is_text(component) else ANY_DENOISER))

    def find(self, name: str) -> str | None:
        """The layer that a file's name means."""
        for beginning in self.beginnings:
            if name.startswith(beginning) and (layer := self.layers.get(name.removeprefix(beginning))):
                return layer
        return None

    def is_another_components(self, name: str) -> bool:
        """Does the name say that it is of another part of the pipeline?"""
        texts = ("text_encoder", "lora_te")
        return not name.startswith(texts) if is_text(self.component) else name.startswith(texts)


def _other_level(name: str) -> str:
    return name.removeprefix(OLD_LEVEL) if name.startswith(OLD_LEVEL) else OLD_LEVEL + name


def _paired(file: LoraFile, names: _Names) -> tuple[dict[str, LowRank], set[str]]:
    """The pairs of known layers, and the names that mean no layer of the component."""
    found: dict[str, LowRank] = {}
    strange: set[str] = set()
    for name, own in _by_layer(file.tensors).items():
        layer = names.find(name)
        if layer is None:
            strange |= set() if names.is_another_components(name) else {name}
        elif not {DOWN, UP} <= own.keys():
            raise ValueError(f"{name} has no pair of matrices")
        else:
            scale = _scale(file.settings, names.component, layer, own)
            found[layer] = LowRank(own[DOWN], own[UP], scale, own.get(MAGNITUDE))
    return found, strange


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the name of their layer, whatever that means, and their kind. What is none has an empty kind."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        ending = next((end for end in ENDINGS if name.endswith(end)), "")
        found.setdefault(name.removesuffix(ending), {})[ENDINGS.get(ending, "")] = tensor
    return found


def _scale(settings: Mapping[str, Any], component: str, layer: str, own: Mapping[str, Tensor]) -> float:
    """How much a layer's product counts."""
    rank = own[DOWN].shape[0]
    if ALPHA in own:
        return float(own[ALPHA]) / rank
    prefix = key_prefix(component)
    of_component = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    chosen = of_component or {key: value for key, value in settings.items() if "." not in key}
    patterns = chosen.get("alpha_pattern") or {}
    alphas = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
    alpha = next(alphas, chosen.get("lora_alpha", rank))
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ValueError(f"its settings say lora_alpha {alpha!r}")
    return alpha / math.sqrt(rank) if chosen.get("use_rslora") else alpha / rank


def _counting_fully(file: LoraFile, component: str) -> dict[str, Tensor]:
    """A file's tensors with each scale multiplied in, so that a reader finds nothing more to count.

    Where `.alpha` tensors were they say so: some of diffusers' readers expect them.
    """
    tensors = dict(file.tensors)
    for name, own in _by_layer(file.tensors).items():
        if not {DOWN, UP} <= own.keys():
            continue
        scale, rank = _scale(file.settings, component, name, own), own[DOWN].shape[0]
        up = next(name + end for end, kind in ENDINGS.items() if kind == UP and name + end in tensors)
        tensors[up] = tensors[up] if scale == 1 else (tensors[up].float() * scale).to(tensors[up].dtype)
        if ALPHA in own and up.endswith(".lora_up.weight"):
            tensors[f"{name}.alpha"] = torch.tensor(float(rank))
        else:
            tensors.pop(f"{name}.alpha", None)
    return tensors


def as_saved(found: Mapping[str, LowRank], component: str, scale: float) -> dict[str, Tensor]:
    """The same as the tensors of an adapter that counts its products `scale` times, under the names of its files."""
    prefix = key_prefix(component)
    tensors = {}
    for layer, pair in found.items():
        own = pair.scale / scale
        tensors[f"{prefix}{layer}.lora_A.weight"] = pair.down
        tensors[f"{prefix}{layer}.lora_B.weight"] = pair.up if own == 1 else pair.up.float() * own
        if pair.magnitude is not None:
            tensors[f"{prefix}{layer}.lora_magnitude_vector"] = pair.magnitude
    return tensors
