"""Images and clips from live weights through the stock diffusers pipeline."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from darkroom.core.errors import ConfigError, DataError
from darkroom.core.files import write_json
from darkroom.core.optional import import_optional
from darkroom.core.units import parse_resolutions
from darkroom.families.base import Family
from darkroom.families.shared import latents as latent_space
from darkroom.families.shared.conditioning import (
    control_kwargs,
    filter_kwargs,
    images_kwargs,
    inpainting_kwargs,
    select_pipeline,
)
from darkroom.media import images
from darkroom.media.reference_image import ReferenceImage
from darkroom.pretrained.components import Components
from darkroom.pretrained.repository import Repository
from darkroom.validate import caches, clip, previews, schedulers
from darkroom.validate.clip import Rendered
from darkroom.validate.prompts import Prompt
from darkroom.validate.recipe import Recipe

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline
    from numpy.typing import NDArray
    from PIL import Image
    from PIL.Image import Image as PILImage
    from torch.nn import Module

    from darkroom.options.config import Config

# sampling steps that show what an image takes
REHEARSAL_STEPS = 2


@dataclasses.dataclass(frozen=True)
class RenderedImage:
    """A rendered prompt: `index` counts images of the same prompt."""

    prompt: Prompt
    index: int
    output: Rendered
    recipe: Recipe

    @property
    def size(self) -> str:
        """`WxH`."""
        return f"{self.recipe.width}x{self.recipe.height}"


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode without gradients, and torch's global generators are left as they were."""
    was_training = model.training
    model.eval()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        model.train(was_training)


class TextReader(Protocol):
    """Gives the condition of a caption, read with these images."""

    def __call__(self, caption: str, images: Sequence[ReferenceImage] = (), /) -> dict[str, Tensor]: ...


