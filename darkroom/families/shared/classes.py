"""Classes that family files name as text, so that listing families imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from darkroom.core.registry import import_path

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def named(name: str) -> Any:
    """The class called `name` in diffusers, else in `families.modules`, else in transformers.

    Elsewhere it is named as `package.module:Class`. Raises AttributeError, or ImportError for a path.
    """
    if ":" in name:
        return import_path(name)
    import diffusers
    import transformers

    from darkroom.families import modules

    return getattr(diffusers, name, None) or getattr(modules, name, None) or getattr(transformers, name)


def is_network(name: str) -> bool:
    """Is the class of this name a torch module, with weights?"""
    import torch

    return issubclass(named(name), torch.nn.Module)


def regrouped(pipe: DiffusionPipeline, name: str) -> Any:
    """The parts and settings of a pipeline in another stock pipeline, for what its constructor takes of them."""
    import inspect

    cls = named(name)
    held = {**pipe.config, **pipe.components}
    made = cls(**{part: held[part] for part in inspect.signature(cls.__init__).parameters if part in held})
    made.set_progress_bar_config(disable=True)
    return made


def bare(model: Any) -> Any:
    """The denoiser itself, also behind DistributedDataParallel or a compiled wrapper."""
    for attribute in ("module", "_orig_mod"):
        while hasattr(model, attribute):
            model = getattr(model, attribute)
    return model


def short(name: str) -> str:
    """The name that a model's index has for the class.

    >>> short("package.module:Denoiser")
    'Denoiser'
    """
    return name.rpartition(":")[2]
