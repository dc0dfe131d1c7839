"""Classes that family files name as text, so that listing families imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from darkroom.core.registry import import_path

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch.nn import Module


def find_class(name: str) -> Any:
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

    return issubclass(find_class(name), torch.nn.Module)


def rebuild_pipeline(pipe: DiffusionPipeline, name: str) -> DiffusionPipeline:
    """Another pipeline class with the components and config values of `pipe` that its constructor takes."""
    import inspect

    cls = find_class(name)
    available = {**pipe.config, **pipe.components}
    rebuilt = cls(**{part: available[part] for part in inspect.signature(cls.__init__).parameters if part in available})
    rebuilt.set_progress_bar_config(disable=True)
    return rebuilt


def unwrap(model: Module) -> Any:
    """The denoiser itself, also behind DistributedDataParallel or a compiled wrapper."""
    for attribute in ("module", "_orig_mod"):
        while hasattr(model, attribute):
            model = getattr(model, attribute)
    return model


def short_class_name(name: str) -> str:
    """The name of a class in a model's index.

    >>> short_class_name("package.module:Denoiser")
    'Denoiser'
    """
    return name.rpartition(":")[2]
