"""Validation prompts that come from the datasets: a sample's caption, and the pictures that its model starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from darkroom.core.errors import ConfigError, DataError
from darkroom.core.files import safe_name, write_atomically
from darkroom.families.base import Family
from darkroom.families.shared.spec import ControlInput
from darkroom.media.images import BadImage
from darkroom.validate.prompts import Prompt

if TYPE_CHECKING:
    from darkroom.data.batches.loader import SampleSource
    from darkroom.data.plan import DatasetPlan
    from darkroom.options.config import Config

FOLDER = "validation_inputs"


def come_from_datasets(family: Family, config: Config, prompts: list[Prompt]) -> bool:
    """Do they? As `validation_using_datasets` asks, or because a picture is needed and no prompt brings one.

    Raises ConfigError if it is asked for and nothing is drawn from pictures.
    """
    allowed = family.image_counts(config)
    if config.validation_using_datasets and not allowed[-1]:
        raise ConfigError(
            "validation_using_datasets",
            True,
            "",
            f"{family.title} starts from no picture here.",
            "Leave it out, or choose a flavour that edits or starts from pictures.",
        )
    return bool(config.validation_using_datasets or (allowed[0] and not any(prompt.pictures for prompt in prompts)))


def dataset_prompts(plan: DatasetPlan, family: Family, config: Config, output: Path) -> list[Prompt]:
    """The first samples of each dataset, or of `eval_dataset_id`, in the order of their paths.

    Their pictures are written to `validation_inputs` below `output`, so that recipes can name them.
    """
    wanted = config.eval_dataset_id
    chosen = [d for d in plan.datasets if d.id == wanted or (not wanted and d.entry.is_training)]
    chosen = [d for d in chosen if not d.entry.disable_validation]
    if wanted and not chosen:
        names = ", ".join(d.id for d in plan.datasets)
        raise ConfigError("eval_dataset_id", wanted, "", "There is no such dataset.", f"Choose one of: {names}.")
    plan.generate()
    allowed, whole = family.image_counts(config), isinstance(family.control(config), ControlInput)
    found = []
    for d in chosen:
        source = plan.source(d)
        for number, (caption, pictures) in enumerate(_samples(source, config.num_eval_images, allowed, whole)):
            name = f"{safe_name(d.id)}_{number}"
            files = [_written(pixels, output / FOLDER, f"{name}_{i}") for i, pixels in enumerate(pictures)]
            found.append(Prompt(name, caption, pictures=tuple(map(str, files))))
    if not found:
        raise DataError(
            "No sample of the datasets can be read, so there is nothing to validate with.\n"
            "  Take disable_validation out of one of them, or set validation_disable."
        )
    return found


def _samples(source: SampleSource, count: int, allowed: range, whole: bool) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Captions and pictures of the first `count` samples that can be read: those beside them, else their own.

    Of a clip these are its first frame, and its last where two are needed; or all of it, as one, if it is asked for
    `whole`, and then the first frame of the sample, where one is needed too.
    """
    for row in source.index.usable.tolist():
        if not count:
            return
        with suppress(BadImage):
            beside = [b for b in source.choose_conditioning(row, 0) if b.dataset.role in ("reference", "control")]
            given = [b.cache.pixels(row) for b in beside] or [source.latents.pixels(row)]
            if whole and allowed[0] > 1:
                given = [given[0], *_stills(source.latents.pixels(row), 1)]
            stills = given if whole else [still for pixels in given for still in _stills(pixels, allowed[0])]
            yield source.captions_of(row, beside)[0], stills[: allowed[-1]]
            count -= 1


def _stills(pixels: np.ndarray, needed: int) -> list[np.ndarray]:
    return [pixels] if pixels.ndim == 3 else [pixels[frame] for frame in (0, -1)[: max(1, needed)]]


def _written(pixels: np.ndarray, folder: Path, name: str) -> Path:
    """A picture as PNG, a clip as TIFF, which keeps frames that are alike; other pixels get another name."""
    from PIL import Image

    whole = np.ascontiguousarray(pixels)
    content = hashlib.sha256(whole.tobytes() + repr(whole.shape).encode()).hexdigest()[:8]
    kind, more = ("PNG", {}) if whole.ndim == 3 else ("TIFF", {"compression": "tiff_deflate", "save_all": True})
    first, *others = map(Image.fromarray, whole[None] if whole.ndim == 3 else whole)
    path = (folder / f"{name}_{content}.{kind.lower()}").absolute()
    if not path.exists():
        with write_atomically(path) as temporary:
            first.save(temporary, format=kind, **more, **({"append_images": others} if others else {}))
    return path
