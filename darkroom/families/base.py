"""The base class of all families: facts about an architecture, and the few methods that only it can implement.

A family file does not import torch at its top, so listing families and printing a plan are fast; methods that use
tensors import it when they run. Classes of diffusers are named as text and found by `shared.classes`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from darkroom.core.errors import ConfigError
from darkroom.families.shared.spec import (
    AudioSpec,
    ComponentSpecs,
    ControlChannels,
    ControlInput,
    ControlNet,
    Flavour,
    HiddenStates,
    Inpainting,
    Latents,
    Limits,
)
from darkroom.families.shared.text import detach_entry, split_entries, stack_entries

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image as PILImage
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.diffusion.shift import ShiftLine
    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.families.shared.types import Autoencoder, Cond, Kwargs, Settings
    from darkroom.options.config import Config


EMBEDDED = "embedded:"
TINY = "tiny:"
CONTROLNET = "controlnet"
# key in the condition of a training step: values that are also on the CPU: noise levels "t" (B,) and cached text
ON_HOST = "on_host"
# maximum number of images of a prompt
MAX_IMAGES = 10

# the first of the streams that are denoised: the latents of images and videos
LATENTS = "latents"


class Family:
    """One architecture. Subclasses set the class attributes and implement `encode_text` and `predict`.

    Tensors: x_t (B, C, H, W) normalized latents, for video (B, C, F, H, W); t (B,), a fraction 0..1 (1 = noise) for
    flow families, an index 0..999 for discrete ones; cond a dict of (B, ...) tensors, or of tuples of them, the cached
    text condition plus `model_inputs`.

    A `Flavour` overrides attributes of its family; the `..._for` methods return the resolved values.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    pipeline: ClassVar[str]
    denoiser: ClassVar[str]
    denoiser_component: ClassVar[str] = "transformer"
    prediction: ClassVar[str]
    latents: ClassVar[Latents]
    blocks: ClassVar[tuple[str, ...]]
    # what the blocks return
    hidden_states: ClassVar[HiddenStates] = HiddenStates()
    targets: ClassVar[Mapping[str, Sequence[str]]]
    flavours: ClassVar[Mapping[str, Flavour]]
    default_flavour: ClassVar[str]
    tiny: ClassVar[ComponentSpecs]
    # further tiny flavours: name to the published flavour that they are a small copy of
    tinies: ClassVar[Mapping[str, str]] = {}
    defaults: ClassVar[Settings] = {}
    # config values of the published denoiser that differ from its class's defaults, by flavour; "": all others
    sizes: ClassVar[Mapping[str, Settings]] = {}
    # the same for the other networks, by flavour and component; "": all flavours
    component_sizes: ClassVar[Mapping[str, Mapping[str, Settings]]] = {}
    supports: ClassVar[frozenset[str]] = frozenset({"lora", "full", "gradient_checkpointing", "images"})
    # (tokens, tokens, log-shift, log-shift): two points of the resolution-dependent shift, if published
    shift_line: ClassVar[tuple[int, int, float, float] | None] = None
    fps: ClassVar[float | None] = None
    controlnet: ClassVar[ControlNet | None] = None
    control_channels: ClassVar[ControlChannels | None] = None
    # for the flavours that use the family's own pipeline
    inpainting: ClassVar[Inpainting | None] = None
    # options that load a text encoder from a source of its own: option to component
    text_components: ClassVar[Mapping[str, str]] = {}
    # the CLIP text encoders that can be trained, by their names in diffusers' LoRA loader
    trainable_text: ClassVar[tuple[str, ...]] = ()

    # components of the pipeline that neither encoding nor rendering needs
    unused_components: ClassVar[tuple[str, ...]] = ()
    # packages that rendering with a published flavour needs
    render_packages: ClassVar[tuple[str, ...]] = ()
    # the scheduler's sigma is the ratio of noise to data, t / (1 - t), and not t
    sigma_is_ratio: ClassVar[bool] = False
    # frozen denoisers that the pipeline uses for guidance
    guidance_denoisers: ClassVar[tuple[str, ...]] = ()
    # the denoiser's argument with the role of each token: padding is 0, image tokens come last
    segment_argument: ClassVar[str | None] = None
    # the pipeline decodes in its own way, not with one call of the VAE's decoder
    pipeline_decodes: ClassVar[bool] = False
    # the `output_type` with which the pipeline returns latents
    raw_output: ClassVar[str] = "latent"
    # further denoised streams: key in the sample's extras to the network's argument
    extra_streams: ClassVar[Mapping[str, str]] = {}
    # format of the audio of clips; None for families without audio
    audio: ClassVar[AudioSpec | None] = None
    # components that published folders lack, and the repositories that have them in a subfolder of that name
    component_repositories: ClassVar[Mapping[str, str]] = {}
    guidance_input: ClassVar[bool] = False
    # when the network passes an attention mask, for example for text padding; "batches": if captions of different
    # lengths are in one batch
    attention_masks: ClassVar[Literal["never", "always", "batches"]] = "never"
    # pipeline arguments that switch guidance off
    guidance_off: ClassVar[Settings] = {"guidance_scale": 1.0}
    # repository of a tiny decoder of the latents, for previews
    previews: ClassVar[str | None] = None
    # diffusers' step caches work and keep the guided and unguided passes apart
    caches: ClassVar[bool] = False
    # where it deviates from the pipeline because that is wrong, as sentences
    corrects: ClassVar[str] = ""
    # the pipeline encodes a negative prompt like any caption, except the empty one
    negative_is_caption: ClassVar[bool] = True

    # -- options ---------------------------------------------------------------------------------------------------

    def flavour(self, name: str | None) -> Flavour:
        """The flavour called `name`, or the default one. `tiny` exists for every family. Raises KeyError."""
        published = self.flavours[self.base_flavour(name)]
        if name not in self.tiny_names():
            return published
        facts = self.latents_for(name)
        step = max(16, facts.downscale * facts.patch)
        tiny_defaults: dict[str, Any] = {"aspect_bucket_alignment": step}
        if facts.temporal:
            tiny_defaults["validation_num_video_frames"] = facts.temporal + 1
        defaults = {**published.defaults, **TINY_DEFAULTS, **tiny_defaults, **self.specs_for(name).defaults}
        return dataclasses.replace(
            published,
            repository=f"{TINY}{name}",
            defaults=defaults,
            note="",
            separate_denoiser=None,
            distilled="",
            assistant="",
        )

    def flavour_names(self) -> list[str]:
        """Published flavours, then the tiny ones."""
        return [*self.flavours, *self.tiny_names()]

    def tiny_names(self) -> list[str]:
        """`tiny`, a small copy of the default flavour, and further tiny flavours."""
        return ["tiny", *self.tinies]

    def base_flavour(self, flavour: str | None) -> str:
        """The published flavour that `flavour` is or that it is a small copy of."""
        name = flavour or self.default_flavour
        return {"tiny": self.default_flavour, **self.tinies}.get(name, name)

    def denoiser_sizes(self, flavour: str | None) -> Settings | None:
        """Config values of the published denoiser that differ from its class's defaults; None if unknown."""
        if self.flavour(flavour).repository.startswith((EMBEDDED, TINY)):
            return None
        return self.sizes.get(flavour or self.default_flavour, self.sizes.get(""))

    def component_sizes_for(self, flavour: str | None) -> Mapping[str, Settings]:
        """The same for a published base's other networks, by component; unknown ones are left out."""
        return {**self.component_sizes.get("", {}), **self.component_sizes.get(flavour or self.default_flavour, {})}

    def latents_for(self, flavour: str | None) -> Latents:
        """The latent space of a flavour."""
        return self.flavours[self.base_flavour(flavour)].latents or self.latents

    def pipeline_for(self, flavour: str | None) -> str:
        """The name of a flavour's diffusers pipeline."""
        return self.flavours[self.base_flavour(flavour)].pipeline or self.pipeline

    def text_pipeline_for(self, flavour: str | None) -> str:
        """The name of the pipeline that encodes a flavour's text: the family's own needs the fewest components."""
        return self.pipeline

    def specs_for(self, flavour: str | None) -> ComponentSpecs:
        """The components of a flavour: classes, and their configs in its tiny model."""
        return self.flavours[self.base_flavour(flavour)].tiny or self.tiny

    def guidance_off_for(self, flavour: str | None) -> Settings:
        """Pipeline arguments that switch guidance off for a flavour."""
        return self.guidance_off

    def denoiser_components_for(self, flavour: str | None) -> tuple[str, ...]:
        """The denoisers of a flavour's base, as components of its pipeline; the one for high noise first."""
        return self.flavours[self.base_flavour(flavour)].experts or (self.denoiser_component,)

    def trainable_components_for(self, flavour: str | None) -> tuple[str, ...]:
        """The denoisers that a run trains."""
        return self.flavours[self.base_flavour(flavour)].trainable or self.denoiser_components_for(flavour)

    def trainable_text_for(self, flavour: str | None) -> tuple[str, ...]:
        """The text encoders of a flavour that can be trained."""
        return tuple(name for name in self.trainable_text if name in self.specs_for(flavour).encoders)

    def adapter_components(self, options: Config) -> tuple[str, ...]:
        """The pipeline components that a run's adapter is for."""
        return (CONTROLNET,) if options.controlnet else self.trainable_components_for(options.model_flavour)

    def noise_range(self, options: Config) -> tuple[float, float]:
        """The range of noise levels that a run trains, 0..1: (0, 1) is every level.

        A single expert gets its side of the boundary; `refiner_training` splits the range further.
        """
        low, high = 0.0, 1.0
        denoisers, trained = self.denoiser_components_for(options.model_flavour), self.adapter_components(options)
        boundary = options.timestep_boundary
        if boundary is not None and len(denoisers) > 1 and trained == denoisers[:1]:
            low = boundary
        elif boundary is not None and len(denoisers) > 1 and trained == denoisers[1:]:
            high = boundary
        if options.refiner_training and options.refiner_training_invert_schedule:
            low = max(low, options.refiner_training_strength)
        elif options.refiner_training:
            high = min(high, options.refiner_training_strength)
        return low, high

    def build_shift_line(self, scheduler: Settings) -> ShiftLine:
        """The resolution-dependent shift of the base's scheduler config. Raises ConfigError."""
        from darkroom.diffusion.shift import ShiftLine

        try:
            return ShiftLine.from_scheduler(scheduler, self.shift_line and ShiftLine(*self.shift_line))
        except KeyError as cause:
            static = scheduler.get("flow_shift") or scheduler.get("shift")
            hint = f", such as {static:g}, which it has instead" if static else ""
            raise ConfigError(
                "flow_schedule_auto_shift",
                True,
                "",
                f"The scheduler of this base model says nothing of shifts by size ({cause.args[0]} and its like).",
                f"Take it out, and set flow_schedule_shift{hint}.",
            ) from cause

    def fps_for(self, flavour: str | None) -> float | None:
        """Frames per second of a flavour's clips; None for images."""
        return self.flavours[self.base_flavour(flavour)].fps or self.fps

    def negative_is_caption_for(self, flavour: str | None) -> bool:
        """Does a flavour's pipeline encode a negative prompt like any caption?"""
        return self.negative_is_caption

    def decodes_in_pipeline(self, flavour: str | None) -> bool:
        """Does a flavour's pipeline decode in its own way?"""
        return self.pipeline_decodes

    def masks_attention(self, options: Config) -> frozenset[str]:
        """In which of "training" and "inference" attention may get a mask, which not every kernel supports."""
        if self.attention_masks == "always":
            return frozenset({"training", "inference"})
        several = self.attention_masks == "batches" and options.train_batch_size > 1
        return frozenset({"training"} if several else ())

    @functools.cache  # noqa: B019 - there is one object of each family, for as long as the program runs
    def supports_for(self, flavour: str | None) -> frozenset[str]:
        """Capabilities of a flavour, including its kinds of samples: images, video, references."""
        control = frozenset(name for name, method in self.controls_for(flavour).items() if method)
        extra = frozenset({"train_text_encoder"} if self.trainable_text_for(flavour) else ())
        extra |= frozenset({"inpainting"} if self.inpainting_for(flavour) else ())
        return self.supports | control | extra | self.flavours[self.base_flavour(flavour)].supports

    def option_defaults(self, flavour: str | None) -> dict[str, Any]:
        """Option defaults: the family's, then the flavour's."""
        exists = flavour is None or flavour in self.flavour_names()
        return {**self.defaults, **(self.flavour(flavour).defaults if exists else {})}

    def limits(self, settings: Settings) -> Limits:
        """The largest inputs of a denoiser with this config.json, which may be incomplete."""
        return Limits()

    # -- text ------------------------------------------------------------------------------------------------------

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> Cond:
        """Captions to the batched text condition {name: (B, ...)}, with `pipe`, a pipeline of text components only."""
        raise TypeError(f"{type(self).__name__} must define encode_text")

    def encode_captions(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> list[Cond]:
        """One cache entry per caption."""
        import torch

        with torch.no_grad():
            return [detach_entry(entry) for entry in self.encode_captions_with_grad(pipe, captions, options)]

    def encode_captions_with_grad(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> list[Cond]:
        """One entry per caption, with gradients. The empty caption is the unconditional one: see `unconditional`."""
        entries = split_entries(self.encode_text(pipe, captions, options))
        return [
            entry if caption else self.unconditional(pipe, entry, options)
            for caption, entry in zip(captions, entries, strict=True)
        ]

    def encode_text_with_images(
        self, pipe: DiffusionPipeline, caption: str, images: list[PILImage], options: Config
    ) -> Cond:
        """Encode one caption with PIL images of any size; returns what `encode_text` returns for one caption."""
        raise TypeError(f"{type(self).__name__} does not encode text with images")

    def image_text_cache_entry(
        self, pipe: DiffusionPipeline, caption: str, images: list[PILImage], options: Config
    ) -> Cond:
        """The cache entry of a caption that is encoded with images."""
        import torch

        with torch.no_grad():
            (entry,) = split_entries(self.encode_text_with_images(pipe, caption, images, options))
        return detach_entry(entry)

    def unconditional(self, pipe: DiffusionPipeline, entry: Cond, options: Config) -> Cond:
        """The entry for guidance and caption dropout; `entry` is the encoded empty string."""
        return entry

    def stack_text(self, entries: list[Cond]) -> Cond:
        """Cache entries to a batch."""
        return stack_entries(entries)

    def text_identity(self, options: Config) -> dict[str, object]:
        """What changes text embeddings, such as options that are declared so; part of the cache key."""
        from darkroom.options.config import every_option

        own = (info for info in every_option() if info.cached == "text" and self.name in (info.families or [self.name]))
        return {info.name: getattr(options, info.name) for info in own}

    def matches_pipeline_text(self, options: Config) -> bool:
        """With these options, is a caption encoded exactly as the pipeline encodes a prompt?"""
        return options.t5_padding != "zero"

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        """Numbers in one caption's cache entry, from the text encoders' configs by component."""
        raise TypeError(f"{type(self).__name__} must define count_text_values")

    # -- further entries of a sample ------------------------------------------------------------------------------

    def sample_entries(self, components: SampleEncoders, pixels: Tensor, latents: Tensor, options: Config) -> Cond:
        """Cache entries of a sample besides its latents, {name: (B, ...)}; in training they are `batch.extras`.

        pixels (B, 3, H, W) or (B, 3, F, H, W) in -1..1, latents their normalized latents; `components` has the models.
        """
        return {}

    def encode_audio(self, components: SampleEncoders, waveforms: Tensor, seconds: float) -> Cond:
        """Cache entries of audio waveforms (B, channels, N) in the format of `audio`, `seconds` long."""
        raise TypeError(f"{type(self).__name__} has no audio")

    def normalize_audio_latents(self, vae: Autoencoder, latents: Tensor) -> Tensor:
        """Latents of the audio VAE, normalized for the network."""
        raise TypeError(f"{type(self).__name__} has no audio")

    def sample_identity(self, options: Config) -> dict[str, object]:
        """Options that change `sample_entries`; part of the cache key."""
        return {}

    def frame_step(self, options: Config) -> int:
        """Step between valid clip lengths, in frames."""
        return max(1, self.latents_for(options.model_flavour).temporal)

    def min_frames(self, options: Config) -> int:
        """Frames of the shortest valid clip."""
        return 1

    def slice_batch(self, batch: Batch, options: Config, generator: Generator) -> Any:
        """The part of a batch that one step trains, as a batch. Random numbers come from `generator`."""
        return batch

    # -- the step --------------------------------------------------------------------------------------------------

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> Cond:
        """Inputs of the network for a training batch besides text: sizes, guidance, `extras`, `references`.

        Random numbers come from `generator`. An entry `noisy` (B, 1, F, 1, 1) scales the noise level of each latent
        frame: frames without noise condition the network and are excluded from the loss.
        """
        return {}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The prediction in the family's prediction type, shaped like x_t. Conventions are converted only here."""
        raise TypeError(f"{type(self).__name__} must define predict")

    def use_single_expert(self, pipe: DiffusionPipeline, component: str) -> None:
        """Use one expert of a pipeline at all noise levels."""
        raise TypeError(f"{type(self).__name__} has no experts")

    def predict_streams(self, model: Module, x_t: Mapping[str, Tensor], t: Tensor, cond: Cond) -> dict[str, Tensor]:
        """The predictions by stream, each as its x_t: of LATENTS, and of `extra_streams`."""
        return {LATENTS: self.predict(model, x_t[LATENTS], t, cond)}

    # -- control ---------------------------------------------------------------------------------------------------

    def new_controlnet(self, cls: Any, denoiser: Module, custom: Settings) -> Any:
        """A ControlNet of class `cls` that starts from the denoiser's weights; `custom` are constructor arguments."""
        raise TypeError(f"{type(self).__name__} has no ControlNet")

    def control(self, options: Config) -> ControlNet | ControlChannels | ControlInput | None:
        """How the run passes a control image to the denoiser; None without control."""
        if built_in := self.flavours[self.base_flavour(options.model_flavour)].control:
            return built_in
        methods = self.controls_for(options.model_flavour)
        return (methods["controlnet"] if options.controlnet else None) or (
            methods["control"] if options.control else None
        )

    def controls_for(self, flavour: str | None) -> dict[str, Any]:
        """Control methods of a flavour by option; flavours with another pipeline have none."""
        is_default_pipeline = self.pipeline_for(flavour) == self.pipeline
        return {
            "controlnet": self.controlnet if is_default_pipeline else None,
            "control": self.control_channels if is_default_pipeline else None,
        }

    def control_input_space(self, options: Config) -> str | None:
        """Whether the network takes "latents" or "pixels" of a control image; None without control."""
        method = self.control(options)
        return None if method is None else str(getattr(method, "control_input_space", "latents"))

    def validation_pipeline(self, options: Config) -> str:
        """The name of the pipeline that renders validation images of the run."""
        method = self.control(options)
        return method.pipeline if method else self.pipeline_for(options.model_flavour)

    def inpainting_for(self, flavour: str | None) -> Inpainting | None:
        """The inpainting pipeline of a flavour; None without one."""
        is_default_pipeline = self.pipeline_for(flavour) == self.pipeline
        return self.flavours[self.base_flavour(flavour)].inpainting or (
            self.inpainting if is_default_pipeline else None
        )

    def active_inpainting(self, options: Config) -> Inpainting | None:
        """The inpainting pipeline of the run; None without one, or with control."""
        return None if self.control(options) else self.inpainting_for(options.model_flavour)

    def select_pipeline(self, pipe: DiffusionPipeline, starts: bool, options: Config, masks: bool = False) -> Any:
        """The pipeline for a prompt, with the components of `pipe`: another class may take images or masks."""
        inpainting = self.active_inpainting(options) if masks else None
        name = (
            inpainting.pipeline
            if inpainting
            else self.flavours[self.base_flavour(options.model_flavour)].image_pipeline
        )
        if not starts or not name or self.control(options):
            return pipe
        from darkroom.families.shared.classes import rebuild_pipeline

        return rebuild_pipeline(pipe, name)

    def image_counts(self, options: Config) -> range:
        """The allowed number of images of a prompt without a mask."""
        facts = self.flavours[self.base_flavour(options.model_flavour)]
        if self.control(options):
            return range(1, 2)
        maximum = 0 if facts.image_input == "none" else MAX_IMAGES if facts.multiple_images else 1
        return range(1 if facts.image_input == "needed" else 0, maximum + 1)

    def clip_frames(self, options: Config) -> int:
        """Frames of a validation clip: the largest valid count up to `validation_num_video_frames`."""
        assert options.validation_num_video_frames is not None, f"{self.name} fills it"
        return self.latents.round_frames(options.validation_num_video_frames)

    def filter_kwargs(self, call: Settings, options: Config, masks: bool = False) -> Kwargs:
        """The arguments in `call` that the run's control or inpainting pipeline supports."""
        method = self.active_inpainting(options) if masks else self.control(options)
        return {name: value for name, value in call.items() if not method or name not in method.unsupported}

    def control_input(self, control: Tensor, options: Config) -> Tensor:
        """A batch's control images for the network, from latents, or from pixels (B, 3, H, W) in -1..1."""
        return control / 2 + 0.5 if self.control_input_space(options) == "pixels" else self.to_pipeline(control)

    def with_control(self, model: Module, batch: Batch, options: Config) -> Any:
        """The model with the batch's control image bound to every call, if the run has control."""
        if isinstance(self.control(options), (ControlInput, type(None))):
            return model
        from darkroom.families.shared.controlled import ControlledDenoiser

        return ControlledDenoiser(model, self.control_input(batch.controls[0], options))

    def control_kwargs(self, image: PILImage, width: int, height: int, options: Config) -> Cond:
        """Pipeline arguments for a prompt's control image, a PIL image of any size."""
        method = self.control(options)
        assert method is not None
        return {method.argument: Family.image_kwargs(self, image, width, height, options)["image"]}

    def check_controlnet(self, net: Module) -> None:
        """Raises ValueError for a ControlNet that expects other inputs than this family gives."""

    def share_modules(self, denoiser: Module, net: Module) -> None:
        """Share modules of the denoiser with a ControlNet, without registering them."""

    def add_input_channels(self, denoiser: Module) -> None:
        """Add input channels for a control image. New weights are zero, so the output does not change."""
        raise TypeError(f"{type(self).__name__} takes no control image as channels")

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        """Pipeline arguments that depend on neither the prompt nor the size."""
        return {"guidance_scale": options.validation_guidance}

    def round_size(self, width: int, height: int, options: Config) -> tuple[int, int]:
        """Width and height rounded to a size that the pipeline can render: some support only a few."""
        return width, height

    def size_kwargs(self, width: int, height: int, options: Config) -> Kwargs:
        """Pipeline arguments for the size in pixels."""
        return {"width": width, "height": height}

    def image_kwargs(self, image: PILImage, width: int, height: int, options: Config) -> Kwargs:
        """Pipeline arguments for the input image of a prompt, a PIL image of any size.

        It is cropped to the shape of the result: the pipelines themselves would stretch it.
        """
        from PIL import Image, ImageOps

        return {"image": ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)}

    def inpainting_kwargs(self, image: PILImage, mask: PILImage, width: int, height: int, options: Config) -> Kwargs:
        """Pipeline arguments for an image and its mask (white is repainted), PIL images of one size."""
        inpainting = self.active_inpainting(options)
        assert inpainting is not None
        fitted_image, fitted_mask = (
            Family.image_kwargs(self, source, width, height, options)["image"] for source in (image, mask.convert("L"))
        )
        return {
            "image": fitted_image,
            "mask_image": fitted_mask.convert("L"),
            "strength": 1.0,
            **inpainting.extra_arguments,
        }

    def images_kwargs(self, images: list[PILImage], width: int, height: int, options: Config) -> Kwargs:
        """Pipeline arguments for the images of one prompt: `image` is one image or a list."""
        calls = [self.image_kwargs(image, width, height, options) for image in images]
        return calls[0] if len(calls) == 1 else {**calls[0], "image": [call["image"] for call in calls]}

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        """Pipeline arguments for a prompt as text."""
        return {"prompt": prompt, "negative_prompt": negative or None}

    def pipeline_kwargs_from_embeds(self, text: Cond, negative: Cond) -> Kwargs:
        """Pipeline arguments for an encoded prompt; both conditions are (1, ...)."""
        return {
            "prompt_embeds": text["text"],
            "pooled_prompt_embeds": text["pooled"],
            "negative_prompt_embeds": negative["text"],
            "negative_pooled_prompt_embeds": negative["pooled"],
        }

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        """Before a call, set what the pipeline takes as attributes of the object and not as arguments."""

    def pipeline_attributes(self, options: Config) -> Kwargs:
        """The options that `prepare` uses, for the recipe that is stored with an image."""
        return {}

    def extract_audio(self, pipe: DiffusionPipeline, output: Any) -> tuple[Any, int] | None:
        """The audio in a pipeline's output, (channels, N) in -1..1, and its sample rate."""
        return None

    def default_components(self, flavour: str | None, renders: bool) -> dict[str, Any]:
        """Components that the pipeline requires and no folder has; `renders`: also those only needed for rendering."""
        return {}

    def dummy_components(self, flavour: str | None) -> dict[str, Any]:
        """Dummy components that the pipeline requires although encoding captions does not need them."""
        return {}

    def to_pipeline(self, latents: Tensor) -> Tensor:
        """Normalized latents to the form of the pipeline's `latents` argument and `output_type="latent"`."""
        return latents

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        """The way back; `height` and `width` in latent positions."""
        return latents


TINY_DEFAULTS: Settings = {
    "resolution": 64,
    "validation_resolution": "64",
    "mixed_precision": "no",
    "optimizer": "torch-adamw",
    "learning_rate": 1e-3,
    "validation_num_inference_steps": 4,
    "tokenizer_max_length": 32,
    "gradient_checkpointing": False,
    "rehearsal": False,
}


def find_on_host(cond: Cond, name: str) -> Any:
    """A value of a condition, or None, for reading on the CPU: the CPU copy if there is one, which avoids a sync."""
    return cond.get(ON_HOST, {}).get(name, cond.get(name))


def read_config(model: Module) -> Any:
    """The denoiser's config, also behind DistributedDataParallel or a compiled wrapper."""
    from darkroom.families.shared.classes import unwrap

    return unwrap(model).config
