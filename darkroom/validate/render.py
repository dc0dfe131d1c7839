"""Pictures and clips from live weights through the stock diffusers pipeline."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from darkroom.core.errors import ConfigError
from darkroom.core.optional import need
from darkroom.core.units import parse_resolutions
from darkroom.families import latents as latent_space
from darkroom.families.base import Family
from darkroom.families.components import Parts
from darkroom.media.look import Look
from darkroom.validate import clip, schedulers
from darkroom.validate.clip import Made
from darkroom.validate.prompts import Prompt
from darkroom.validate.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Picture:
    """A rendered prompt: `index` counts pictures of the same prompt."""

    prompt: Prompt
    index: int
    made: Made
    recipe: Recipe

    @property
    def size(self) -> str:
        """`WxH`."""
        return f"{self.recipe.width}x{self.recipe.height}"


@contextlib.contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode without gradients, and torch's global generators are left as they were."""
    was_training = model.training
    model.eval()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        model.train(was_training)


class Renderer:
    """Renders prompts whose text is encoded already: `text(prompt, looks)` gives the condition of one caption, read
    with the pictures that are seen with it.

    `start` is the path of the picture that prompts start from which bring none, where the flavour starts from some.
    """

    def __init__(self, parts: Parts, options: Any, text: Callable[..., dict[str, Tensor]], start: str = ""):
        self.parts, self.options, self.text, self.family = parts, options, text, parts.family
        self.start = start
        self.changes = schedulers.changes(options, self.family.prediction == "flow_matching")

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raises ConfigError if a prompt lacks the picture it has to start from, or clips the package to write them."""
        if self.fps:
            need("av", "video", "Validation of a model that makes clips")
        if self.options.model_flavour not in self.family.tiny_names():
            for package in self.family.render_packages:
                need(package, "", f"Validation of {self.family.title}")
        allowed = self.family.pictures_for(self.options)
        wrong = {prompt.name: count for prompt in prompts if (count := len(self._pictures_of(prompt))) not in allowed}
        if wrong:
            raise ConfigError(
                "validation_prompt",
                ", ".join(wrong),
                "",
                f"{self.family.title} starts from {how_many(allowed)} here, and these prompts bring "
                f"{', '.join(map(str, wrong.values()))}.",
                'Give them as "name": {"prompt": "...", "image": "start.png"} in a user_prompt_library, several as a '
                "list, and set validation_disable_unconditional, or set validation_disable.",
            )

    def _pictures_of(self, prompt: Prompt) -> tuple[str, ...]:
        allowed = self.family.pictures_for(self.options)
        if not allowed[-1]:
            return ()
        return prompt.pictures or (self.start,) * max(1, allowed[0]) * bool(self.start)

    @property
    def fps(self) -> float:
        """Frames per second of what is rendered; 0 for pictures."""
        rate = self.family.fps_for(self.options.model_flavour)
        return float(self.options.framerate or rate) if rate else 0.0

    def recipes(self, prompts: Iterable[Prompt], step: int, weights: str) -> Iterator[tuple[Prompt, int, Recipe]]:
        """Every picture to make: prompts x resolutions x images, in that order."""
        o = self.options
        multiple = self.parts.latents.downscale * self.parts.latents.patch
        sizes = parse_resolutions(o.validation_resolution or str(o.resolution), multiple)
        first = o.validation_seed if o.validation_seed is not None else o.seed or 0
        if o.validation_randomize:
            first = int(torch.randint(2**31, ()))
        for prompt in prompts:
            for index, (width, height) in enumerate(s for s in sizes for _ in range(o.num_validation_images)):
                yield (
                    prompt,
                    index,
                    Recipe(
                        prompt=prompt.text,
                        negative=o.validation_negative_prompt or "",
                        width=width,
                        height=height,
                        steps=o.validation_num_inference_steps,
                        seed=first + index % o.num_validation_images,
                        seed_device="cpu" if o.validation_seed_source == "cpu" else self.parts.device.type,
                        call=call_of(self.family, width, height, o),
                        scheduler=self.changes,
                        strength=prompt.strength,
                        step=step,
                        weights=weights,
                        pictures=self._pictures_of(prompt),
                        fps=self.fps,
                    ),
                )

    def render(self, model: nn.Module, prompts: Iterable[Prompt], step: int, weights: str) -> Iterator[Picture]:
        """Pictures of the model's present weights."""
        with resting(model):
            pipe = self.parts.assemble(model, self.parts.vae(), self.parts.scheduler())
            for prompt, index, recipe in self.recipes(prompts, step, weights):
                with _strength(model, recipe.strength):
                    yield Picture(prompt, index, self._made(pipe, recipe), recipe)

    def _made(self, pipe: Any, recipe: Recipe) -> Made:
        model = getattr(pipe, self.family.denoiser_part)
        looks = looks_of(self.family, recipe, self.options)
        text, negative = (self._condition(t, looks, model) for t in (recipe.prompt, recipe.negative))
        return draw(pipe, self.parts, recipe, self.family.embedded_call(text, negative), self.options)

    def _condition(self, caption: str, looks: list[Look], model: Any) -> dict[str, Tensor]:
        entry = self.family.stack_text([self.text(caption, looks)])
        return {
            name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
            for name, value in entry.items()
        }