class Renderer:
    """Renders prompts whose text is encoded already: `text(prompt, looks)` gives the condition of one caption, read
    with the images that are seen with it.

    `start` is the path of the image that prompts start from which bring none, where the flavour starts from some.
    `ratios_file` is a file for what MagCache was measured to be, so that it is measured once in a run.
    """

    def __init__(
        self,
        components: Components,
        options: Config,
        text: TextReader,
        start: str = "",
        ratios_file: Path | None = None,
    ):
        self.components, self.options, self.text, self.family = components, options, text, components.family
        self.start, self.ratios_file = start, ratios_file
        self.ratios: list[float] | None = options.magcache_mag_ratios
        # told of every image on its way: prompt, number, recipe, sampling steps taken, what it is by then
        self.on_preview: Callable[[Prompt, int, Recipe, int, Rendered], None] | None = None
        self._decoder: AutoencoderTiny | None = None
        self.changes = schedulers.changes(options, self.family.prediction == "flow_matching")

    def validate_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Raises ConfigError if a prompt lacks the image it has to start from, or clips the package to write them."""
        if self.fps:
            import_optional("av", "video", "Validation of a model that makes clips")
        if not self.family.spec.is_tiny:
            for package in self.family.render_packages:
                import_optional(package, "", f"Validation of {self.family.title}")
        previews.validate_preview_options(self.family, self.options)
        if problem := validate_cache(self.family, self.options):
            cache_name = self.options.validation_cache
            raise ConfigError("validation_cache", cache_name, "", problem, "Set it to none.")
        allowed = self.family.image_counts(self.options)
        prompts = list(prompts)
        for prompt in prompts:
            if prompt.mask and (problem := validate_mask(self.family, prompt.images, prompt.mask, self.options)):
                change = 'Take its "mask" out of the prompt library, or correct it.'
                raise ConfigError("validation_prompt", prompt.name, "", problem, change)
        plain = [prompt for prompt in prompts if not prompt.mask]
        wrong = {prompt.name: count for prompt in plain if (count := len(self._images_of(prompt))) not in allowed}
        if wrong:
            raise ConfigError(
                "validation_prompt",
                ", ".join(wrong),
                "",
                f"{self.family.title} starts from {describe_count(allowed)} here, and these prompts bring "
                f"{', '.join(map(str, wrong.values()))}.",
                'Give them as "name": {"prompt": "...", "image": "start.png"} in a user_prompt_library, several as a '
                "list, and set validation_disable_unconditional, or set validation_disable.",
            )

    def measure(self, model: nn.Module, prompts: Sequence[Prompt]) -> None:
        """Find MagCache's ratios on the first image, unless they are given or kept already."""
        if self.options.validation_cache != caches.MAGCACHE or self.ratios is not None:
            return
        steps = self.options.validation_num_inference_steps
        if self.ratios_file:
            self.ratios = caches.read_ratios(self.ratios_file, steps)
        if self.ratios is None and prompts:
            with self._pipeline(model) as pipe:
                _, _, recipe = next(self.recipes(prompts, 0, "base"))
                plain = dataclasses.replace(recipe, cache={})
                network = getattr(pipe, self.family.denoiser_component)
                self.ratios = caches.measure_ratios(network, steps, lambda: self.render_recipe(pipe, plain))
            if self.ratios_file:
                write_json(self.ratios_file, {str(steps): self.ratios})

    @contextlib.contextmanager
    def _pipeline(self, model: nn.Module) -> Iterator[DiffusionPipeline]:
        """Inside, diffusers' pipeline around the resting model; its parts take turns on the device if that is asked."""
        device, turns = self.components.device, self.options.enable_model_cpu_offload
        with eval_mode(model):
            pipe = self.components.assemble(model, self.components.vae(), self.components.scheduler())
            try:
                if turns:
                    pipe.enable_model_cpu_offload(device=device)
                yield pipe
            finally:
                if turns:
                    pipe.remove_all_hooks()
                    for part in (part for part in pipe.components.values() if isinstance(part, nn.Module)):
                        part.to(device)

    def _images_of(self, prompt: Prompt) -> tuple[str, ...]:
        if prompt.mask:
            return prompt.images
        allowed = self.family.image_counts(self.options)
        if not allowed[-1]:
            return ()
        return prompt.images or (self.start,) * max(1, allowed[0]) * bool(self.start)

    @property
    def fps(self) -> float:
        """Frames per second of what is rendered; 0 for images."""
        rate = self.family.spec.fps
        return float(self.options.framerate or rate) if rate else 0.0

    def recipes(self, prompts: Iterable[Prompt], step: int, weights: str) -> Iterator[tuple[Prompt, int, Recipe]]:
        """Every image to make: prompts x resolutions x images, in that order."""
        seed = int(torch.randint(2**31, ())) if self.options.validation_randomize else None
        for prompt in prompts:
            o = self.options.model_copy(update=dict(prompt.settings)) if prompt.settings else self.options
            yield from self._recipes_of(prompt, o, step, weights, seed)

    def _recipes_of(
        self, prompt: Prompt, o: Config, step: int, weights: str, seed: int | None
    ) -> Iterator[tuple[Prompt, int, Recipe]]:
        """The images of one prompt, by the options `o` that hold for it; `seed` stands before theirs."""
        multiple = self.components.latents.downscale * self.components.latents.patch
        requested = parse_resolutions(o.validation_resolution or str(o.resolution), multiple)
        sizes = [self.family.round_size(*size, o) for size in requested]
        first = seed if seed is not None else o.validation_seed if o.validation_seed is not None else o.seed or 0
        flow = self.family.prediction == "flow_matching"
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
                    seed_device="cpu" if o.validation_seed_source == "cpu" else self.components.device.type,
                    call=recipe_kwargs(self.family, width, height, o),
                    scheduler=schedulers.changes(o, flow) if prompt.settings else self.changes,
                    strength=prompt.strength,
                    step=step,
                    weights=weights,
                    pictures=self._images_of(prompt),
                    fps=self.fps,
                    told={name: getattr(o, name) for name in self.family.prepared_options},
                    mask=prompt.mask,
                    cache=caches.settings(o, self.ratios),
                ),
            )

    def render(self, model: nn.Module, prompts: Iterable[Prompt], step: int, weights: str) -> Iterator[RenderedImage]:
        """Images of the model's present weights."""
        with self._pipeline(model) as pipe:
            for prompt, index, recipe in self.recipes(prompts, step, weights):
                preview = functools.partial(self._preview_arguments, prompt, index, recipe) if self.on_preview else None
                with _strength(model, recipe.strength):
                    yield RenderedImage(prompt, index, self.render_recipe(pipe, recipe, preview), recipe)

    def _preview_arguments(
        self, prompt: Prompt, index: int, recipe: Recipe, pipe: DiffusionPipeline
    ) -> Mapping[str, object]:
        if self._decoder is None:
            self._decoder = self.components.preview_decoder()
        assert self.on_preview is not None
        show, scale = functools.partial(self.on_preview, prompt, index, recipe), self.components.latents.downscale
        size = recipe.height // scale, recipe.width // scale
        return previews.preview_arguments(pipe, self.family, self._decoder, size, self.options, show)

    def render_recipe(
        self,
        pipe: DiffusionPipeline,
        recipe: Recipe,
        preview: Callable[[DiffusionPipeline], Mapping[str, object]] | None = None,
    ) -> Rendered:
        """Render a recipe with a pipeline without text encoders; `preview` returns further arguments of its call."""
        return draw(pipe, self.components, recipe, self.prompt_kwargs(pipe, recipe), self.options, preview)

    def render_shortest(self, model: nn.Module, prompts: Sequence[Prompt], form: str = "np") -> object:
        """What `sample` answers for the largest image after a few steps: it takes the memory of all others."""
        recipes = [recipe for _, _, recipe in self.recipes(prompts, 0, "")]
        largest = max(recipes, key=lambda recipe: recipe.width * recipe.height)
        recipe = dataclasses.replace(largest, steps=min(REHEARSAL_STEPS, largest.steps), cache={})
        with self._pipeline(model) as pipe:
            return sample(pipe, self.components, recipe, self.prompt_kwargs(pipe, recipe), self.options, form=form)

    def prompt_kwargs(self, pipe: DiffusionPipeline, recipe: Recipe) -> dict[str, object]:
        """The pipeline's arguments for a recipe's prompt, read already."""
        model = getattr(pipe, self.family.denoiser_component)
        images = reference_images(self.family, recipe, self.options)
        text, negative = (self._condition(t, images, model) for t in (recipe.prompt, recipe.negative))
        return self.family.pipeline_kwargs_from_embeds(text, negative)

    def _condition(self, caption: str, images: list[ReferenceImage], model: Module) -> dict[str, Tensor]:
        entry = self.family.stack_text([self.text(caption, images)])
        return {
            name: value.to(self.components.device, model.dtype if value.is_floating_point() else value.dtype)
            for name, value in entry.items()
        }


