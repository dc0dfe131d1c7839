"""Pictures from live weights through the stock diffusers pipeline."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from darkroom.core.units import parse_resolutions
from darkroom.families import latents as latent_space
from darkroom.families.components import Parts
from darkroom.validate import schedulers
from darkroom.validate.prompts import Prompt
from darkroom.validate.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Picture:
    """A rendered prompt: `index` counts pictures of the same prompt."""

    prompt: Prompt
    index: int
    image: Any
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
    """Renders prompts whose text is encoded already: `text(prompt)` gives the condition of one caption."""

    def __init__(self, parts: Parts, options: Any, text: Callable[[str], dict[str, Tensor]]):
        self.parts, self.options, self.text, self.family = parts, options, text, parts.family
        self.changes = schedulers.changes(options, self.family.prediction == "flow_matching")

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
                        call=self.family.call(o),
                        scheduler=self.changes,
                        strength=prompt.strength,
                        step=step,
                        weights=weights,
                    ),
                )

    def render(self, model: nn.Module, prompts: Iterable[Prompt], step: int, weights: str) -> Iterator[Picture]:
        """Pictures of the model's present weights."""
        with resting(model):
            pipe = self.parts.assemble(model, self.parts.vae(), self.parts.scheduler())
            for prompt, index, recipe in self.recipes(prompts, step, weights):
                with _strength(model, recipe.strength):
                    yield Picture(prompt, index, self._picture(pipe, recipe), recipe)

    def _picture(self, pipe: Any, recipe: Recipe) -> Any:
        model = getattr(pipe, self.family.denoiser_part)
        text, negative = (self._condition(t, model) for t in (recipe.prompt, recipe.negative))
        return draw(pipe, self.parts, recipe, self.family.embedded_call(text, negative))

    def _condition(self, caption: str, model: Any) -> dict[str, Tensor]:
        entry = self.family.stack_text([self.text(caption)])
        return {
            name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
            for name, value in entry.items()
        }


def draw(pipe: Any, parts: Parts, recipe: Recipe, prompt: dict[str, Any]) -> Any:
    """One PIL picture. The pipeline samples; the VAE decodes in its own precision, which may be wider."""
    pipe.scheduler = schedulers.apply(pipe.scheduler, recipe.scheduler)
    sampled = pipe(
        **prompt,
        **recipe.call,
        width=recipe.width,
        height=recipe.height,
        num_inference_steps=recipe.steps,
        generator=torch.Generator(recipe.seed_device).manual_seed(recipe.seed),
        output_type="latent",
    ).images
    scale = parts.latents.downscale
    latents = parts.family.from_pipeline(sampled, recipe.height // scale, recipe.width // scale)
    pixels = latent_space.decode(parts.vae(), latents.float(), parts.latents)
    return pipe.image_processor.postprocess(pixels, output_type="pil")[0]


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
