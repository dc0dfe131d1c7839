"""`darkroom generate`: images and clips from a base and adapters."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from darkroom.families.base import Family
    from darkroom.options.config import Config
    from darkroom.tools.generate import AdapterFile
    from darkroom.validate.recipe import Recipe


def count(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    from darkroom.validate import caches

    p = argparse.ArgumentParser("darkroom generate", description="Make pictures through the stock diffusers pipeline.")
    p.add_argument("--model", help="a diffusers folder, a hub id, or a run's pipeline/ folder")
    p.add_argument("--model_family", help="the family; read from the run when an adapter of a run is given")
    p.add_argument("--model_flavour", help="the flavour, in place of --model")
    p.add_argument(
        "--adapter", action="append", default=[], metavar="FILE[:STRENGTH]", help="may be given several times"
    )
    p.add_argument("--prompt", action="append", required=True, help="may be given several times")
    p.add_argument("--negative_prompt", default="")
    p.add_argument("--resolution", help="512 or 768x512; left out, what the run or flavour validates with")
    p.add_argument("--image", action="append", default=[], help="a picture to start from; again for more")
    p.add_argument("--mask", default="", help="draw --image anew where this picture of its size is white")
    p.add_argument("--frames", type=count, help="the length of clips; left out, what the flavour validates with")
    p.add_argument("--layers", type=count, help="into how many layers a picture is taken apart, by models that do so")
    p.add_argument("--steps", type=count)
    p.add_argument(
        "--cache", default="none", choices=[caches.OFF, *caches.CONFIG_CLASSES], help="guess some of the answers"
    )
    p.add_argument("--magcache_threshold", type=float, help="with --cache magcache, the error that may add up")
    p.add_argument("--magcache_k", type=count, help="steps that are guessed in a row at most")
    p.add_argument("--magcache_retention_ratio", type=float, help="share of the first steps that are always computed")
    p.add_argument("--guidance", type=float)
    p.add_argument("--guidance_real", type=float)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--count", type=count, default=1, help="pictures per prompt, with seeds counting up")
    p.add_argument("--output", default="pictures", help="the folder to write into")
    return p


def run(argv: list[str]) -> int:
    """Render and say where the images are."""
    arguments = parser().parse_args(argv)
    from darkroom.tools import generate

    adapters = [generate.AdapterFile.parse(text) for text in arguments.adapter]
    run_settings = settings(arguments, adapters)
    family = family_of(run_settings)
    options = options_of(arguments, family, run_settings)
    validate_arguments(arguments, family, options)
    tasks = list(recipes(arguments, family, options))
    pipe = pipeline(arguments, family, options, run_settings, adapters)
    for path in render_images(pipe, family, options, tasks):
        print(path)
    return 0


def family_of(run_settings: dict[str, object]) -> Family:
    """The family and flavour. Raises ConfigError if there is no such one."""
    from darkroom import families

    return families.get(str(run_settings["model_family"]), cast("str | None", run_settings["model_flavour"]))


def options_of(arguments: argparse.Namespace, family: Family, run_settings: dict[str, object]) -> Config:
    """What is known, over the defaults of the family and flavour."""
    from darkroom.options.config import construct
    from darkroom.pretrained.repository import COMPLETE_BASE

    whole = COMPLETE_BASE if arguments.model and is_of_a_run(arguments.model) else {}
    return construct(
        {**defaults(family, run_settings), **{k: v for k, v in run_settings.items() if v is not None}, **whole}
    )


def validate_arguments(arguments: argparse.Namespace, family: Family, options: Config) -> None:
    """Raises ModelError for images or a cache that the model has no use for."""
    from darkroom.core.errors import ModelError
    from darkroom.validate.render import describe_count, validate_cache, validate_mask

    allowed = family.image_counts(options)
    if arguments.mask:
        if problem := validate_mask(family, arguments.image, arguments.mask, options):
            raise ModelError(f"--mask {arguments.mask}: {problem}\n  Leave --mask out, or give another.")
    elif len(arguments.image) not in allowed:
        change = "Give --image, once for each." if allowed[-1] else "Leave --image out."
        raise ModelError(f"This flavour of {family.title} starts from {describe_count(allowed)}.\n  {change}")
    if problem := validate_cache(family, options):
        raise ModelError(f"--cache {arguments.cache}: {problem}\n  Leave it out.")


def recipes(arguments: argparse.Namespace, family: Family, options: Config) -> Iterator[tuple[Path, Recipe]]:
    """Every image to make, and where it goes: prompts x count. Raises ModelError for a size that is none."""
    from darkroom.core.errors import ModelError
    from darkroom.core.files import safe_name
    from darkroom.core.units import parse_resolutions
    from darkroom.validate.recipe import Recipe
    from darkroom.validate.render import recipe_kwargs

    facts, fps = family.spec.latents, family.spec.fps
    size = str(arguments.resolution or options.validation_resolution or options.resolution)
    try:
        requested_size, *_ = parse_resolutions(size, facts.downscale * facts.patch)
    except ValueError as cause:
        raise ModelError(f"--resolution: {cause}.") from cause
    width, height = family.round_size(*requested_size, options)
    for prompt in arguments.prompt:
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            recipe = Recipe(
                prompt, arguments.negative_prompt, width, height, options.validation_num_inference_steps,
                seed, "cpu", recipe_kwargs(family, width, height, options), {},
                pictures=tuple(arguments.image), fps=(options.framerate or fps) if fps else 0.0,
                told={name: getattr(options, name) for name in family.prepared_options}, mask=arguments.mask,
            )  # fmt: skip
            yield Path(arguments.output) / f"{safe_name(prompt, 60)}_{seed}.png", recipe


def pipeline(
    arguments: argparse.Namespace,
    family: Family,
    options: Config,
    run_settings: dict[str, object],
    adapters: list[AdapterFile],
) -> DiffusionPipeline:
    """The stock pipeline with the adapters in it; says how much of each found its place."""
    import torch

    from darkroom.pretrained.repository import locate_repository
    from darkroom.tools import generate

    base = (
        arguments.model
        or cast("str | None", run_settings.get("$base"))
        or locate_repository(family.spec.flavour.repository, family)
    )
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    pipe = generate.stock_pipeline(family, base, dtype, options)
    counted = generate.load_adapters(pipe, family, adapters, options)
    for adapter, loaded in zip(adapters, counted, strict=True):
        print(f"{adapter.path}: {loaded.matched} keys matched, {len(loaded.unmatched)} not")
    return pipe


def render_images(
    pipe: DiffusionPipeline, family: Family, options: Config, tasks: list[tuple[Path, Recipe]]
) -> Iterator[Path]:
    """Draws, and gives each file as it is written. MagCache's ratios are measured first if nobody gave them."""
    from darkroom.tools import generate
    from darkroom.validate import caches

    ratios = options.magcache_mag_ratios
    if options.validation_cache == caches.MAGCACHE and ratios is None:
        first = tasks[0][1]
        network = getattr(pipe, family.denoiser_component)
        ratios = caches.measure_ratios(network, first.steps, lambda: generate.render(pipe, family, first, options))
        print(f"MagCache's ratios, measured on the first picture: {ratios}")
    for path, recipe in tasks:
        recipe = dataclasses.replace(recipe, cache=caches.settings(options, ratios))
        image = generate.render(pipe, family, recipe, options)
        recipe.save(image.image, path)
        yield from (path, *image.write_extra_files(path, recipe.fps))


