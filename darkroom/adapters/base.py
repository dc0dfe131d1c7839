"""The base class of adapters."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from darkroom.core.files import write_atomically

# attributes of a module whose trained parameters have a file of their own: its name, and its header
FILE_ATTRIBUTE, HEADER_ATTRIBUTE = "file_name", "header"


class TrainableLayers(Protocol):
    """Which layers of a text encoder are trained."""

    @property
    def targets(self) -> Sequence[str]: ...

    @property
    def layers(self) -> Sequence[int]: ...


class Adapter:
    """Trainable parameters of a model, and their files.

    `model` is the model with the adapter, `members` its trained modules, by component of the pipeline.
    `trainable_parameters` have a fixed order. `state` is what a checkpoint stores, `export` writes what other programs
    load. `result` is the name of the export: a file for adapters, a folder for whole models.
    """

    adapter_type: ClassVar[str]
    result: ClassVar[str]

    def __init__(self, model: nn.Module, component: str):
        self.model = model
        # a wrapper lists its trained modules itself
        self.is_wrapped = hasattr(model, "members")
        self.members: dict[str, nn.Module] = getattr(model, "members", {component: model})
        # of the text encoders among them, by component: a LoRA's targets, and the layers that are trained
        self.trainable_text: Mapping[str, TrainableLayers] = getattr(model, "trainable_text", {})

    def is_text(self, name: str) -> bool:
        """Is this parameter one of a text encoder's?"""
        return any(name.startswith(self.name_prefix(component)) for component in self.trainable_text)

    def name_prefix(self, component: str) -> str:
        """The prefix of a member's parameter names in the model."""
        return f"{component}." if self.is_wrapped else ""

    @property
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name, in the model's order."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters that `export` writes."""
        extra = {id(p) for module in self.extra_modules.values() for p in module.parameters()}
        return {name: p for name, p in self.trainable_parameters.items() if id(p) not in extra}

    def state(self) -> dict[str, Tensor]:
        """Trainable tensors, detached, on the CPU."""
        return {name: p.detach().cpu().contiguous() for name, p in self.trainable_parameters.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore a `state` exactly. Raises ValueError if names or shapes differ."""
        parameters = self.trainable_parameters
        if parameters.keys() != state.keys():
            differing = sorted(parameters.keys() ^ state.keys())
            raise ValueError(f"{len(differing)} tensors differ, for example {', '.join(differing[:3])}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.shape != state[name].shape:
                    raise ValueError(f"{name} has shape {tuple(state[name].shape)}, not {tuple(parameter.shape)}")
                parameter.copy_(state[name])

    def export(self, folder: Path, metadata: dict[str, str]) -> None:
        """Write the files that other programs load into `folder`."""
        raise TypeError(f"{type(self).__name__} must define export")

    def save(self, folder: Path, metadata: dict[str, str]) -> None:
        """`export`, and the extra modules, which other programs do not load."""
        self.export(folder, metadata)
        self.save_extra_modules(folder)

    def save_extra_modules(self, folder: Path) -> None:
        """Write the files of the extra modules."""
        files: dict[str, dict[str, Tensor]] = {}
        headers: dict[str, dict[str, str]] = {}
        for name, module in self.extra_modules.items():
            file = getattr(module, FILE_ATTRIBUTE)
            tensors_of_module = {f"{name}.{key}": p.detach().cpu() for key, p in module.named_parameters()}
            files.setdefault(file, {}).update(tensors_of_module)
            headers.setdefault(file, getattr(module, HEADER_ATTRIBUTE))
        for file, tensors in files.items():
            save_safetensors(folder / file, tensors, headers[file])

    def read(self, folder: Path) -> None:
        """Load what `save` wrote. Raises ValueError, KeyError or OSError if it does not fit."""
        self.restore(folder)
        self.load_extra_modules(folder)

    def load_extra_modules(self, folder: Path) -> None:
        """Load the files of the extra modules. Raises KeyError or OSError if a file does not fit."""
        for name, module in self.extra_modules.items():
            with safe_open(folder / getattr(module, FILE_ATTRIBUTE), "pt") as file, torch.no_grad():
                for key, parameter in module.named_parameters():
                    parameter.copy_(file.get_tensor(f"{name}.{key}"))

    @property
    def extra_modules(self) -> dict[str, nn.Module]:
        """Trained modules with a file of their own, by component and name."""
        return {
            f"{component}.{name}": module
            for component, member in self.members.items()
            for name, module in member.named_modules()
            if hasattr(module, FILE_ATTRIBUTE)
        }

    def merge_member(self, component: str) -> nn.Module:
        """A member with the trained adapter merged into its weights."""
        return self.members[component]

    @property
    def export_is_lossy(self) -> bool:
        """Do exported files differ from the trained tensors, so that a checkpoint needs both?"""
        return False

    def restore(self, folder: Path) -> None:
        """Load exported files. Raises ValueError if they do not fit."""
        raise TypeError(f"{type(self).__name__} must define restore")

    @contextlib.contextmanager
    def disable(self) -> Iterator[None]:
        """Context in which the model is untrained. Raises TypeError if the adapter type does not support it."""
        raise TypeError(f"a {self.adapter_type} run has no untouched model beside it")
        yield

    @contextlib.contextmanager
    def rescale(self, factor: float | None) -> Iterator[None]:
        """Context in which the adapter is scaled by `factor`, also in backward. Raises TypeError if not supported."""
        if factor not in (None, 1.0):
            raise TypeError(f"a {self.adapter_type} run has no strength that could be changed")
        yield

    def describe(self) -> dict[str, object]:
        """The adapter in the run's summary."""
        return {"kind": self.adapter_type, "parameters": sum(p.numel() for p in self.trainable_parameters.values())}


def save_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and text metadata atomically. Equal contents give equal bytes."""
    from safetensors.torch import save_file

    with write_atomically(path) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, {"format": "pt", **metadata})
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort metadata by name: safetensors writes it in the random order of a hash table."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))
