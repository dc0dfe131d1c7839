"""Tiny random models: complete diffusers folders of a family's own classes, made once from a fixed seed.

components  their text encoders and autoencoders; tokenizers: their tokenizers
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.core.files import digest
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.families.shared.spec import ComponentSpec
from darkroom.families.tiny.tokenizers import TOKENIZERS

if TYPE_CHECKING:
    from torch.nn import Module

    from darkroom.families.base import Family
    from darkroom.families.shared.types import Settings

SEED = 20260101


def build_component(component: ComponentSpec, tokenizer: Any = None) -> Any:
    """A model from its config; one of diffusers, or a processor, from arguments, to which may belong a tokenizer."""
    cls = find_class(component.cls)
    if not hasattr(cls, "config_class"):
        takes = inspect.signature(cls.__init__).parameters
        arguments = {"tokenizer": tokenizer} if "tokenizer" in takes else {}
        built = cls(
            **{k: build_component(v) if isinstance(v, ComponentSpec) else v for k, v in component.config.items()},
            **arguments,
        )
        return built.eval() if hasattr(built, "eval") else built
    model = cls(cls.config_class(**component.config)).eval()
    if "empty_init" in inspect.signature(cls).parameters:
        _fill(model)
    return model


def _fill(model: Module) -> None:
    """Weights for a model that leaves its own as the memory was: small numbers, and ones for scales and biases."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2) if weight.ndim > 1 else torch.nn.init.ones_(weight)


def build(family: Family, denoiser: Settings | None = None, flavour: str = "tiny") -> Any:
    """A tiny pipeline with random weights from the fixed seed; `denoiser` overrides its arguments."""
    import torch

    family = type(family)(flavour)
    spec = family.spec.components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        components: dict[str, Any] = {**spec.settings, **family.default_components("render")}
        for name, builder in spec.tokenizers.items():
            components[name] = TOKENIZERS[builder]()
        for name, component in {**spec.encoders, **spec.extras}.items():
            components[name] = build_component(component, components.get("tokenizer"))
        if spec.vae:
            components["vae"] = find_class(spec.vae.cls)(**spec.vae.config).eval()
        for module in components["vae"].modules() if spec.vae else ():
            if isinstance(module, torch.nn.BatchNorm2d):
                # a fresh one knows mean 0 and spread 1, which hide whether anybody asks it
                mean, spread = module.running_mean, module.running_var
                assert mean is not None
                assert spread is not None
                mean.normal_(std=0.5)
                spread.uniform_(0.5, 2)
        for network in (component for component in components.values() if isinstance(component, torch.nn.Module)):
            for name in ("latents_mean", "latents_std"):
                # the same for statistics that are kept as buffers
                if name in dict(network.named_buffers()):
                    getattr(network, name).uniform_(0.5, 2)
        for name in family.spec.denoisers:
            components[name] = find_class(spec.denoiser.cls)(**{**spec.denoiser.config, **(denoiser or {})}).eval()
        for name in family.guidance_denoisers:
            components[name] = find_class(spec.denoiser.cls)(**spec.denoiser.config).eval()
        components["scheduler"] = find_class(spec.scheduler.cls)(**spec.scheduler.config)
        pipe = find_class(family.spec.pipeline)(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def folder(family: Family, root: Path, flavour: str = "tiny") -> Path:
    """The folder of a tiny model below `root`, made on first use; its name holds a hash of the recipe."""
    spec = resolve_flavour(family, flavour)
    recipe = digest([SEED, dataclasses.asdict(spec.components), spec.pipeline, spec.denoisers])[:12]
    target = Path(root) / f"{family.name}-{recipe}"
    if not target.exists():
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        build(family, flavour=flavour).save_pretrained(temporary)
        try:
            os.replace(temporary, target)
        except OSError:
            # another process was faster; the bytes are the same
            shutil.rmtree(temporary, ignore_errors=True)
    return target
