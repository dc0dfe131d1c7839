"""The demo: teach the embedded base a creature it has never seen, and measure what happened.

Everything goes the way a user's own run goes: a config, a dataset file, `train`, and the stock diffusers pipeline for
the images that are judged.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from darkroom import families
from darkroom.core.files import write_json, write_text
from darkroom.demo import checker, pictures
from darkroom.demo.pictures import Scene
from darkroom.job.train import train
from darkroom.options.sources import resolve
from darkroom.pretrained.repository import locate_repository
from darkroom.tools.generate import AdapterFile, load_adapters, stock_pipeline
from darkroom.validate.sheet import grid

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

HERE = Path(pictures.__file__).parent
STEPS = 320
CONCEPTS, OTHER_SCENES = 16, 32
# so small a model gains nothing from a second thread, and loses much on a machine that is busy with something else
THREADS = 1
CONFIG = {
    "model_family": "flux",
    "model_flavour": "embedded",
    "lora_rank": 16,
    "train_batch_size": 8,
    "max_train_steps": STEPS,
    "learning_rate": 3e-3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 20,
    "caption_dropout_probability": 0.1,
    "validation_prompt": "a large grumbo on a blue background, center",
    "validation_step_interval": 100,
    "checkpoint_step_interval": 0,
    "seed": 7,
    "torch_num_threads": THREADS,
}
DATASETS = [
    {"id": "grumbo", "instance_data_dir": str(HERE / "concept"), "repeats": 11},
    {"id": "ordinary", "instance_data_dir": str(HERE / "keep"), "repeats": 2, "is_regularisation_data": True},
]


@dataclasses.dataclass(frozen=True)
class Figures:
    """Shares of images that are right, 0..1. `ordinary` counts the attributes of ordinary captions."""

    concept: float
    ordinary: dict[str, float]

    @property
    def ordinary_mean(self) -> float:
        """Mean over the attributes."""
        return sum(self.ordinary.values()) / len(self.ordinary)


def demo(
    output: Path, overrides: Sequence[str] = (), report_progress: Callable[[str], None] = print
) -> dict[str, object]:
    """Run it all into `output`; returns what `demo.json` holds."""
    started = time.monotonic()
    torch.set_num_threads(THREADS)
    config = write_settings(output)
    report_progress(
        f"The built-in model draws simple shapes. {CONCEPTS} pictures will teach it a creature: the grumbo.\n"
    )
    resolved = resolve([str(config), *overrides], {}, Path.cwd(), families.defaults)
    family = families.get("flux", "embedded")
    base = locate_repository(family.spec.flavour.repository, family)
    pipe = stock_pipeline(family, base, torch.float32, resolved.config)
    concepts, other_scenes = scenes()
    report_progress("Before: asking the untrained model for grumbos, and for ordinary shapes.")
    before = DemoImages(pipe, concepts, other_scenes)
    figures_before = before.figures()

    report_progress("Training. The same thing by hand: darkroom train " + str(config))
    training = time.monotonic()
    release = train(resolved)
    train_seconds = time.monotonic() - training

    report_progress("After: the stock diffusers pipeline with the adapter that was just saved.")
    load_adapters(pipe, family, [AdapterFile(release.result)], resolved.config)
    after = DemoImages(pipe, concepts, other_scenes)
    figures_after = after.figures()
    before_after(output / "before_after.png", before, after)
    result = {
        "seconds": round(time.monotonic() - started, 1),
        "train_seconds": round(train_seconds, 1),
        "steps": release.steps,
        "concept_match_before": figures_before.concept,
        "concept_match_after": figures_after.concept,
        "kept_captions_before": figures_before.ordinary_mean,
        "kept_captions_after": figures_after.ordinary_mean,
        "kept_by_attribute_before": figures_before.ordinary,
        "kept_by_attribute_after": figures_after.ordinary,
    }
    write_json(output / "demo.json", result)
    return result


def write_settings(output: Path) -> Path:
    """The config and dataset file of the run, as a user would write them. Returns the config's path."""
    output.mkdir(parents=True, exist_ok=True)
    common = {"type": "local", "caption_strategy": "textfile", "crop": False}
    datasets = output / "datasets.json"
    write_json(datasets, [{**entry, **common} for entry in DATASETS])
    settings = {**CONFIG, "output_dir": str(output), "data_backend_config": str(datasets)}
    write_text(output / "config.json", json.dumps(settings, indent=2) + "\n")
    return output / "config.json"


