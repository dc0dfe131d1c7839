"""`darkroom generate`: pictures and clips from a base and adapters."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def count(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
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
    p.add_argument(
        "--image",
        action="append",
        default=[],
        help="a picture to start from; again for more",
    )
    p.add_argument("--frames", type=count, help="the length of clips; left out, what the flavour validates with")
    p.add_argument("--steps", type=count)
    p.add_argument("--guidance", type=float)
    p.add_argument("--guidance_real", type=float)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--count", type=count, default=1, help="pictures per prompt, with seeds counting up")
    p.add_argument("--output", default="pictures", help="the folder to write into")
    return p


def run(argv: list[str]) -> int:
    """Render and say where the pictures are."""
    chosen = parser().parse_args(argv)
    import torch

    from darkroom import families
    from darkroom.core.errors import ModelError
    from darkroom.core.files import safe_name
    from darkroom.core.units import parse_resolutions
    from darkroom.families.repository import locate
    from darkroom.tools import generate
    from darkroom.validate.recipe import Recipe
    from darkroom.validate.render import call_of, how_many

    adapters = [generate.AdapterFile.parse(text) for text in chosen.adapter]
    known = settings(chosen, adapters)
    family = families.get(known["model_family"])
    if known["model_flavour"] and known["model_flavour"] not in family.flavour_names():
        names = ", ".join(family.flavour_names())
        raise ModelError(f"{family.title} has no flavour '{known['model_flavour']}'.\n  Choose one of: {names}.")
    options = SimpleNamespace(**{**defaults(family, known), **{k: v for k, v in known.items() if v is not None}})
    facts = family.latents_for(known["model_flavour"])
    fps = family.fps_for(known["model_flavour"])
    allowed = family.pictures_for(options)
    if len(chosen.image) not in allowed:
        change = "Give --image, once for each." if allowed[-1] else "Leave --image out."
        raise ModelError(f"This flavour of {family.title} starts from {how_many(allowed)}.\n  {change}")
    wanted = chosen.resolution or options.validation_resolution or options.resolution
    try:
        (width, height), *_ = parse_resolutions(wanted, facts.downscale * facts.patch)
    except ValueError as cause:
        raise ModelError(f"--resolution: {cause}.") from cause
    base = chosen.model or known.get("$base") or locate(family.flavour(known["model_flavour"]).repository, family)
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    pipe = generate.stock_pipeline(family, base, dtype, options)
    counted = generate.load_adapters(pipe, family, adapters, options)
    for adapter, loaded in zip(adapters, counted, strict=True):
        print(f"{adapter.path}: {loaded.matched} keys matched, {len(loaded.unmatched)} not")
    for prompt in chosen.prompt:
        for i in range(chosen.count):
            recipe = Recipe(
                prompt, chosen.negative_prompt, width, height, options.validation_num_inference_steps,
                chosen.seed + i, "cpu", call_of(family, width, height, options), {},
                pictures=tuple(chosen.image), fps=(options.framerate or fps) if fps else 0.0,
            )  # fmt: skip
            path = Path(chosen.output) / f"{safe_name(prompt, 60)}_{chosen.seed + i}.png"
            made = generate.render(pipe, family, recipe, options)
            recipe.save(made.image, path)
            print(path)
            if made.is_clip:
                made.write(path.with_suffix(".mp4"), recipe.fps)
                print(path.with_suffix(".mp4"))
    return 0


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
    }
    return {**known, **{k: v for k, v in given.items() if v is not None}}


def defaults(family: Any, known: dict[str, Any]) -> dict[str, Any]:
    """Option values of the family and flavour over the general ones."""
    from darkroom.options.config import every_option

    general = {info.name: info.default for info in every_option()}
    return {**general, **family.option_defaults(known.get("model_flavour"))}
