"""Load what a run saved with stock diffusers, and compare its images with those of the run.

Images are rendered again in the run's precisions. A float32 run is compared with a plain call of the diffusers
pipeline, with the prompt as text. A run with mixed precisions (bf16 weights; text encoders, VAE and adapter in float32)
cannot be reproduced by a plain call: there the diffusers pipeline loads and samples, and text and pixels are processed
as in the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image

from darkroom import families
from darkroom.adapters import assistant, stock
from darkroom.core.device import run_device
from darkroom.core.errors import ModelError
from darkroom.families.base import Family
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.experts import use_single_expert
from darkroom.families.shared.text_encoding import encode_caption_with_images, encode_captions
from darkroom.media.reference_image import ReferenceImage
from darkroom.memory.policy import MemoryPolicy, has_quantized_weights
from darkroom.options.config import Config, construct
from darkroom.pretrained.components import Components, find_accepted_components
from darkroom.pretrained.repository import locate_repository
from darkroom.tools import generate
from darkroom.train import distributed
from darkroom.train.checkpoint import STATE, validate_checkpoint
from darkroom.validate.clip import Rendered
from darkroom.validate.recipe import Recipe
from darkroom.validate.render import Renderer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

LIMIT = 1.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What `verify` found. `difference` is the largest, in steps of 1/255; None where there was nothing to compare."""

    matched: int
    unmatched: list[str]
    images: int
    difference: float | None
    problem: str | None = None

    @property
    def holds(self) -> bool:
        """Every key found its place and every image is the same to 1/255."""
        close = self.difference is None or self.difference <= LIMIT
        return self.problem is None and not self.unmatched and close


def verify(path: Path) -> Verdict:
    """Load a checkpoint folder, an adapter file, or a run's result into diffusers' pipeline and compare images.

    Raises ModelError when there is nothing to load.
    """
    options = generate.run_of(path)
    settings = construct(options)
    family = families.get(settings.model_family, settings.model_flavour)
    if path.is_dir() and (path / STATE).exists() and (problem := validate_checkpoint(path)):
        return Verdict(0, [], 0, None, problem)
    base = locate_repository(str(options["$base"]), family)
    memory_policy = MemoryPolicy(settings, run_device(), family.blocks)
    components = parts_of_run(family, base, settings, memory_policy)
    mixed = mixes(components)
    readers = load_reader_components(components) if mixed else {}
    if options["model_type"] == "full":
        pipe, matched, unmatched = full_pipeline(components, path, base, readers)
        for part in components.trainable_components:
            memory_policy.convert_to_float8(part, getattr(pipe, part))
    else:
        pipe = generate.stock_pipeline(family, base, components.dtype, settings, **readers)
        files = [generate.AdapterFile(adapter_file(path))]
        (loaded,) = generate.load_adapters(pipe, family, files, settings)
        matched, unmatched = loaded.matched, loaded.unmatched
        # only now: diffusers finds no place for an adapter in some kinds of quantized weights
        quantized = components.denoisers_of(components.denoiser()) if settings.quantize_via == "pipeline" else {}
        for part in components.trainable_components:
            if part in quantized:
                put_below(getattr(pipe, part), quantized[part])
            memory_policy.quantize_frozen(part, getattr(pipe, part))
        if mixed:
            for part, file in stock.find_files(str(files[0].path), family.spec.adapter_components(settings)).items():
                stock.restore_precision(pipe, part, Path(file), "adapter_0", distributed.trained_dtype(settings))
    trained = family.spec.trained
    if settings.validation_assistant_lora and settings.assistant_lora_path:
        readers = {part: getattr(pipe, part) for part in trained}
        assistant.attach_assistants(
            readers, assistant.read_assistants(settings.assistant_lora_path, readers, type(pipe)), always=True
        )
    if len(trained) < len(family.spec.denoisers) and not settings.wan_validation_load_other_stage:
        use_single_expert(pipe, family.spec.denoisers, trained[0])  # as the run drew its images
    images = [p for p in originals(Path(str(options["$folder"])), step_of(path)) if Recipe.read(p).is_whole]
    render = as_in_the_run(pipe, components) if mixed else as_anywhere(pipe, components)
    worst = max((difference(pipe, components, image, render) for image in images), default=None)
    return Verdict(matched, unmatched, len(images), worst)


def put_below(model: nn.Module, quantized: nn.Module) -> None:
    """Give a model with adapters the linear layers of another one of its kind that was quantized while it loaded."""
    for name, layer in [row for row in quantized.named_modules() if isinstance(row[1], torch.nn.Linear)]:
        above = hasattr(model.get_submodule(name), "base_layer")
        model.set_submodule(f"{name}.base_layer" if above else name, layer)


def parts_of_run(family: Family, base: str, settings: Config, memory_policy: MemoryPolicy) -> Components:
    """The base's parts in the precisions of the run. Nothing is loaded yet."""
    full = settings.model_type == "full" and not settings.controlnet
    dtype = distributed.trained_dtype(settings) if full else distributed.base_dtype(settings)
    places = settings.model_copy(update={"pretrained_model_name_or_path": base})
    return Components(
        family, places, memory_policy.device, dtype, memory_policy.prepare_text_encoder, memory_policy.prepare_vae
    )