def collect_captions(
    components: Repository, options: Config, prompts: Iterable[Prompt]
) -> tuple[list[str], list[tuple[str, list[ReferenceImage]]]]:
    """What validation needs encoded: captions, and captions with the images that are seen with them."""
    plain: list[str] = []
    with_images: list[tuple[str, list[ReferenceImage]]] = []
    # recipes ask for sizes and names alone, and those a repository knows before anything is loaded
    renderer = Renderer(components, options, dict)  # type: ignore[arg-type]
    for _, _, recipe in [] if options.validation_disable else renderer.recipes(prompts, 0, ""):
        images = reference_images(components.family, recipe, options)
        for caption in (recipe.prompt, recipe.negative):
            if images:
                with_images.append((caption, images))
            else:
                plain.append(caption)
    return plain, with_images


def text_encoder_images(family: Family, recipe: Recipe, options: Config) -> list[PILImage]:
    """The PIL images that the text encoder looks at with a recipe's prompt."""
    if not recipe.pictures or not family.spec.flavour.text_images or family.spec.control(options):
        return []
    inputs = cast("PILImage | list[PILImage]", input_kwargs(family, recipe, options)["image"])
    return inputs if isinstance(inputs, list) else [inputs]


def reference_images(family: Family, recipe: Recipe, options: Config) -> list[ReferenceImage]:
    """The same as images with names."""
    references = []
    for image in text_encoder_images(family, recipe, options):
        pixels = np.asarray(image.convert("RGB"))
        name = hashlib.sha256(pixels.tobytes() + repr(pixels.shape).encode()).hexdigest()
        references.append(ReferenceImage(name, pixels.view))
    return references


