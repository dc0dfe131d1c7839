"""Images and clips from a base model and adapter files, through the stock diffusers pipeline and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from darkroom.adapters import stock
from darkroom.core.errors import DataError, ModelError
from darkroom.families.base import Family
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.conditioning import filter_kwargs, select_pipeline
from darkroom.families.shared.model_spec import CONTROLNET
from darkroom.families.shared.text_encoding import encode_caption_with_images, encode_captions
from darkroom.memory import sla
from darkroom.pretrained.components import Components, explain_load_errors, silence_libraries
from darkroom.pretrained.repository import describe_truncation, is_local_path
from darkroom.validate import caches, schedulers
from darkroom.validate.clip import Rendered
from darkroom.validate.recipe import Recipe
from darkroom.validate.render import call_kwargs, convert_output, text_encoder_images

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from darkroom.options.config import Config


@dataclasses.dataclass(frozen=True)
class AdapterFile:
    """An adapter and how strongly it counts."""

    path: Path
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> AdapterFile:
        """`file.safetensors` or `file.safetensors:0.8`; a folder stands for the adapter inside it."""
        path, _, strength = text.rpartition(":")
        if path and strength.replace(".", "", 1).lstrip("-").isdigit():
            return cls(Path(path), float(strength))
        return cls(Path(text))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What an adapter file became in the pipeline: keys that found a place, and those that did not."""

    matched: int
    unmatched: list[str]


def stock_pipeline(
    family: Family, base: str, dtype: torch.dtype, options: Config, **components: object
) -> DiffusionPipeline:
    """The diffusers pipeline of a base folder, file or hub id, complete, with these parts in place of its own.

    Where the options name a ControlNet it is read too. Raises ModelError.
    """
    silence_libraries()
    if is_local_path(base) and not Path(base).exists():
        raise ModelError(f"There is no model at {base}.\n  Check the path, or give a hub id, or a family and flavour.")
    with explain_load_errors(
        "The pipeline", base, f"Give a folder or hub id of a {family.title} model, or a family and flavour."
    ):
        name = family.spec.validation_pipeline(options)
        cls = find_class(name)
        idle = {part: None for part in family.unused_components if part not in cls._optional_components}
        # whole: where diffusers quantizes, it finds no place for some adapters
        places = options.model_copy(update={"pretrained_model_name_or_path": base, "quantize_via": "cpu"})
        base_components = Components(family, places, torch.device("cpu"), dtype)
        if not components.keys() & set(base_components.trainable_components):
            base_components.validate_separate_denoiser()
        loaded = base_components.load_separate_components(set(components))
        loaded |= base_components.load_bundled_components(but={*loaded, *components})
        loaded |= base_components.load_extra_components(name, dtype, but={*loaded, *components, *idle})
        folder = base_components.settings_base
        components = {**idle, **family.default_components("render"), **loaded, **components}
        if options.controlnet and CONTROLNET not in components:
            assert family.controlnet is not None
            components[CONTROLNET] = find_class(family.controlnet.cls).from_pretrained(
                options.controlnet_model_name_or_path, dtype=dtype
            )
        if "text" in base_components.bundled_components:
            pipe = cls.from_single_file(base, config=folder, dtype=dtype, **components)
        else:
            pipe = cls.from_pretrained(folder, dtype=dtype, **components)
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    if (Path(base) / sla.FILE).exists():
        attend(pipe, base_components.trainable_components, Path(base), options)
    return pipe


def load_adapters(
    pipe: DiffusionPipeline, family: Family, adapters: Sequence[AdapterFile], options: Config
) -> list[Loaded]:
    """Load each adapter by the pipeline's own loader, where it has one, and count keys. A flavour with several
    denoisers has a file for each, in one folder. Raises ModelError if one cannot be read."""
    components = family.spec.adapter_components(options)
    counted = []
    for number, adapter in enumerate(adapters):
        if not adapter.path.exists():
            raise ModelError(f"There is no adapter at {adapter.path}.\n  Check the path.")
        name = f"adapter_{number}"
        files = stock.find_files(str(adapter.path), components)
        component = [_load(pipe, family, part, Path(file), name) for part, file in files.items()]
        counted.append(
            Loaded(
                sum(adapter_file.matched for adapter_file in component),
                [key for adapter_file in component for key in adapter_file.unmatched],
            )
        )
        attend(pipe, components, adapter.path, options)
    if adapters:
        strengths = {f"adapter_{i}": adapter.strength for i, adapter in enumerate(adapters)}
        stock.set_strengths(pipe, components, strengths)
    return counted


def attend(pipe: DiffusionPipeline, components: Sequence[str], path: Path, options: Config) -> None:
    """Give denoisers the sparse-linear attention that lies beside an adapter, or in a pipeline's folder, if one does.

    Raises ModelError, also where a run has learned with one and it is not there.
    """
    file = (path if path.is_dir() else path.parent) / sla.FILE
    if not file.exists():
        if options.attention_mechanism == sla.NAME:
            raise ModelError(
                f"There is no {file}, with which this was trained.\n  Copy it too, from beside the adapter."
            )
        return
    for part in components:
        network = getattr(pipe, part)
        if any(isinstance(module, sla.SparseLinear) for module in network.modules()):
            raise ModelError(f"{file} is a second sparse-linear attention.\n  Give adapters of one run.")
        with explain_load_errors(
            "The sparse-linear attention", str(file), "Copy the whole folder of the adapter again."
        ):
            sla.restore(network, file, part)


