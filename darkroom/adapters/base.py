"""The shape every adapter kind shares."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from darkroom.core.files import atomic


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

    def before(self, component: str) -> str:
        """What the model's own names of a member's parameters begin with."""
        return f"{component}." if self.is_wrapped else ""

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name, in the model's order."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

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

    with atomic(path) as temporary:
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
