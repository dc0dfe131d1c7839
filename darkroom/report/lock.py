"""`run.lock.json`: what a run was made from, so that it can be made again or compared."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

from darkroom import __version__
from darkroom.core.files import write_json
from darkroom.core.log import redact_values

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python, Darkroom and the packages that decide results."""
    versions_of = {"python": platform.python_version(), "darkroom": __version__}
    for name in PACKAGES:
        try:
            versions_of[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions_of[name] = "not installed"
    return versions_of


def write(
    path: Path,
    options: Mapping[str, object],
    sources: Mapping[str, str],
    datasets: str,
    base: Mapping[str, str],
    seeds: Mapping[str, object],
) -> None:
    """Write resolved options with their sources, package versions, a hash of the data, the base's identity, seeds."""
    resolved = {name: {"value": value, "from": sources.get(name, "default")} for name, value in options.items()}
    content = {
        "options": resolved,
        "versions": versions(),
        "dataset_manifest": datasets,
        "base": dict(base),
        "seeds": dict(seeds),
    }
    write_json(path, redact_values(content))
