"""Does what a run saved load elsewhere, and does it look there as it looked here?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from darkroom import families
from darkroom.adapters import stock
from darkroom.core.errors import ModelError
from darkroom.families.base import Family
from darkroom.families.classes import named
from darkroom.families.repository import locate
from darkroom.tools import generate
from darkroom.train.checkpoint import STATE, check
from darkroom.validate.recipe import Recipe

LIMIT = 1.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What `verify` found. `difference` is the largest, in steps of 1/255; None where there was nothing to compare."""

    matched: int
    unmatched: list[str]
    pictures: int
    difference: float | None
    problem: str | None = None

    @property
    def holds(self) -> bool:
        """Every key found its place and every picture is the same to 1/255."""
        close = self.difference is None or self.difference <= LIMIT
        return self.problem is None and not self.unmatched and close


def verify(path: Path) -> Verdict:
    """Load a checkpoint folder, an adapter file, or a run's result into the stock pipeline and compare pictures.

    Raises ModelError when there is nothing to load.
    """
    options = generate.run_of(path)
    family = families.get(options["model_family"])
    settings = SimpleNamespace(**options)
    if path.is_dir() and (path / STATE).exists() and (problem := check(path)):
        return Verdict(0, [], 0, None, problem)
    base = locate(options["$base"], family)
    if options["model_type"] == "full":
        pipe, matched, unmatched = full_pipeline(family, path, base, settings)
    else:
        pipe = generate.stock_pipeline(family, base, torch.float32, settings)
        files = [generate.AdapterFile(adapter_file(path))]
        (loaded,) = generate.load_adapters(pipe, family, files, settings)
        matched, unmatched = loaded.matched, loaded.unmatched
    trained = family.trained_for(settings.model_flavour)
    if len(trained) < len(family.held_for(settings.model_flavour)) and not settings.wan_validation_load_other_stage:
        family.alone(pipe, trained[0])  # as the run drew its pictures
    pictures = originals(Path(options["$folder"]), step_of(path))
    worst = max((difference(pipe, family, settings, picture) for picture in pictures), default=None)
    return Verdict(matched, unmatched, len(pictures), worst)


def adapter_file(path: Path) -> Path:
    """The adapter inside a folder, or the file itself."""
    file = path / "pytorch_lora_weights.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ModelError(f"There is no adapter at {path}.\n  Give a checkpoint folder, an output folder or a file.")
    return file


def full_pipeline(family: Family, path: Path, base: str, options: Any) -> tuple[Any, int, list[str]]:
    """The stock pipeline with fully trained parts; their keys are checked by a strict load."""
    parts = family.adapted(options)
    folder = next((f for f in (path / "pipeline", path) if (f / parts[0]).is_dir()), None)
    if folder is None:
        raise ModelError(f"There is no {parts[0]}/ in {path}.\n  Give a checkpoint or output folder.")
    cls = family.controlnet.cls if options.controlnet and family.controlnet else family.denoiser
    loaded, matched, odd = {}, 0, []
    for part in parts:
        model, info = named(cls).from_pretrained(folder, subfolder=part, dtype=torch.float32, output_loading_info=True)
        loaded[part] = model
        odd += [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        matched += len(model.state_dict()) - len(info["missing_keys"])
    return generate.stock_pipeline(family, base, torch.float32, options, **loaded), matched, list(map(str, odd))


def step_of(path: Path) -> int | None:
    """The step of a checkpoint's name; None stands for the end of the run."""
    name = path.name if path.is_dir() else path.parent.name
    parts = name.split("-")
    return int(parts[1]) if parts[0] == "checkpoint" and len(parts) > 1 and parts[1].isdigit() else None


def originals(output: Path, step: int | None) -> list[Path]:
    """Unstitched validation pictures of a step, or of the last one rendered."""
    found: dict[int, list[Path]] = {}
    for path in sorted((output / "validation_images" / "originals").glob("step_*.png")):
        if "__ema" not in path.stem:
            found.setdefault(int(path.stem.split("_")[1]), []).append(path)
    if step is None:
        return found[max(found)] if found else []
    return found.get(step, [])


def difference(pipe: Any, family: Any, settings: Any, picture: Path) -> float:
    """Largest difference of a picture, or of the frames it shows, and its stock rendering, in steps of 1/255."""
    from PIL import Image

    recipe = Recipe.read(picture)
    if recipe.strength != 1.0:
        parts = family.adapted(settings)
        stock.set_strengths(pipe, parts, {"adapter_0": recipe.strength})
    with Image.open(picture) as saved:
        mine = np.asarray(saved.convert("RGB"), dtype=np.int16)
    theirs = np.asarray(generate.render(pipe, family, recipe, settings).image, dtype=np.int16)
    return float(np.abs(mine - theirs).max()) if mine.shape == theirs.shape else 255.0
