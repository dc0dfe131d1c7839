"""The shape every adapter kind shares."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from darkroom.core.files import write_atomically

# what a module says that keeps its trained parameters in a file beside the adapter: the file, and a header for it
KEPT_IN, ABOUT = "kept_in", "header"


class Adapter:
    """Trainable parameters of a model, and their files.

    `model` is what the adapter is put on, `members` what of it is trained, by component of the pipeline.
    `named` gives the trained parameters in a fixed order. `state` is what a checkpoint needs to go on, `export` writes
    what people load elsewhere. `result` is the name of the latter: a file for adapters, a folder for whole models.
    """

    kind: ClassVar[str]
    result: ClassVar[str]

    def __init__(self, model: nn.Module, component: str):
        self.model = model
        # a model that is more than the denoiser says itself what of it is trained
        self.is_wrapped = hasattr(model, "members")
        self.members: dict[str, nn.Module] = getattr(model, "members", {component: model})
        # of the text encoders among them, by component: a LoRA's targets, and the layers that are trained
        self.trainable_text: Mapping[str, Any] = getattr(model, "trainable_text", {})

    def is_text(self, name: str) -> bool:
        """Is this parameter one of a text encoder's?"""
        return any(name.startswith(self.before(component)) for component in self.trainable_text)

    def before(self, component: str) -> str:
        """What the model's own names of a member's parameters begin with."""
        return f"{component}." if self.is_wrapped else ""

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name, in the model's order."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def own(self) -> dict[str, nn.Parameter]:
        """Those of them that `export` writes."""
        apart = {id(p) for module in self.apart.values() for p in module.parameters()}
        return {name: p for name, p in self.named.items() if id(p) not in apart}

    def state(self) -> dict[str, Tensor]:
        """Trainable tensors, detached, on the CPU."""
        return {name: p.detach().cpu().contiguous() for name, p in self.named.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put a `state` back, bit for bit. Raises ValueError if names or shapes differ."""
        mine = self.named
        if mine.keys() != state.keys():
            odd = sorted(mine.keys() ^ state.keys())
            raise ValueError(f"{len(odd)} tensors differ, for example {', '.join(odd[:3])}")
        with torch.no_grad():
            for name, parameter in mine.items():
                if parameter.shape != state[name].shape:
                    raise ValueError(f"{name} has shape {tuple(state[name].shape)}, not {tuple(parameter.shape)}")
                parameter.copy_(state[name])

    def export(self, folder: Path, metadata: dict[str, str]) -> None:
        """Write the files that other programs load into `folder`."""
        raise TypeError(f"{type(self).__name__} must define export")

    def save(self, folder: Path, metadata: dict[str, str]) -> None:
        """`export`, and beside it what no other program knows of: modules that name a file of their own."""
        self.export(folder, metadata)
        self.save_apart(folder)

    def save_apart(self, folder: Path) -> None:
        """The files of such modules."""
        files: dict[str, dict[str, Tensor]] = {}
        headers: dict[str, dict[str, str]] = {}
        for name, module in self.apart.items():
            file = getattr(module, KEPT_IN)
            own = {f"{name}.{key}": p.detach().cpu() for key, p in module.named_parameters()}
            files.setdefault(file, {}).update(own)
            headers.setdefault(file, getattr(module, ABOUT))
        for file, tensors in files.items():
            save_safetensors(folder / file, tensors, headers[file])

    def read(self, folder: Path) -> None:
        """Go on from what `save` wrote. Raises ValueError, KeyError or OSError if it does not fit."""
        self.restore(folder)
        self.read_apart(folder)

    def read_apart(self, folder: Path) -> None:
        """The way back of `save_apart`. Raises KeyError or OSError if a file does not fit."""
        for name, module in self.apart.items():
            with safe_open(folder / getattr(module, KEPT_IN), "pt") as file, torch.no_grad():
                for key, parameter in module.named_parameters():
                    parameter.copy_(file.get_tensor(f"{name}.{key}"))

    @property
    def apart(self) -> dict[str, nn.Module]:
        """Modules with a file of their own, by component and name."""
        return {
            f"{component}.{name}": module
            for component, member in self.members.items()
            for name, module in member.named_modules()
            if hasattr(module, KEPT_IN)
        }

    def whole(self, component: str) -> Any:
        """A member as a model of its own, with what was learnt inside its weights."""
        return self.members[component]

    @property
    def export_is_lossy(self) -> bool:
        """Do exported files differ from the trained tensors, so that a checkpoint needs both?"""
        return False

    def restore(self, folder: Path) -> None:
        """Go on from exported files. Raises ValueError if they do not fit."""
        raise TypeError(f"{type(self).__name__} must define restore")

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model behaves as if it had never been trained. Raises TypeError for kinds that cannot."""
        raise TypeError(f"a {self.kind} run has no untouched model beside it")
        yield

    @contextlib.contextmanager
    def scaled(self, factor: float | None) -> Iterator[None]:
        """Inside, the adapter counts `factor` times as much, also backwards. Raises TypeError for kinds that cannot."""
        if factor not in (None, 1.0):
            raise TypeError(f"a {self.kind} run has no strength that could be changed")
        yield

    def describe(self) -> dict[str, Any]:
        """What the run's summary says of the adapter."""
        return {"kind": self.kind, "parameters": sum(p.numel() for p in self.named.values())}


def save_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and text metadata atomically. Equal contents give equal bytes."""
    from safetensors.torch import save_file

    with write_atomically(path) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, {"format": "pt", **metadata})
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """The library writes metadata in the random order of a hash table; put it in the order of its names."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))