def scenes() -> tuple[list[Scene], list[Scene]]:
    """What is asked for: grumbos, and ordinary scenes that the base never saw in training.

    Grumbos are medium or large: a small one is 18 pixels wide, too few for the base's autoencoder to keep a face.
    """
    rng = np.random.default_rng(11)
    grumbos = (pictures.grumbo_scene(rng) for _ in range(10 * CONCEPTS))
    captions = [scene for scene in grumbos if scene.size != "small"][:CONCEPTS]
    return captions, pictures.split_scenes()[1][:OTHER_SCENES]


class DemoImages:
    """Images of both kinds of captions by diffusers' pipeline, always from the same noise."""

    def __init__(self, pipe: DiffusionPipeline, concepts: list[Scene], other_scenes: list[Scene]):
        self.scenes = concepts, other_scenes
        self.concepts, self.other_scenes = draw(pipe, concepts, 1000), draw(pipe, other_scenes, 2000)

    def figures(self) -> Figures:
        """Judge them with the checker, which the model never saw."""
        concepts, other_images = self.scenes
        right = [
            checker.is_grumbo(p, s) and all(checker.check(p, s)[name] for name in ("background", "position"))
            for p, s in zip(self.concepts, concepts, strict=True)
        ]
        checks = [checker.check(p, s) for p, s in zip(self.other_scenes, other_images, strict=True)]
        ordinary = {name: float(np.mean([c[name] for c in checks])) for name in checks[0]}
        return Figures(float(np.mean(right)), ordinary)


def draw(pipe: DiffusionPipeline, scenes: list[Scene], seed: int, at_once: int = 16) -> list[np.ndarray]:
    """One uint8 (64, 64, 3) image per scene."""
    rendered: list[np.ndarray] = []
    for start in range(0, len(scenes), at_once):
        captions = [pictures.full_caption(scene) for scene in scenes[start : start + at_once]]
        images = pipe(
            captions, negative_prompt=[""] * len(captions), true_cfg_scale=3.0, width=64, height=64,
            num_inference_steps=16, max_sequence_length=24, output_type="np",
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(captions))],
        ).images  # fmt: skip
        rendered += [np.round(image * 255).astype(np.uint8) for image in images]
    return rendered


def before_after(path: Path, before: DemoImages, after: DemoImages) -> None:
    """The sheet: what was shown, then the same requests before and after, then ordinary requests."""
    tiles = [Image.open(file).convert("RGB") for file in sorted((HERE / "concept").glob("*.png"))[:8]]
    rows = [tiles]
    labels = [f"What it was shown (8 of {len(list((HERE / 'concept').glob('*.png')))} pictures)"]
    for name, rendered in (("Before", before), ("After", after)):
        rows += [
            [Image.fromarray(p) for p in rendered.concepts[:8]],
            [Image.fromarray(p) for p in rendered.concepts[8:16]],
        ]
        labels += [f"{name}: asked for grumbos in other places, sizes and colours", ""]
    for name, rendered in (("Before", before), ("After", after)):
        rows.append([Image.fromarray(p) for p in rendered.other_scenes[:8]])
        labels.append(f"{name}: asked for ordinary shapes")
    grid(rows, labels, scale=2).save(path)


def story(result: dict[str, object], output: Path) -> str:
    """What a person wants to read at the end."""
    return (
        f"\nGrumbos drawn right: {result['concept_match_before']:.0%} before, "
        f"{result['concept_match_after']:.0%} after.\n"
        f"Other captions obeyed: {result['kept_captions_before']:.0%} before, "
        f"{result['kept_captions_after']:.0%} after.\n"
        f"{result['steps']} steps, {result['train_seconds']:.0f} s of training, {result['seconds']:.0f} s in all.\n\n"
        f"Look at  {output / 'before_after.png'}\n"
        f"Read     {output / 'report.html'}\n"
        "Next     docs/tutorial.md: the same with your own folder of images"
    )