def _load(pipe: DiffusionPipeline, family: Family, part: str, file: Path, name: str) -> Loaded:
    if file.suffix == ".safetensors" and file.is_file() and (problem := describe_truncation(file)):
        raise ModelError(f"The adapter {file} is damaged: {problem}.\n  Copy it again, or take another checkpoint.")
    with explain_load_errors("The adapter", str(file), f"Give a whole LoRA file that was made for {family.title}."):
        stock.load(pipe, part, file, name)
    return count_keys(pipe, family, part, file, name)


def count_keys(pipe: DiffusionPipeline, family: Family, part: str, file: Path, name: str) -> Loaded:
    """Compare the file's tensors with what is in the models: a key matches if its very values are there."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    model = getattr(pipe, part)
    tensors = {key: t for key, t in load_file(file).items() if not key.endswith(".alpha")}
    if name not in getattr(model, "peft_config", {}):
        saved = ", ".join(sorted({key.split(".")[0] for key in tensors})) or "nothing"
        raise ModelError(
            f"The adapter {file} has nothing for the {part} of {family.title}: it holds {saved}.\n"
            f"  Give a LoRA file that was made for {family.title}, or the family that this one was made for."
        )
    adapted = {text: getattr(pipe, text) for text in filter(stock.is_text_encoder, pipe.components)} | {part: model}
    inside = {
        stock.key_prefix(component) + key: tensor
        for component, its in adapted.items()
        if name in getattr(its, "peft_config", {})
        for key, tensor in get_peft_model_state_dict(its, adapter_name=name).items()
    }
    unmatched = []
    for key, tensor in tensors.items():
        expected = inside.get(key, inside.get(stock.key_prefix(part) + key))
        if (
            expected is None
            or expected.shape != tensor.shape
            or not torch.equal(expected.cpu(), tensor.to(expected.dtype))
        ):
            unmatched.append(key)
    return Loaded(len(tensors) - len(unmatched), unmatched)


def render(pipe: DiffusionPipeline, family: Family, recipe: Recipe, options: Config) -> Rendered:
    """What a recipe makes, by a plain pipeline call with the prompt as text."""
    pipe = select_pipeline(family, pipe, bool(recipe.pictures), options, bool(recipe.mask))
    pipe.scheduler = schedulers.apply(pipe.scheduler, recipe.scheduler)
    prompt = _prompt(pipe, family, recipe, options)
    call = filter_kwargs(family, {**prompt, **call_kwargs(family, recipe, options)}, options, bool(recipe.mask))
    family.prepare(pipe, recipe.width, recipe.height, options)
    with caches.use_cache(getattr(pipe, family.denoiser_component), recipe.cache, recipe.steps):
        return convert_output(pipe, family, pipe(**call, return_dict=False))


def _prompt(pipe: DiffusionPipeline, family: Family, recipe: Recipe, options: Config) -> dict[str, object]:
    """The prompt as text. Embedded where the pipeline would read it otherwise than training did: an empty one, for
    which some have no text, a negative one where they read those by other rules, and any where options say so."""
    is_caption = family.spec.negative_is_caption or not recipe.negative
    if (
        recipe.prompt
        and is_caption
        and not any(getattr(options, name) == value for name, value in family.unlike_pipeline_text.items())
    ):
        return family.pipeline_kwargs_from_prompt(recipe.prompt, recipe.negative, options)
    captions = [recipe.prompt, recipe.negative]
    if images := text_encoder_images(family, recipe, options):
        entries = [encode_caption_with_images(family, pipe, caption, images, options) for caption in captions]
    else:
        entries = encode_captions(family, pipe, captions, options)
    return family.pipeline_kwargs_from_embeds(*(family.stack_text([entry]) for entry in entries))


def run_of(path: Path) -> dict[str, object]:
    """The options of the run that a checkpoint or result belongs to, from the `run.lock.json` beside or above it."""
    for folder in (path if path.is_dir() else path.parent, *path.resolve().parents):
        lock = folder / "run.lock.json"
        if lock.exists():
            try:
                rows = json.loads(lock.read_text(encoding="utf-8"))
                values = {name: row["value"] for name, row in rows["options"].items()}
                return {**values, "$base": rows["base"]["source"], "$folder": folder}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
                raise DataError(
                    f"{lock} cannot be read ({cause}), so it is not known what {path} was made with.\n"
                    "  Run the same `darkroom train` again: it goes on where it was and writes the file anew."
                ) from cause
    raise ModelError(f"No run.lock.json belongs to {path}.\n  Give --model_family and --model_flavour (or --model).")
