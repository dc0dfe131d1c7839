"""`darkroom generate`: pictures and clips from a base and adapters."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from darkroom.families.base import Family
    from darkroom.options.config import Config
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
    p.add_argument("--cache", default="none", choices=[caches.OFF, *caches.KINDS], help="guess some of the answers")
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
    """Render and say where the pictures are."""
    chosen = parser().parse_args(argv)
    from darkroom.tools import generate

    adapters = [generate.AdapterFile.parse(text) for text in chosen.adapter]
    known = settings(chosen, adapters)
    family = family_of(known)
    options = options_of(chosen, family, known)
    check(chosen, family, options)
    wanted = list(recipes(chosen, family, options))
    pipe = pipeline(chosen, family, options, known, adapters)
    for path in drawn(pipe, family, options, wanted):
        print(path)
    return 0


def family_of(known: dict[str, Any]) -> Family:
    """The family. Raises ModelError if it has not the flavour."""
    from darkroom import families
    from darkroom.core.errors import ModelError

    family, flavour = families.get(known["model_family"]), known["model_flavour"]
    if flavour and flavour not in family.flavour_names():
        names = ", ".join(family.flavour_names())
        raise ModelError(f"{family.title} has no flavour '{flavour}'.\n  Choose one of: {names}.")
    return family


def options_of(chosen: argparse.Namespace, family: Family, known: dict[str, Any]) -> Config:
    """What is known, over the defaults of the family and flavour."""
    from darkroom.options.config import construct
    from darkroom.pretrained.repository import WHOLE

    whole = WHOLE if chosen.model and is_of_a_run(chosen.model) else {}
    return construct({**defaults(family, known), **{k: v for k, v in known.items() if v is not None}, **whole})


def check(chosen: argparse.Namespace, family: Family, options: Config) -> None:
    """Raises ModelError for pictures or a cache that the model has no use for."""
    from darkroom.core.errors import ModelError
    from darkroom.validate.render import how_many, why_no_cache, why_no_mask

    allowed = family.pictures_for(options)
    if chosen.mask:
        if problem := why_no_mask(family, chosen.image, chosen.mask, options):
            raise ModelError(f"--mask {chosen.mask}: {problem}\n  Leave --mask out, or give another.")
    elif len(chosen.image) not in allowed:
        change = "Give --image, once for each." if allowed[-1] else "Leave --image out."
        raise ModelError(f"This flavour of {family.title} starts from {how_many(allowed)}.\n  {change}")
    if problem := why_no_cache(family, options):
        raise ModelError(f"--cache {chosen.cache}: {problem}\n  Leave it out.")


def recipes(chosen: argparse.Namespace, family: Family, options: Config) -> Iterator[tuple[Path, Recipe]]:
    """Every picture to make, and where it goes: prompts x count. Raises ModelError for a size that is none."""
    from darkroom.core.errors import ModelError
    from darkroom.core.files import safe_name
    from darkroom.core.units import parse_resolutions
    from darkroom.validate.recipe import Recipe
    from darkroom.validate.render import call_of

    facts, fps = family.latents_for(options.model_flavour), family.fps_for(options.model_flavour)
    size = str(chosen.resolution or options.validation_resolution or options.resolution)
    try:
        asked, *_ = parse_resolutions(size, facts.downscale * facts.patch)
    except ValueError as cause:
        raise ModelError(f"--resolution: {cause}.") from cause
    width, height = family.drawn_size(*asked, options)
    for prompt in chosen.prompt:
        for seed in range(chosen.seed, chosen.seed + chosen.count):
            recipe = Recipe(
                prompt, chosen.negative_prompt, width, height, options.validation_num_inference_steps,
                seed, "cpu", call_of(family, width, height, options), {},
                pictures=tuple(chosen.image), fps=(options.framerate or fps) if fps else 0.0,
                told=family.told(options), mask=chosen.mask,
            )  # fmt: skip
            yield Path(chosen.output) / f"{safe_name(prompt, 60)}_{seed}.png", recipe


def pipeline(
    chosen: argparse.Namespace, family: Family, options: Config, known: dict[str, Any], adapters: list[Any]
) -> Any:
    """The stock pipeline with the adapters in it; says how much of each found its place."""
    import torch

    from darkroom.pretrained.repository import locate
    from darkroom.tools import generate

    base = chosen.model or known.get("$base") or locate(family.flavour(known["model_flavour"]).repository, family)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    pipe = generate.stock_pipeline(family, base, dtype, options)
    counted = generate.load_adapters(pipe, family, adapters, options)
    for adapter, loaded in zip(adapters, counted, strict=True):
        print(f"{adapter.path}: {loaded.matched} keys matched, {len(loaded.unmatched)} not")
    return pipe


def drawn(
    pipe: DiffusionPipeline, family: Family, options: Config, wanted: list[tuple[Path, Recipe]]
) -> Iterator[Path]:
    """Draws, and gives each file as it is written. MagCache's ratios are measured first if nobody gave them."""
    from darkroom.tools import generate
    from darkroom.validate import caches

    ratios = options.magcache_mag_ratios
    if options.validation_cache == caches.MAGCACHE and ratios is None:
        first = wanted[0][1]
        network = getattr(pipe, family.denoiser_part)
        ratios = caches.measured(network, first.steps, lambda: generate.render(pipe, family, first, options))
        print(f"MagCache's ratios, measured on the first picture: {ratios}")
    for path, recipe in wanted:
        recipe = dataclasses.replace(recipe, cache=caches.settings(options, ratios))
        made = generate.render(pipe, family, recipe, options)
        recipe.save(made.image, path)
        yield from (path, *made.write_beside(path, recipe.fps))


def is_of_a_run(model: str) -> bool:
    """Did a run write this pipeline?"""
    from darkroom.core.errors import ModelError
    from darkroom.tools.generate import run_of

    try:
        return Path(model).exists() and bool(run_of(Path(model)))
    except ModelError:
        return False


def settings(chosen: argparse.Namespace, adapters: list[Any]) -> dict[str, Any]:
    """What is known of the model: from the arguments, else from the run an adapter belongs to."""
    from darkroom.core.errors import ModelError
    from darkroom.tools.generate import run_of

    known: dict[str, Any] = {"model_family": None, "model_flavour": None}
    where = [a.path for a in adapters] + ([Path(chosen.model)] if chosen.model and Path(chosen.model).exists() else [])
    for path in where:
        try:
            known = run_of(path)
            break
        except ModelError:
            continue
    for name in ("model_family", "model_flavour"):
        if getattr(chosen, name):
            # the user names the base, so it is not the run's
            known = {**known, name: getattr(chosen, name), "$base": None}
    if known["model_family"] is None:
        raise ModelError("Which model?\n  Give --model_family and --model_flavour, or --model with --model_family.")
    given = {
        "validation_num_inference_steps": chosen.steps,
        "validation_guidance": chosen.guidance,
        "validation_guidance_real": chosen.guidance_real,
        "validation_num_video_frames": chosen.frames,
        "validation_num_layers": chosen.layers,
        "validation_cache": chosen.cache,
        "magcache_threshold": chosen.magcache_threshold,
        "magcache_k": chosen.magcache_k,
        "magcache_retention_ratio": chosen.magcache_retention_ratio,
    }
    return {**known, **{k: v for k, v in given.items() if v is not None}}


def defaults(family: Any, known: dict[str, Any]) -> dict[str, Any]:
    """Option values of the family and flavour over the general ones."""
    from darkroom.options.config import every_option

    general = {info.name: info.default for info in every_option()}
    return {**general, **family.option_defaults(known.get("model_flavour"))}