def draw(
    pipe: DiffusionPipeline,
    components: Components,
    recipe: Recipe,
    prompt: dict[str, object],
    options: Config,
    preview: Callable[[DiffusionPipeline], Mapping[str, object]] | None = None,
) -> Rendered:
    """What a recipe makes."""
    answer = sample(pipe, components, recipe, prompt, options, preview)
    if components.family.spec.pipeline_decodes:
        return convert_output(pipe, components.family, cast("Sequence[Sequence[PILImage]]", answer))
    return Rendered(clip.from_pixels(cast("Tensor", answer)))


def sample(
    pipe: DiffusionPipeline,
    components: Components,
    recipe: Recipe,
    prompt: dict[str, object],
    options: Config,
    preview: Callable[[DiffusionPipeline], Mapping[str, object]] | None = None,
    form: str = "np",
) -> object:
    """What the pipeline returns where it decodes in a way of its own, in `form`; else pixels (B, 3, H, W) or
    (B, 3, F, H, W): the pipeline samples, and the VAE decodes in its own precision, which may be wider."""
    pipe = select_pipeline(components.family, pipe, bool(recipe.pictures), options, bool(recipe.mask))
    pipe.scheduler = schedulers.apply(pipe.scheduler, recipe.scheduler)
    call = call_kwargs(components.family, recipe, options)
    kwargs = filter_kwargs(components.family, {**prompt, **call}, options, bool(recipe.mask))
    kwargs |= preview(pipe) if preview else {}
    components.family.prepare(pipe, recipe.width, recipe.height, options)
    network = getattr(pipe, components.family.denoiser_component)
    encoding = _encode_in_vae_precision(getattr(pipe, "vae", None))
    with encoding, caches.use_cache(network, recipe.cache, recipe.steps):
        if components.family.spec.pipeline_decodes:
            return pipe(**kwargs, output_type=form, return_dict=False)
        latents = pipe(**kwargs, output_type=components.family.raw_output, return_dict=False)[0]
    scale = components.latents.downscale
    latents = components.family.from_pipeline(latents, recipe.height // scale, recipe.width // scale)
    vae = components.vae()
    if hook := getattr(vae, "_hf_hook", None):
        hook.pre_forward(vae)  # it comes to the device, and what was there goes
    return latent_space.decode(vae, latents.float(), components.latents)


@contextlib.contextmanager
def _encode_in_vae_precision(vae: AutoencoderKL) -> Iterator[None]:
    """Inside, the VAE takes pixels of any precision and answers in theirs: some pipelines give it the denoiser's."""
    if "encode" not in dir(vae):
        yield
        return
    plain, override = vae.encode, vars(vae).get("encode")

    def encode(pixels: Tensor, *args: object, **kwargs: object) -> object:
        answer = plain(pixels.to(vae.dtype), *args, **kwargs)
        if pixels.dtype != vae.dtype and hasattr(answer, "latent_dist"):
            distribution = answer.latent_dist
            answer.latent_dist = type(distribution)(distribution.parameters.to(pixels.dtype))
        return answer

    vae.encode = encode
    try:
        yield
    finally:
        del vae.encode
        if override:
            vae.encode = override


def convert_output(
    pipe: DiffusionPipeline,
    family: Family,
    returned: Sequence[Sequence[NDArray[np.float32] | PILImage | list[PILImage]]],
) -> Rendered:
    """What a diffusers pipeline returned."""
    return Rendered(
        clip.from_output(returned[0]),
        family.audio.extract(pipe, cast("Sequence[Tensor]", returned)) if family.audio else None,
    )


def recipe_kwargs(family: Family, width: int, height: int, options: Config) -> dict[str, object]:
    """What a recipe keeps of the pipeline's call; the size itself is a line of its own there."""
    call = {**family.pipeline_kwargs(options), **family.size_kwargs(width, height, options)}
    return {name: value for name, value in call.items() if name not in ("width", "height")}


def call_kwargs(family: Family, recipe: Recipe, options: Config) -> dict[str, object]:
    """A recipe as arguments of diffusers' pipeline's call, all but the prompt. Reads the image that it starts from."""
    call = {**recipe.call, **family.size_kwargs(recipe.width, recipe.height, options)}
    if recipe.pictures:
        call |= input_kwargs(family, recipe, options)
    call["num_inference_steps"] = recipe.steps
    return {**call, "generator": torch.Generator(recipe.seed_device).manual_seed(recipe.seed)}


def input_kwargs(family: Family, recipe: Recipe, options: Config) -> dict[str, object]:
    """The recipe's images as arguments of the call: first what is followed, if anything is, then what starts."""
    call: dict[str, object] = {}
    starts = list(recipe.pictures)
    if family.spec.control(options):
        control_path, *starts = starts
        first = _as_trained(control_path)  # also says what cannot be read
        with images.open_image(control_path) as several:
            control = several if getattr(several, "n_frames", 1) > 1 else first
            call = control_kwargs(family, control, recipe.width, recipe.height, options)
    layered = family.spec.latents.layered
    inputs = [_as_trained(path, layered) for path in starts]
    if recipe.mask:
        mask = _as_trained(recipe.mask, convert=False)
        return inpainting_kwargs(family, inputs[0], mask, recipe.width, recipe.height, options)
    return call | (images_kwargs(family, inputs, recipe.width, recipe.height, options) if inputs else {})


def _as_trained(path: str, layered: bool = False, convert: bool = True) -> Image.Image:
    """A prompt's image as a sample would be seen: upright, and in sRGB with `convert`. Raises DataError."""
    load = images.load_rgba if layered else images.load_rgb
    try:
        return load(Path(path).read_bytes(), convert)
    except (OSError, images.BadImage) as cause:
        raise DataError(f"The image {path} of a prompt cannot be read: {cause}.\n  Replace it.") from cause


def validate_cache(family: Family, options: Config) -> str:
    """What is wrong with guessing a denoiser's answers, if anything is."""
    if options.validation_cache == caches.OFF:
        return ""
    if len(family.spec.denoisers) > 1:
        return f"This flavour of {family.title} has several denoisers, and a step is counted for one of them only."
    return "" if family.caches else f"diffusers has no caches for {family.title} that tell guided answers from others."


def validate_mask(family: Family, image_paths: Sequence[str], mask: str, options: Config) -> str:
    """What is wrong with drawing an image anew where a mask is white; empty if nothing is."""
    if not family.spec.active_inpainting(options):
        other = " with a control picture" if family.spec.control(options) else ""
        return f"{family.title} has no stock pipeline that draws parts of a picture anew{other}."
    if len(image_paths) != 1:
        return f"A mask goes with one picture, and there are {len(image_paths)}."
    try:
        sizes = images.read_size(image_paths[0]), images.read_size(mask)
    except (OSError, images.BadImage) as cause:
        return f"The picture or its mask cannot be read: {cause}."
    if sizes[0] != sizes[1]:
        return "The mask is {}x{} and its picture {}x{}.".format(*sizes[1], *sizes[0])
    return ""


def describe_count(allowed: range) -> str:
    """A number of images, for people."""
    minimum, maximum = allowed[0], allowed[-1]
    number = str(maximum) if minimum == maximum else f"{minimum} to {maximum}"
    return f"{number} picture{'' if maximum == 1 else 's'}"


@contextlib.contextmanager
def _strength(model: Module, strength: float) -> Iterator[None]:
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
