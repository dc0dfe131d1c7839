"""A folder of settings without weights: a base as it was published, for plans where no file and no hub is at hand.

Its networks have the published sizes; tokenizers, processors and the scheduler are those of the family's tiny model,
which read captions in more or fewer tokens than the published ones. What is not known here has no settings there.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from darkroom.core.files import digest, write_text
from darkroom.families.base import EMBEDDED, TINY, Family
from darkroom.families.shared.classes import is_network, named, short
from darkroom.families.shared.spec import Part
from darkroom.families.tiny import component
from darkroom.families.tiny.tokenizers import TOKENIZERS

INDEX = "model_index.json"
# counts ways in which such folders were written
LAYOUT = 3
STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def sizes_of(family: Family, flavour: str | None) -> dict[str, Mapping[str, Any]]:
    """Settings of a published base's networks beside their classes' defaults, by component; only those known here."""
    spec = family.tiny_for(flavour)
    known = family.part_sizes_for(flavour)
    found = {name: known[name] for name in (*spec.encoders, *spec.extras, "vae") if name in known}
    denoiser = family.size_of(flavour)
    return found if denoiser is None else found | dict.fromkeys(family.held_for(flavour), denoiser)


def unknown(family: Family, flavour: str | None) -> list[str]:
    """The networks of a published base whose sizes are not known here."""
    known = sizes_of(family, flavour)
    return [name for name, part in _networks(family, flavour).items() if part and name not in known]


def folder(family: Family, flavour: str | None, root: Path) -> Path | None:
    """The folder below `root`, made on first use; None for a base that ships with Darkroom."""
    if family.flavour(flavour).repository.startswith((EMBEDDED, TINY)):
        return None
    spec = family.tiny_for(flavour)
    recipe = [LAYOUT, dataclasses.asdict(spec), sizes_of(family, flavour), family.pipeline_for(flavour)]
    target = root / f"{family.name}-{digest(recipe)[:12]}"
    if not target.exists():
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        _write(family, flavour, temporary)
        try:
            os.replace(temporary, target)
        except OSError:  # another process was faster
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _networks(family: Family, flavour: str | None) -> dict[str, Part | None]:
    """What a base has with weights, by component."""
    spec = family.tiny_for(flavour)
    others = {**spec.encoders, **{name: part for name, part in spec.extras.items() if is_network(part.cls)}}
    return {**others, "vae": spec.vae, **dict.fromkeys((*family.held_for(flavour), *family.guides), spec.denoiser)}


def _write(family: Family, flavour: str | None, target: Path) -> None:
    spec, known = family.tiny_for(flavour), sizes_of(family, flavour)
    pipeline = family.pipeline_for(flavour)
    modules, _ = named(pipeline)._get_signature_keys(named(pipeline))
    # a part that is left out is written as diffusers writes it
    settings = {name: [None, None] if name in modules and not value else value for name, value in spec.settings.items()}
    index: dict[str, Any] = {"_class_name": pipeline, **settings}
    networks = {name: part for name, part in _networks(family, flavour).items() if part}
    tokenizers = {name: TOKENIZERS[kind]() for name, kind in spec.tokenizers.items()}
    others = {name: part for name, part in spec.extras.items() if name not in networks}
    processors = {name: component(part, tokenizers.get("tokenizer")) for name, part in others.items()}
    scheduler = named(spec.scheduler.cls)(**spec.scheduler.config)
    for name, made in {**tokenizers, **processors, "scheduler": scheduler}.items():
        made.save_pretrained(target / name)
        index[name] = [_library(type(made)), type(made).__name__]
    for name, part in networks.items():
        # a part that published folders lack is elsewhere, and that is what the index of a folder says
        index[name] = [None, None] if name in family.elsewhere else [_library(named(part.cls)), short(part.cls)]
        if name in known or (name in family.guides and family.denoiser_part in known):
            settings = _settings(part, known.get(name, known.get(family.denoiser_part, {})))
            write_text(target / name / "config.json", json.dumps(settings, indent=2, default=list))
    write_text(target / INDEX, json.dumps(index, indent=2))


def _library(cls: type) -> str:
    """The library of a class as diffusers writes it: what belongs to one pipeline alone is in that one's folder."""
    first, *rest = cls.__module__.split(".")
    return rest[1] if first == "diffusers" and rest[0] == "pipelines" else first


def _is_of_diffusers(part: Part) -> bool:
    return hasattr(named(part.cls), "from_config")


def _settings(part: Part, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A network's whole config.json; one that reads tokens knows the marks of the tiny model's tokenizer."""
    cls = named(part.cls)
    if _is_of_diffusers(part):
        known = inspect.signature(cls.__init__).parameters.values()
        defaults = {p.name: p.default for p in known if p.default is not inspect.Parameter.empty}
        return {"_class_name": short(part.cls), **defaults, **_statistics(part.config), **sizes}
    config = cls.config_class(**_merged(_marks(part.config), sizes))
    return {**config.to_dict(), "architectures": [short(part.cls)]}


def _statistics(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a tiny autoencoder's settings are the published statistics of its latents."""
    return {name: config[name] for name in STATISTICS if name in config}


def _marks(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a tiny model's settings names tokens, and what kind of model a part of it is."""
    found = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            if inner := _marks(value):
                found[name] = inner
        elif name.endswith(("_token_id", "_token_index", "_index", "model_type")):
            found[name] = value
    return found


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        name: _merged(one[name], other[name])
        for name in one.keys() & other.keys()
        if isinstance(one[name], Mapping) and isinstance(other[name], Mapping)
    }
    return {**one, **other, **both}
