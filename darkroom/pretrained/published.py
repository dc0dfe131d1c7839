"""Config folders without weights for published bases, so that `darkroom plan` works without files and without a hub.

Networks have the published sizes. Tokenizers, processors and the scheduler are those of the family's tiny model, so
token counts differ from the published ones. Networks whose sizes are unknown get no config.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.core.files import digest, write_text
from darkroom.families.base import Family
from darkroom.families.shared.classes import find_class, is_network, short_class_name
from darkroom.families.shared.model_spec import EMBEDDED, TINY
from darkroom.families.shared.spec import ComponentSpec
from darkroom.families.tiny import build_component
from darkroom.families.tiny.tokenizers import TOKENIZERS

if TYPE_CHECKING:
    from darkroom.families.shared.types import Settings

INDEX = "model_index.json"
# version of the format of these folders
LAYOUT = 3
STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def find_sizes(family: Family) -> dict[str, Settings]:
    """Config values of a published base's networks that differ from their classes' defaults, by component."""
    spec = family.spec.components
    published_sizes = family.spec.component_sizes
    sizes = {name: published_sizes[name] for name in (*spec.encoders, *spec.extras, "vae") if name in published_sizes}
    denoiser = family.spec.denoiser_sizes
    return sizes if denoiser is None else sizes | dict.fromkeys(family.spec.denoisers, denoiser)


def find_unknown_networks(family: Family) -> list[str]:
    """Names of the networks of a published base whose sizes are unknown."""
    sizes = find_sizes(family)
    return [name for name, component in _networks(family).items() if component and name not in sizes]


def make_folder(family: Family, root: Path) -> Path | None:
    """The folder below `root`, made on first use; None for a base that ships with Darkroom."""
    if family.spec.flavour.repository.startswith((EMBEDDED, TINY)):
        return None
    spec = family.spec.components
    recipe = [LAYOUT, dataclasses.asdict(spec), find_sizes(family), family.spec.pipeline]
    target = root / f"{family.name}-{digest(recipe)[:12]}"
    if not target.exists():
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        _write_folder(family, temporary)
        try:
            os.replace(temporary, target)
        except OSError:  # another process was faster
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _networks(family: Family) -> dict[str, ComponentSpec | None]:
    """The components of a base that have weights, by name."""
    spec = family.spec.components
    readers = {
        **spec.encoders,
        **{name: component for name, component in spec.extras.items() if is_network(component.cls)},
    }
    return {
        **readers,
        "vae": spec.vae,
        **dict.fromkeys((*family.spec.denoisers, *family.guidance_denoisers), spec.denoiser),
    }


def _write_folder(family: Family, target: Path) -> None:
    spec, sizes = family.spec.components, find_sizes(family)
    pipeline = family.spec.pipeline
    modules, _ = find_class(pipeline)._get_signature_keys(find_class(pipeline))
    # a part that is left out is written as diffusers writes it
    settings = {name: [None, None] if name in modules and not value else value for name, value in spec.settings.items()}
    index: dict[str, Any] = {"_class_name": pipeline, **settings}
    networks = {name: component for name, component in _networks(family).items() if component}
    tokenizers = {name: TOKENIZERS[tokenizer]() for name, tokenizer in spec.tokenizers.items()}
    processor_specs = {name: component for name, component in spec.extras.items() if name not in networks}
    processors = {
        name: build_component(component, tokenizers.get("tokenizer")) for name, component in processor_specs.items()
    }
    scheduler = find_class(spec.scheduler.cls)(**spec.scheduler.config)
    for name, saved in {**tokenizers, **processors, "scheduler": scheduler}.items():
        saved.save_pretrained(target / name)
        index[name] = [_library(type(saved)), type(saved).__name__]
    for name, component in networks.items():
        # a part that published folders lack is elsewhere, and that is what the index of a folder says
        index[name] = (
            [None, None]
            if name in family.component_repositories
            else [_library(find_class(component.cls)), short_class_name(component.cls)]
        )
        if name in sizes or (name in family.guidance_denoisers and family.denoiser_component in sizes):
            settings = _settings(component, sizes.get(name, sizes.get(family.denoiser_component, {})))
            write_text(target / name / "config.json", json.dumps(settings, indent=2, default=list))
    write_text(target / INDEX, json.dumps(index, indent=2))


def _library(cls: type) -> str:
    """The library of a class as diffusers writes it in an index; classes of one pipeline have its folder's name."""
    first, *parents = cls.__module__.split(".")
    return parents[1] if first == "diffusers" and parents[0] == "pipelines" else first


def _is_diffusers_class(component: ComponentSpec) -> bool:
    return hasattr(find_class(component.cls), "from_config")


def _settings(component: ComponentSpec, sizes: Settings) -> dict[str, Any]:
    """A network's complete config.json; a text model gets the special token ids of the tiny tokenizer."""
    cls = find_class(component.cls)
    if _is_diffusers_class(component):
        parameters = inspect.signature(cls.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        return {"_class_name": short_class_name(component.cls), **defaults, **_statistics(component.config), **sizes}
    config = cls.config_class(**_merge(_token_settings(component.config), sizes))
    return {**config.to_dict(), "architectures": [short_class_name(component.cls)]}


def _statistics(config: Settings) -> dict[str, Any]:
    """The config values of a tiny autoencoder that are the published statistics of its latents."""
    return {name: config[name] for name in STATISTICS if name in config}


def _token_settings(config: Settings) -> dict[str, Any]:
    """The config values of a tiny model that are token ids or model types, also in nested configs."""
    settings = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            if inner := _token_settings(value):
                settings[name] = inner
        elif name.endswith(("_token_id", "_token_index", "_index", "model_type")):
            settings[name] = value
    return settings


def _merge(base: Settings, override: Settings) -> dict[str, Any]:
    both = {
        name: _merge(base[name], override[name])
        for name in base.keys() & override.keys()
        if isinstance(base[name], Mapping) and isinstance(override[name], Mapping)
    }
    return {**base, **override, **both}