def is_of_a_run(model: str) -> bool:
    """Did a run write this pipeline?"""
    from darkroom.core.errors import ModelError
    from darkroom.tools.generate import run_of

    try:
        return Path(model).exists() and bool(run_of(Path(model)))
    except ModelError:
        return False


def settings(arguments: argparse.Namespace, adapters: list[AdapterFile]) -> dict[str, object]:
    """What is known of the model: from the arguments, else from the run an adapter belongs to."""
    from darkroom.core.errors import ModelError
    from darkroom.tools.generate import run_of

    run_settings: dict[str, object] = {"model_family": None, "model_flavour": None}
    paths = [a.path for a in adapters] + (
        [Path(arguments.model)] if arguments.model and Path(arguments.model).exists() else []
    )
    for path in paths:
        try:
            run_settings = run_of(path)
            break
        except ModelError:
            continue
    for name in ("model_family", "model_flavour"):
        if getattr(arguments, name):
            # the user names the base, so it is not the run's
            run_settings = {**run_settings, name: getattr(arguments, name), "$base": None}
    if run_settings["model_family"] is None:
        raise ModelError("Which model?\n  Give --model_family and --model_flavour, or --model with --model_family.")
    values = {
        "validation_num_inference_steps": arguments.steps,
        "validation_guidance": arguments.guidance,
        "validation_guidance_real": arguments.guidance_real,
        "validation_num_video_frames": arguments.frames,
        "validation_num_layers": arguments.layers,
        "validation_cache": arguments.cache,
        "magcache_threshold": arguments.magcache_threshold,
        "magcache_k": arguments.magcache_k,
        "magcache_retention_ratio": arguments.magcache_retention_ratio,
    }
    return {**run_settings, **{k: v for k, v in values.items() if v is not None}}


def defaults(family: Family, run_settings: dict[str, object]) -> dict[str, object]:
    """Option values of the family and flavour over the general ones."""
    from darkroom.options.config import every_option

    general = {info.name: info.default for info in every_option()}
    return {**general, **family.spec.defaults}
