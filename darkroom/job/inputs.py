"""Validation prompts that come from the datasets: a sample's caption, and the images that its model starts from."""

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
from darkroom.families.shared.control_methods import ControlInput
from darkroom.media.images import BadImage
from darkroom.validate.prompts import Prompt

if TYPE_CHECKING:
    from darkroom.data.cache.caches import DatasetCaches
    from darkroom.data.cache.samples import SampleSource
    from darkroom.options.config import Config

FOLDER = "validation_inputs"


def uses_dataset_prompts(family: Family, config: Config, prompts: list[Prompt]) -> bool:
    """Do they? As `validation_using_datasets` asks, or because an image is needed and no prompt brings one.

    Raises ConfigError if it is asked for and nothing is drawn from images.
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
    return bool(config.validation_using_datasets or (allowed[0] and not any(prompt.images for prompt in prompts)))


def dataset_prompts(caches: DatasetCaches, family: Family, config: Config, output: Path) -> list[Prompt]:
    """The first samples of each dataset, or of `eval_dataset_id`, in the order of their paths.

    Their images are written to `validation_inputs` below `output`, so that recipes can name them.
    """
    plan, eval_dataset = caches.plan, config.eval_dataset_id
    datasets = [d for d in plan.datasets if d.id == eval_dataset or (not eval_dataset and d.entry.is_training)]
    datasets = [d for d in datasets if not d.entry.disable_validation]
    if eval_dataset and not datasets:
        names = ", ".join(d.id for d in plan.datasets)
        raise ConfigError("eval_dataset_id", eval_dataset, "", "There is no such dataset.", f"Choose one of: {names}.")
    plan.generate()
    allowed, full_clips = family.image_counts(config), isinstance(family.spec.control(config), ControlInput)
    prompts = []
    for d in datasets:
        source = caches.source(d)
        for number, (caption, images) in enumerate(_samples(source, config.num_eval_images, allowed, full_clips)):
            name = f"{safe_name(d.id)}_{number}"
            files = [_write_image(pixels, output / FOLDER, f"{name}_{i}") for i, pixels in enumerate(images)]
            prompts.append(Prompt(name, caption, images=tuple(map(str, files))))
    if not prompts:
        raise DataError(
            "No sample of the datasets can be read, so there is nothing to validate with.\n"
            "  Take disable_validation out of one of them, or set validation_disable."
        )
    return prompts


def _samples(
    source: SampleSource, count: int, allowed: range, full_clips: bool
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Captions and images of the first `count` samples that can be read: those beside them, else their own.

    Of a clip these are its first frame, and its last where two are needed; or all of it, as one, if it is asked for
    `full_clips`, and then the first frame of the sample, where one is needed too.
    """
    for row in source.index.usable.tolist():
        if not count:
            return
        with suppress(BadImage):
            conditioning = [b for b in source.choose_conditioning(row, 0) if b.dataset.role in ("reference", "control")]
            images = [b.cache.pixels(row) for b in conditioning] or [source.latents.pixels(row)]
            if full_clips and allowed[0] > 1:
                images = [images[0], *_read_images(source.latents.pixels(row), 1)]
            stills = (
                images if full_clips else [still for pixels in images for still in _read_images(pixels, allowed[0])]
            )
            yield source.captions_of(row, conditioning)[0], stills[: allowed[-1]]
            count -= 1


def _read_images(pixels: np.ndarray, count: int) -> list[np.ndarray]:
    return [pixels] if pixels.ndim == 3 else [pixels[frame] for frame in (0, -1)[: max(1, count)]]


def _write_image(pixels: np.ndarray, folder: Path, name: str) -> Path:
    """An image as PNG, a clip as TIFF, which keeps frames that are alike; other pixels get another name."""
    from PIL import Image

    frames = np.ascontiguousarray(pixels)
    content = hashlib.sha256(frames.tobytes() + repr(frames.shape).encode()).hexdigest()[:8]
    file_format, arguments = (
        ("PNG", {}) if frames.ndim == 3 else ("TIFF", {"compression": "tiff_deflate", "save_all": True})
    )
    first, *frames_after = map(Image.fromarray, frames[None] if frames.ndim == 3 else frames)
    path = (folder / f"{name}_{content}.{file_format.lower()}").absolute()
    if not path.exists():
        with write_atomically(path) as temporary:
            first.save(
                temporary, format=file_format, **arguments, **({"append_images": frames_after} if frames_after else {})
            )
    return path
