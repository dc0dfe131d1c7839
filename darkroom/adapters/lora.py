"""Low-rank adapters through peft. LoRA 2106.09685, DoRA 2402.09353, PiSSA 2404.02948, OLoRA 2406.01775.

Files follow diffusers: `pytorch_lora_weights.safetensors` with keys `<component>.<module>.lora_A.weight` and the peft
settings as JSON in the metadata, so that diffusers' pipeline's `load_lora_weights` reads rank and alpha from the file.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from darkroom.adapters import fused
from darkroom.adapters.base import Adapter, save_safetensors
from darkroom.adapters.stock import SETTINGS, WEIGHTS, file_names, find_tuner_layers, key_prefix
from darkroom.adapters.targets import target_modules
from darkroom.core.errors import ConfigError

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

    from darkroom.options.config import Config

INIT: dict[str, Literal["gaussian", "olora", "pissa"] | bool] = {
    "default": True,
    "gaussian": "gaussian",
    "olora": "olora",
    "pissa": "pissa",
}
# these initializations also change the frozen weights, so the saved adapter must carry the difference
CHANGES_BASE = frozenset({"olora", "pissa"})
NAME = "default"
# what names of peft's own parameters have
MARK = ".lora_"


class Switchable(Protocol):
    """A module that acts only where it is enabled."""

    enabled: bool


class LoRA(Adapter):
    """A pair of small matrices beside each target; the model's own weights stay frozen."""

    adapter_type = "lora"
    result = WEIGHTS

    def __init__(
        self,
        model: nn.Module,
        options: Config,
        presets: Mapping[str, Sequence[str]],
        component: str,
        dtype: torch.dtype,
        seed: int,
    ):
        super().__init__(model, component)
        self.init = options.lora_init_type
        rank = options.lora_rank
        targets = target_modules(options, presets)
        self.config = LoraConfig(
            r=rank,
            lora_alpha=options.lora_alpha or rank,  # type: ignore[arg-type]  # peft scales by fractions too
            lora_dropout=options.lora_dropout,
            init_lora_weights=INIT[self.init],
            use_dora=options.use_dora,
            target_modules=targets,
        )
        model.requires_grad_(False)
        devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            self._inject(targets)
        # a copy, and before rounding: this is exactly what the frozen weights lost
        self._start = {k: t.clone() for k, t in self.state().items()} if self.init in CHANGES_BASE else {}
        for parameter in self.trainable_parameters.values():
            parameter.data = parameter.data.to(dtype)

    def _inject(self, targets: list[str] | str) -> None:
        try:
            with warnings.catch_warnings():
                # nothing is ever merged into torchao's weights
                warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass")
                for component, member in self.members.items():
                    config = fused.select_targets(self._config_of(component), member)
                    inject_adapter_in_model(config, member, adapter_name=NAME)
        except ValueError as cause:
            if "arget modules" not in str(cause) and "target_modules" not in str(cause):
                raise
            text = targets if isinstance(targets, str) else ", ".join(targets)
            raise ConfigError(
                "peft_lora_target_modules",
                text,
                "",
                "These targets match no layer that a LoRA can adapt.",
                "Give endings of layer names such as to_q, to_k, to_v, or 'all-linear'.",
            ) from cause

    def _config_of(self, component: str) -> LoraConfig:
        """The peft settings of one member: a text encoder has targets and layers of its own."""
        text = self.trainable_text.get(component)
        if text is None:
            return self.config
        return dataclasses.replace(
            self.config,
            target_modules=list(text.targets),
            layers_to_transform=list(text.layers),
            layers_pattern="layers",
        )

    @contextlib.contextmanager
    def disable(self) -> Iterator[None]:
        """The frozen model alone. PiSSA and OLoRA took a part of it into the adapter: there, the adapter's start."""
        layers = [] if self._start else find_tuner_layers(self.model)
        current = {name: p.detach().clone() for name, p in self.trainable_parameters.items()} if self._start else {}
        extra_modules: list[Switchable] = [cast("Switchable", module) for module in self.extra_modules.values()]
        try:
            if current:
                self.load({**current, **self._start})
            for layer in layers:
                layer.enable_adapters(False)
            for module in extra_modules:
                module.enabled = False
            yield
        finally:
            if current:
                self.load(current)
            for layer in layers:
                layer.enable_adapters(True)
            for module in extra_modules:
                module.enabled = True

    @contextlib.contextmanager
    def rescale(self, factor: float | None) -> Iterator[None]:
        """The scaling of every layer times `factor`, put back afterwards."""
        if factor in (None, 1.0):
            yield
            return
        layers: list[LoraLayer] = [
            cast("LoraLayer", m) for m in self.model.modules() if NAME in (getattr(m, "scaling", None) or {})
        ]
        before = [layer.scaling[NAME] for layer in layers]
        try:
            for layer, scale in zip(layers, before, strict=True):
                layer.scaling[NAME] = scale * factor
            yield
        finally:
            for layer, scale in zip(layers, before, strict=True):
                layer.scaling[NAME] = scale

    def layers(self) -> dict[str, Tensor]:
        """Adapter tensors by peft name, as other programs read them, behind the component's where there are several.

        See `relative_to_start` for PiSSA and OLoRA.
        """
        tensors = {
            self.name_prefix(component) + name: t.detach().cpu()
            for component, member in self.members.items()
            for name, t in get_peft_model_state_dict(member, _adapter_parameters(member), NAME).items()
        }
        return fused.split_fused(
            relative_to_start(tensors, self._peft_start()) if self._start else tensors, self._find_fused
        )

    @property
    def _find_fused(self) -> dict[str, list[str]]:
        """By name, the layers that answer for several, and which."""
        return {
            self.name_prefix(component) + fused_name: [self.name_prefix(component) + part for part in parts]
            for component, member in self.members.items()
            for fused_name, parts in fused.find_fused_layers(member).items()
        }

    def _peft_start(self) -> dict[str, Tensor]:
        return {_peft_name(name): t for name, t in self._start.items()}

    def export(self, folder: Path, metadata: dict[str, str]) -> None:
        """Write an adapter file for each denoiser, with the peft settings and `metadata` in its header."""
        tensors = self.layers()
        contents: dict[str, dict[str, Tensor]] = {}
        settings: dict[str, dict[str, object]] = {}
        for component, file in file_names(self.members).items():
            before, prefix = self.name_prefix(component), key_prefix(component)
            component_tensors = {
                prefix + name.removeprefix(before): t for name, t in tensors.items() if name.startswith(before)
            }
            contents.setdefault(file, {}).update(component_tensors)
            settings.setdefault(file, {}).update(self._settings(component, prefix))
        for file, component_tensors in contents.items():
            header = json.dumps(settings[file], indent=2, sort_keys=True, default=str)
            save_safetensors(folder / file, component_tensors, {**metadata, SETTINGS: header})

    @property
    def export_is_lossy(self) -> bool:
        return bool(self._start)

    def restore(self, folder: Path) -> None:
        files = file_names(self.members)
        self.start_from({component: load_file(folder / file) for component, file in files.items()})

    def _settings(self, component: str, prefix: str) -> dict[str, object]:
        settings = self._config_of(component).to_dict()
        if self._start:
            settings |= {"r": 2 * self.config.r, "lora_alpha": 2 * self.config.lora_alpha, "init_lora_weights": True}
        return {f"{prefix}{k}": sorted(v) if isinstance(v, set) else v for k, v in settings.items()}

    def merge_member(self, component: str) -> nn.Module:
        """A copy of a member with what was learned inside its own weights, and no adapter."""
        copied = copy.deepcopy(self.members[component])
        for name, module in list(copied.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge(adapter_names=[NAME])
                copied.set_submodule(name, module.get_base_layer())
        return copied

    @property
    def scale(self) -> float:
        """How much the product of a layer's matrices counts."""
        return self.config.lora_alpha / self.config.r

    def layer_names(self, component: str) -> set[str]:
        """What files may call a member's layers: by their own names, also those that are one product here."""
        member = self.members[component]
        parts = {part for names in fused.find_fused_layers(member).values() for part in names}
        return {name for name, _ in member.named_modules() if name} | parts

    def start_from(self, files: Mapping[str, Mapping[str, Tensor]]) -> int:
        """Begin with an existing adapter: by component, a file's tensors as this one saves them. Returns how many.

        Raises ValueError when ranks or targets differ.
        """
        tensors_by_name: dict[str, Tensor] = {}
        for component, tensors in files.items():
            prefix, before = key_prefix(component), self.name_prefix(component)
            component_tensors = {
                before + name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)
            }
            if not component_tensors:
                components = ", ".join(sorted({name.split(".")[0] for name in tensors})) or "nothing"
                raise ValueError(f"it holds nothing for '{prefix[:-1]}', only for {components}")
            tensors_by_name |= component_tensors
        tensors_by_name = fused.join_fused(tensors_by_name, self._find_fused)
        parameters = {_peft_name(name): p for name, p in self.adapter_parameters.items()}
        ranks = sorted(
            {tensor.shape[0] for name, tensor in tensors_by_name.items() if ".lora_A." in name} - {self.config.r}
        )
        if ranks:
            raise ValueError(f"it has rank {', '.join(map(str, ranks))}, and lora_rank is {self.config.r}")
        missing = parameters.keys() ^ tensors_by_name.keys()
        if missing:
            raise ValueError(f"{len(missing)} of {len(parameters)} tensors differ, for example {min(missing)}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.shape != tensors_by_name[name].shape:
                    raise ValueError(
                        f"{name} has shape {tuple(tensors_by_name[name].shape)}, not {tuple(parameter.shape)}"
                    )
                parameter.copy_(tensors_by_name[name])
        return len(parameters)

    def describe(self) -> dict[str, object]:
        modules = {name.rsplit(".lora_", 1)[0] for name in self.adapter_parameters}
        return {**super().describe(), "rank": self.config.r, "alpha": self.config.lora_alpha, "layers": len(modules)}


def _adapter_parameters(member: nn.Module) -> dict[str, nn.Parameter]:
    """What peft has put into a member. Some quantized weights cannot answer when asked for a state while offloaded."""
    return {name: p for name, p in member.named_parameters() if MARK in name}


def _peft_name(parameter: str) -> str:
    """A parameter's name as adapter files have it."""
    return parameter.replace(f".{NAME}", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def relative_to_start(current: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, Tensor]:
    """A plain LoRA of twice the rank that equals B A - B0 A0: B' = [B, B0], A' = [A; -A0].

    PiSSA and OLoRA move part of the weights into the adapter, so B A alone fits only the changed base.
    """
    joined = {}
    for name, tensor in current.items():
        if ".lora_A." in name:
            joined[name] = torch.cat([tensor, -start[name]], dim=0)
        elif ".lora_B." in name:
            joined[name] = torch.cat([tensor, start[name]], dim=1)
        else:
            joined[name] = tensor
    return joined