def mixes(components: Components) -> bool:
    """Did the run draw in anything but 32 bit?"""
    return {components.dtype, components.text_dtype, components.vae_dtype} != {torch.float32} or has_quantized_weights(
        components.options
    )


def load_reader_components(components: Components) -> dict[str, nn.Module]:
    """The parts of the pipeline that read text and pixels, which have precisions of their own, by component."""
    accepted = find_accepted_components(components.family.spec.validation_pipeline(components.options))
    loaded = {name: part for name, part in components.text().components.items() if isinstance(part, torch.nn.Module)}
    loaded |= {name: components.extra(name) for name in components.specs.extras}
    loaded["vae"] = cast(torch.nn.Module, components.vae())
    return {name: part for name, part in loaded.items() if name in accepted}


def as_anywhere(pipe: DiffusionPipeline, components: Components) -> Callable[[Recipe], Rendered]:
    """Draws recipes by a plain call of diffusers' pipeline."""
    return lambda recipe: generate.render(pipe, components.family, recipe, components.options)


def as_in_the_run(pipe: DiffusionPipeline, components: Components) -> Callable[[Recipe], Rendered]:
    """Draws recipes as the run did, with a diffusers pipeline that holds what it saved."""
    reader, family = components.text(), components.family
    reading = {name: getattr(pipe, name) for name in components.specs.encoders if name in pipe.components}
    reader.register_modules(**{name: part for name, part in reading.items() if name in reader.components})
    pipe.register_modules(**dict.fromkeys(reading))

    def text(caption: str, images: Sequence[ReferenceImage] = ()) -> dict[str, torch.Tensor]:
        if images:
            return encode_caption_with_images(
                family, reader, caption, [Image.fromarray(look.pixels()) for look in images], components.options
            )
        return encode_captions(family, reader, [caption], components.options)[0]

    renderer = Renderer(components, components.options, text)

    def render_one(recipe: Recipe) -> Rendered:
        with torch.no_grad():
            return renderer.render_recipe(pipe, recipe)

    return render_one


def adapter_file(path: Path) -> Path:
    """The adapter inside a folder, or the file itself."""
    file = path / "pytorch_lora_weights.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ModelError(f"There is no adapter at {path}.\n  Give a checkpoint folder, an output folder or a file.")
    return file


def full_pipeline(
    components: Components, path: Path, base: str, readers: dict[str, nn.Module]
) -> tuple[DiffusionPipeline, int, list[str]]:
    """The diffusers pipeline with fully trained parts; their keys are checked by a strict load."""
    family, options, dtype = components.family, components.options, distributed.trained_dtype(components.options)
    trained = family.spec.adapter_components(options)
    folder = next((f for f in (path / "pipeline", path) if (f / trained[0]).is_dir()), None)
    if folder is None:
        raise ModelError(f"There is no {trained[0]}/ in {path}.\n  Give a checkpoint or output folder.")
    net = family.controlnet if options.controlnet else None
    model_classes = family.spec.components
    classes = dict.fromkeys(trained, net.cls if net else model_classes.denoiser.cls)
    if options.train_text_encoder:
        texts = family.spec.trainable_text
        classes |= {name: model_classes.encoders[name].cls for name in texts}
    loaded, matched, odd = {}, 0, []
    for part, cls in classes.items():
        model, info = find_class(cls).from_pretrained(folder, subfolder=part, dtype=dtype, output_loading_info=True)
        loaded[part] = model
        odd += [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        matched += len(model.state_dict()) - len(info["missing_keys"])
    pipe = generate.stock_pipeline(family, base, components.dtype, options, **{**readers, **loaded})
    generate.attend(pipe, trained, folder, options)
    return pipe, matched, list(map(str, odd))


def step_of(path: Path) -> int | None:
    """The step of a checkpoint's name; None stands for the end of the run."""
    name = path.name if path.is_dir() else path.parent.name
    words = name.split("-")
    return int(words[1]) if words[0] == "checkpoint" and len(words) > 1 and words[1].isdigit() else None


def originals(output: Path, step: int | None) -> list[Path]:
    """Unstitched validation images of a step, or of the last one rendered."""
    images: dict[int, list[Path]] = {}
    for path in sorted((output / "validation_images" / "originals").glob("step_*.png")):
        if "__ema" not in path.stem:
            images.setdefault(int(path.stem.split("_")[1]), []).append(path)
    if step is None:
        return images[max(images)] if images else []
    return images.get(step, [])


def difference(
    pipe: DiffusionPipeline, components: Components, image: Path, render: Callable[[Recipe], Rendered]
) -> float:
    """Largest difference of an image, or of the frames it shows, and what is made of its recipe, in steps of 1/255."""
    recipe = Recipe.read(image)
    if recipe.strength != 1.0:
        stock.set_strengths(
            pipe, components.family.spec.adapter_components(components.options), {"adapter_0": recipe.strength}
        )
    with Image.open(image) as saved:
        rendered = np.asarray(saved, dtype=np.int16)
    original = np.asarray(render(recipe).image, dtype=np.int16)
    return float(np.abs(rendered - original).max()) if rendered.shape == original.shape else 255.0