def wanted(parts: Any, options: Any, prompts: Iterable[Prompt]) -> tuple[list[str], list[tuple[str, list[Look]]]]:
    """What validation needs encoded: captions, and captions with the pictures that are seen with them."""
    alone: list[str] = []
    seen: list[tuple[str, list[Look]]] = []
    for _, _, recipe in [] if options.validation_disable else Renderer(parts, options, dict).recipes(prompts, 0, ""):
        looks = looks_of(parts.family, recipe, options)
        for caption in (recipe.prompt, recipe.negative):
            if looks:
                seen.append((caption, looks))
            else:
                alone.append(caption)
    return alone, seen


def pictures_read(family: Family, recipe: Recipe, options: Any) -> list[Any]:
    """The PIL pictures that the text encoder looks at with a recipe's prompt."""
    if not recipe.pictures or not family.flavour(options.model_flavour).reads or family.control(options):
        return []
    given = started_from(family, recipe, options)["image"]
    return given if isinstance(given, list) else [given]


def looks_of(family: Family, recipe: Recipe, options: Any) -> list[Look]:
    """The same as pictures with names."""
    found = []
    for picture in pictures_read(family, recipe, options):
        pixels = np.asarray(picture.convert("RGB"))
        name = hashlib.sha256(pixels.tobytes() + repr(pixels.shape).encode()).hexdigest()
        found.append(Look(name, pixels.view))
    return found


def draw(pipe: Any, parts: Parts, recipe: Recipe, prompt: dict[str, Any], options: Any) -> Made:
    """What a recipe makes. The pipeline samples; the VAE decodes in its own precision, which may be wider."""
    pipe = parts.family.drawing(pipe, bool(recipe.pictures), options)
    pipe.scheduler = schedulers.apply(pipe.scheduler, recipe.scheduler)
    call = arguments(parts.family, recipe, options)
    given = parts.family.known_to_pipeline({**prompt, **call}, options)
    parts.family.prepare(pipe, recipe.width, recipe.height, options)
    if parts.family.pipeline_decodes:
        return finished(pipe, parts.family, pipe(**given, output_type="np", return_dict=False))
    sampled = pipe(**given, output_type=parts.family.raw_output, return_dict=False)[0]
    scale = parts.latents.downscale
    latents = parts.family.from_pipeline(sampled, recipe.height // scale, recipe.width // scale)
    return Made(clip.from_pixels(latent_space.decode(parts.vae(), latents.float(), parts.latents)))


def finished(pipe: Any, family: Family, returned: Any) -> Made:
    """What a stock pipeline returned."""
    return Made(clip.from_output(returned[0]), family.sound_of(pipe, returned))


def call_of(family: Family, width: int, height: int, options: Any) -> dict[str, Any]:
    """What a recipe keeps of the pipeline's call; the size itself is a line of its own there."""
    call = {**family.call(options), **family.size_call(width, height, options)}
    return {name: value for name, value in call.items() if name not in ("width", "height")}


def arguments(family: Family, recipe: Recipe, options: Any) -> dict[str, Any]:
    """A recipe as arguments of the stock pipeline's call, all but the prompt. Reads the picture that it starts from."""
    call = {**recipe.call, **family.size_call(recipe.width, recipe.height, options)}
    if recipe.pictures:
        call |= started_from(family, recipe, options)
    call["num_inference_steps"] = recipe.steps
    return {**call, "generator": torch.Generator(recipe.seed_device).manual_seed(recipe.seed)}


def started_from(family: Family, recipe: Recipe, options: Any) -> dict[str, Any]:
    """The recipe's pictures as arguments of the call."""
    from PIL import Image

    pictures = []
    for path in recipe.pictures:
        with Image.open(path) as picture:
            pictures.append(picture.convert("RGB"))
    if family.control(options):
        return family.control_call(pictures[0], recipe.width, recipe.height, options)
    return family.pictures_call(pictures, recipe.width, recipe.height, options)


def how_many(allowed: range) -> str:
    """A number of pictures, for people."""
    least, most = allowed[0], allowed[-1]
    number = str(most) if least == most else f"{least} to {most}"
    return f"{number} picture{'' if most == 1 else 's'}"


@contextlib.contextmanager
def _strength(model: Any, strength: float) -> Iterator[None]:
    """Inside, the adapter counts `strength` times."""
    if strength == 1.0:
        yield
        return
    from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers

    scale_lora_layers(model, strength)
    try:
        yield
    finally:
        unscale_lora_layers(model, strength)
