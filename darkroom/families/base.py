"""What a family is: facts, and the two or three things only it knows.

A family file imports no torch at its top, so that listing families and printing a plan cost nothing; the methods that
touch tensors import it when they run. diffusers classes are named as text and resolved by `families.components`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from darkroom.core.errors import ConfigError
from darkroom.families.shared.spec import (
    ComponentSpecs,
    ControlChannels,
    ControlInput,
    ControlNet,
    Flavour,
    Inpainting,
    Latents,
    Limits,
    SoundTrack,
)
from darkroom.families.shared.text import kept, split, stack

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Generator, Tensor

    from darkroom.data.batches.batch import Batch
    from darkroom.diffusion.shift import ShiftLine
    from darkroom.options.config import Config

    Cond = dict[str, Any]

EMBEDDED = "embedded:"
TINY = "tiny:"
CONTROLNET = "controlnet"
# in the condition of a training step: what is also known on the host: the noise levels "t" (B,), and cached text
ON_HOST = "on_host"
# the most pictures that a prompt comes with
SEVERAL = 10


class Family:
    """One architecture. Subclasses set the facts and write `encode_text` and `predict`.

    Tensors: x_t (B, C, H, W) normalised latents, for video (B, C, F, H, W); t (B,), a fraction 0..1 (1 = noise) for
    flow families, an index 0..999 for discrete ones; cond a dict of (B, ...) tensors, or of tuples of them, the cached
    text condition plus `conditions`.

    What a published flavour has of its own stands in its `Flavour`; the `..._for` methods fill in the family's.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    pipeline: ClassVar[str]
    denoiser: ClassVar[str]
    denoiser_part: ClassVar[str] = "transformer"
    prediction: ClassVar[str]
    latents: ClassVar[Latents]
    blocks: ClassVar[tuple[str, ...]]
    targets: ClassVar[Mapping[str, Sequence[str]]]
    flavours: ClassVar[Mapping[str, Flavour]]
    default_flavour: ClassVar[str]
    tiny: ClassVar[ComponentSpecs]
    # further tiny flavours, each a small copy of a published one
    tinies: ClassVar[Mapping[str, str]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    # settings of the published denoiser where its class has other defaults, by flavour; "" stands for all others
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # the same of the base's other networks, by flavour and component; what all flavours have stands under ""
    part_sizes: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {}
    supports: ClassVar[frozenset[str]] = frozenset({"lora", "full", "gradient_checkpointing", "images"})
    # two counts of tokens and their log-shifts: the line along which its pipeline shifts noise levels, if published
    shift_line: ClassVar[tuple[int, int, float, float] | None] = None
    fps: ClassVar[float | None] = None
    controlnet: ClassVar[ControlNet | None] = None
    control_channels: ClassVar[ControlChannels | None] = None
    # of the flavours that the family's own pipeline draws
    inpainting: ClassVar[Inpainting | None] = None
    # the text encoders that may be read from a place of their own: the option that names it, and the component
    text_parts: ClassVar[Mapping[str, str]] = {}
    # the CLIP text encoders that can be trained too, as the stock pipeline's own loader of adapters knows them
    trained_text: ClassVar[tuple[str, ...]] = ()

    # parts of the stock pipeline that neither encoding nor rendering needs
    idle_parts: ClassVar[tuple[str, ...]] = ()
    # packages without which a published flavour makes no pictures
    render_packages: ClassVar[tuple[str, ...]] = ()
    # the stock scheduler's sigma is noise to picture, t / (1 - t), and not the noise's share t
    sigma_is_ratio: ClassVar[bool] = False
    # further denoisers that the stock pipeline is guided by and nobody trains
    guides: ClassVar[tuple[str, ...]] = ()
    # the denoiser's argument that tells the tokens of one sequence apart: first padding, which is 0, last the picture
    packed_by: ClassVar[str | None] = None
    # the stock pipeline makes pixels in a way of its own, and not by one call of the VAE's decoder
    pipeline_decodes: ClassVar[bool] = False
    # the output_type with which the stock pipeline hands over what was sampled
    raw_output: ClassVar[str] = "latent"
    # streams that are denoised beside the first, kept in a sample's extras, and the network's argument for each
    beside: ClassVar[Mapping[str, str]] = {}
    # the sound track that a clip brings
    sound: ClassVar[SoundTrack | None] = None
    # parts that read text or pictures and that published folders lack, and the repositories that have them, each in a
    # folder of its name
    elsewhere: ClassVar[Mapping[str, str]] = {}
    guidance_input: ClassVar[bool] = False
    # when its network hands attention a mask, such as one that hides the padding of text; "batches": where captions of
    # several lengths are in one batch
    attention_masks: ClassVar[Literal["never", "always", "batches"]] = "never"
    # arguments of the stock pipeline's call with which it answers as the network does
    unguided: ClassVar[Mapping[str, Any]] = {"guidance_scale": 1.0}
    # the repository of a tiny decoder of its latents, for looking at pictures while they are made
    previews: ClassVar[str | None] = None
    # diffusers can repeat the denoiser's answers of earlier steps, and tells those with guidance from those without
    caches: ClassVar[bool] = False
    # what it does otherwise than the stock pipeline, where that is wrong, as sentences
    corrects: ClassVar[str] = ""
    # the stock pipeline takes a negative prompt and reads it as it reads any caption, the empty one aside
    negative_is_caption: ClassVar[bool] = True

    # -- options ---------------------------------------------------------------------------------------------------

    def flavour(self, name: str | None) -> Flavour:
        """The flavour called `name`, or the default one. `tiny` exists for every family. Raises KeyError."""
        published = self.flavours[self.published(name)]
        if name not in self.tiny_names():
            return published
        facts = self.latents_for(name)
        step = max(16, facts.downscale * facts.patch)
        own: dict[str, Any] = {"aspect_bucket_alignment": step}
        if facts.temporal:
            own["validation_num_video_frames"] = facts.temporal + 1
        defaults = {**published.defaults, **TINY_DEFAULTS, **own, **self.specs_for(name).defaults}
        return dataclasses.replace(
            published, repository=f"{TINY}{name}", defaults=defaults, note="", apart=None, distilled="", assistant=""
        )

    def flavour_names(self) -> list[str]:
        """Published flavours, then the tiny ones."""
        return [*self.flavours, *self.tiny_names()]

    def tiny_names(self) -> list[str]:
        """`tiny`, a small copy of the default flavour, and further tiny flavours."""
        return ["tiny", *self.tinies]

    def published(self, flavour: str | None) -> str:
        """The published flavour that `flavour` is, or is a small copy of."""
        chosen = flavour or self.default_flavour
        return {"tiny": self.default_flavour, **self.tinies}.get(chosen, chosen)

    def size_of(self, flavour: str | None) -> Mapping[str, Any] | None:
        """Settings of the published denoiser beside its class's defaults; None where they are not known here."""
        if self.flavour(flavour).repository.startswith((EMBEDDED, TINY)):
            return None
        return self.sizes.get(flavour or self.default_flavour, self.sizes.get(""))

    def part_sizes_for(self, flavour: str | None) -> Mapping[str, Mapping[str, Any]]:
        """Settings of a published base's other networks beside their classes' defaults; only of those known here."""
        return {**self.part_sizes.get("", {}), **self.part_sizes.get(flavour or self.default_flavour, {})}

    def latents_for(self, flavour: str | None) -> Latents:
        """The latent space of a flavour."""
        return self.flavours[self.published(flavour)].latents or self.latents

    def pipeline_for(self, flavour: str | None) -> str:
        """The stock pipeline of a flavour."""
        return self.flavours[self.published(flavour)].pipeline or self.pipeline

    def text_pipeline_for(self, flavour: str | None) -> str:
        """The stock pipeline that reads a flavour's text: the family's own needs the fewest other parts for it."""
        return self.pipeline

    def specs_for(self, flavour: str | None) -> ComponentSpecs:
        """The parts of a flavour: its classes, and how large they are in its tiny model."""
        return self.flavours[self.published(flavour)].tiny or self.tiny

    def unguided_for(self, flavour: str | None) -> Mapping[str, Any]:
        """The call's arguments that switch guidance off for a flavour."""
        return self.unguided

    def denoiser_components_for(self, flavour: str | None) -> tuple[str, ...]:
        """The denoisers that a flavour's base holds, as components of its pipeline; the one for most noise first."""
        return self.flavours[self.published(flavour)].experts or (self.denoiser_part,)

    def trainable_components_for(self, flavour: str | None) -> tuple[str, ...]:
        """Those of them that a run trains."""
        return self.flavours[self.published(flavour)].trained or self.denoiser_components_for(flavour)

    def trained_text_for(self, flavour: str | None) -> tuple[str, ...]:
        """The text encoders of a flavour that can be trained."""
        return tuple(name for name in self.trained_text if name in self.specs_for(flavour).encoders)

    def adapted(self, options: Config) -> tuple[str, ...]:
        """The components of the stock pipeline that a run's weights are for."""
        return (CONTROLNET,) if options.controlnet else self.trainable_components_for(options.model_flavour)

    def noise_range(self, options: Config) -> tuple[float, float]:
        """The noise levels that a run trains, from and up to, as shares of all of them: (0, 1) is every level.

        A lone expert has its side of the boundary; `refiner_training` divides what there is.
        """
        low, high = 0.0, 1.0
        held, trained = self.denoiser_components_for(options.model_flavour), self.adapted(options)
        boundary = options.timestep_boundary
        if boundary is not None and len(held) > 1 and trained == held[:1]:
            low = boundary
        elif boundary is not None and len(held) > 1 and trained == held[1:]:
            high = boundary
        if options.refiner_training and options.refiner_training_invert_schedule:
            low = max(low, options.refiner_training_strength)
        elif options.refiner_training:
            high = min(high, options.refiner_training_strength)
        return low, high

    def shifts(self, scheduler: Mapping[str, Any]) -> ShiftLine:
        """How noise levels are shifted by the size of samples, by the base's scheduler config. Raises ConfigError."""
        from darkroom.diffusion.shift import ShiftLine

        try:
            return ShiftLine.from_scheduler(scheduler, self.shift_line and ShiftLine(*self.shift_line))
        except KeyError as cause:
            static = scheduler.get("flow_shift") or scheduler.get("shift")
            own = f", such as {static:g}, which it has instead" if static else ""
            raise ConfigError(
                "flow_schedule_auto_shift",
                True,
                "",
                f"The scheduler of this base model says nothing of shifts by size ({cause.args[0]} and its like).",
                f"Take it out, and set flow_schedule_shift{own}.",
            ) from cause

    def fps_for(self, flavour: str | None) -> float | None:
        """Frames per second of a flavour's clips; None if it makes pictures."""
        return self.flavours[self.published(flavour)].fps or self.fps

    def negative_is_caption_for(self, flavour: str | None) -> bool:
        """Does a flavour's pipeline read a negative prompt as it reads any caption?"""
        return self.negative_is_caption

    def pipeline_decodes_for(self, flavour: str | None) -> bool:
        """Does a flavour's pipeline make pixels in a way of its own?"""
        return self.pipeline_decodes

    def masks_attention(self, options: Config) -> frozenset[str]:
        """In what of "training" and "inference" a run's attention may be given a mask, which not every kernel takes."""
        if self.attention_masks == "always":
            return frozenset({"training", "inference"})
        several = self.attention_masks == "batches" and options.train_batch_size > 1
        return frozenset({"training"} if several else ())

    @functools.cache  # noqa: B019 - there is one object of each family, for as long as the program runs
    def supports_for(self, flavour: str | None) -> frozenset[str]:
        """What can be done with a flavour, among it the samples it takes: images, video, references."""
        control = frozenset(name for name, way in self.controls_for(flavour).items() if way)
        more = frozenset({"train_text_encoder"} if self.trained_text_for(flavour) else ())
        more |= frozenset({"inpainting"} if self.inpainting_for(flavour) else ())
        return self.supports | control | more | self.flavours[self.published(flavour)].supports

    def option_defaults(self, flavour: str | None) -> dict[str, Any]:
        """Option defaults: the family's, then the flavour's."""
        known = flavour is None or flavour in self.flavour_names()
        return {**self.defaults, **(self.flavour(flavour).defaults if known else {})}

    def limits(self, settings: Mapping[str, Any]) -> Limits:
        """What a denoiser with these settings (its config.json) can be given; they lack what is not known of it."""
        return Limits()

    # -- text ------------------------------------------------------------------------------------------------------

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> Cond:
        """Captions to the batched text condition {name: (B, ...)}, by the stock pipeline `pipe` (text parts only)."""
        raise TypeError(f"{type(self).__name__} must define encode_text")

    def text_entries(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> list[Cond]:
        """One cache entry per caption."""
        import torch

        with torch.no_grad():
            return [kept(entry) for entry in self.read_entries(pipe, captions, options)]

    def read_entries(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> list[Cond]:
        """The same with gradients. The empty caption is the unconditional one: see `unconditional`."""
        entries = split(self.encode_text(pipe, captions, options))
        return [
            entry if caption else self.unconditional(pipe, entry, options)
            for caption, entry in zip(captions, entries, strict=True)
        ]

    def encode_seen(self, pipe: DiffusionPipeline, caption: str, pictures: list[Any], options: Config) -> Cond:
        """A caption that is read with pictures, PIL ones of any size, as `encode_text` answers for one caption."""
        raise TypeError(f"{type(self).__name__} reads no pictures")

    def seen_entry(self, pipe: DiffusionPipeline, caption: str, pictures: list[Any], options: Config) -> Cond:
        """The cache entry of a caption that is read with pictures."""
        import torch

        with torch.no_grad():
            (entry,) = split(self.encode_seen(pipe, caption, pictures, options))
        return kept(entry)

    def unconditional(self, pipe: DiffusionPipeline, entry: Cond, options: Config) -> Cond:
        """What guidance and caption dropout use in place of a caption; `entry` is the encoded empty string."""
        return entry

    def stack_text(self, entries: list[Cond]) -> Cond:
        """Cache entries to a batch."""
        return stack(entries)

    def text_identity(self, options: Config) -> dict[str, Any]:
        """Options that change a text embedding; part of its cache key."""
        return {"tokenizer_max_length": options.tokenizer_max_length}

    def reads_as_pipeline(self, options: Config) -> bool:
        """Do these options read captions as the stock pipeline does when it is given them as text?"""
        return options.t5_padding != "zero"

    def text_numbers(self, configs: Mapping[str, Mapping[str, Any]], options: Config) -> int:
        """How many numbers one caption's cache entry holds, from the encoders' configs by component."""
        raise TypeError(f"{type(self).__name__} must define text_numbers")

    # -- what else a sample brings ---------------------------------------------------------------------------------

    def sample_entries(self, components: Any, pixels: Tensor, latents: Tensor, options: Config) -> Cond:
        """What is cached of a sample beside its latents, {name: (B, ...)}; in training it is `batch.extras`.

        pixels (B, 3, H, W) or (B, 3, F, H, W) in -1..1, latents their normalised latents; `components` has the models.
        """
        return {}

    def sound_entries(self, components: Any, sound: Tensor, seconds: float) -> Cond:
        """What is cached of a clip's sound, (B, channels, N) as `sound` asks for it, over `seconds` of film."""
        raise TypeError(f"{type(self).__name__} has no sound")

    def sound_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Latents of sound, as its VAE has them, as the network takes them."""
        raise TypeError(f"{type(self).__name__} has no sound")

    def sample_identity(self, options: Config) -> dict[str, Any]:
        """Options that change `sample_entries`; part of the cache's name."""
        return {}

    def frame_step(self, options: Config) -> int:
        """Frames between two lengths of clips that can be trained on."""
        return max(1, self.latents_for(options.model_flavour).temporal)

    def least_frames(self, options: Config) -> int:
        """Frames of the shortest clip that can be trained on."""
        return 1

    def portion(self, batch: Batch, options: Config, generator: Generator) -> Any:
        """The part of a batch that a step trains, as a batch. Draws come from `generator`."""
        return batch

    # -- the step --------------------------------------------------------------------------------------------------

    def conditions(self, batch: Batch, options: Config, generator: Generator) -> Cond:
        """Further inputs of a training batch beside its text: sizes, guidance, `extras`, `references`.

        Draws come from `generator`. `noisy`, where it is given, is the share of the noise level that each latent frame
        gets, (B, 1, F, 1, 1): frames without noise are given to the network, and left out of the loss.
        """
        return {}

    def predict(self, model: Any, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's answer for the family's prediction type, as x_t. Conventions are converted here only."""
        raise TypeError(f"{type(self).__name__} must define predict")

    def alone(self, pipe: DiffusionPipeline, component: str) -> None:
        """Let one of a stock pipeline's experts answer at all noise levels."""
        raise TypeError(f"{type(self).__name__} has no experts")

    def predict_all(self, model: Any, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, dict[str, Tensor]]:
        """The answer, and those for the streams in `beside`, whose noised latents `cond` has under their names."""
        return self.predict(model, x_t, t, cond), {}

    # -- control ---------------------------------------------------------------------------------------------------

    def new_controlnet(self, cls: Any, denoiser: Any, custom: Mapping[str, Any]) -> Any:
        """A ControlNet of class `cls` that starts from the denoiser's weights; `custom` are its maker's arguments."""
        raise TypeError(f"{type(self).__name__} has no ControlNet")

    def control(self, options: Config) -> ControlNet | ControlChannels | ControlInput | None:
        """How a control picture reaches the denoiser in this run."""
        if made_for := self.flavours[self.published(options.model_flavour)].control:
            return made_for
        ways = self.controls_for(options.model_flavour)
        return (ways["controlnet"] if options.controlnet else None) or (ways["control"] if options.control else None)

    def controls_for(self, flavour: str | None) -> dict[str, Any]:
        """The ways of control that a flavour has by option; one that another pipeline draws has none."""
        own = self.pipeline_for(flavour) == self.pipeline
        return {
            "controlnet": self.controlnet if own else None,
            "control": self.control_channels if own else None,
        }

    def sees(self, options: Config) -> str | None:
        """What of a control picture the network is given: "latents" or "pixels"; None without one."""
        way = self.control(options)
        return None if way is None else str(getattr(way, "sees", "latents"))

    def drawn_by(self, options: Config) -> str:
        """The stock pipeline that draws what the run trains."""
        way = self.control(options)
        return way.pipeline if way else self.pipeline_for(options.model_flavour)

    def inpainting_for(self, flavour: str | None) -> Inpainting | None:
        """How a flavour draws parts of a picture anew."""
        own = self.pipeline_for(flavour) == self.pipeline
        return self.flavours[self.published(flavour)].inpainting or (self.inpainting if own else None)

    def inpaints(self, options: Config) -> Inpainting | None:
        """How the run draws parts of a picture anew; None where it cannot."""
        return None if self.control(options) else self.inpainting_for(options.model_flavour)

    def drawing(self, pipe: DiffusionPipeline, starts: bool, options: Config, masks: bool = False) -> Any:
        """The pipeline for a prompt, with the parts of `pipe`: there may be another for one with a picture or mask."""
        way = self.inpaints(options) if masks else None
        name = way.pipeline if way else self.flavours[self.published(options.model_flavour)].started
        if not starts or not name or self.control(options):
            return pipe
        from darkroom.families.shared.classes import regrouped

        return regrouped(pipe, name)

    def pictures_for(self, options: Config) -> range:
        """How many pictures a prompt without a mask may come with."""
        facts = self.flavours[self.published(options.model_flavour)]
        if self.control(options):
            return range(1, 2)
        most = 0 if facts.picture == "none" else SEVERAL if facts.several else 1
        return range(1 if facts.picture == "needed" else 0, most + 1)

    def clip_frames(self, options: Config) -> int:
        """Frames of a validation clip: the largest legal number of them, at most `validation_num_video_frames`."""
        assert options.validation_num_video_frames is not None, f"{self.name} fills it"
        return self.latents.whole_frames(options.validation_num_video_frames)

    def known_to_pipeline(self, call: Mapping[str, Any], options: Config, masks: bool = False) -> dict[str, Any]:
        """The arguments that the pipeline of the run, or of prompts with a mask, knows of the family's own."""
        way = self.inpaints(options) if masks else self.control(options)
        return {name: value for name, value in call.items() if not way or name not in way.lacks}

    def control_input(self, control: Tensor, options: Config) -> Tensor:
        """A batch's control pictures as the network takes them: latents, or pixels (B, 3, H, W), here in -1..1."""
        return control / 2 + 0.5 if self.sees(options) == "pixels" else self.to_pipeline(control)

    def with_control(self, model: Any, batch: Batch, options: Config) -> Any:
        """The model with the batch's control picture at every call, where the run has one."""
        if isinstance(self.control(options), (ControlInput, type(None))):
            return model
        from darkroom.families.shared.controlled import ControlledDenoiser

        return ControlledDenoiser(model, self.control_input(batch.controls[0], options))

    def control_call(self, picture: Any, width: int, height: int, options: Config) -> Cond:
        """A prompt's control picture, a PIL one of any size, as the stock pipeline takes it."""
        way = self.control(options)
        assert way is not None
        return {way.argument: Family.picture_call(self, picture, width, height, options)["image"]}

    def check_controlnet(self, net: Any) -> None:
        """Raises ValueError for a ControlNet that wants its inputs in another way than this family gives them."""

    def lend(self, denoiser: Any, net: Any) -> None:
        """Give a ControlNet the parts of the denoiser that it calls, without making them its own."""

    def widen(self, denoiser: Any) -> None:
        """Make room for a control picture's channels. New weights are zero, so that it changes nothing."""
        raise TypeError(f"{type(self).__name__} takes no control picture as channels")

    @contextlib.contextmanager
    def overheard(self, model: Any, options: Config) -> Iterator[dict[str, Tensor]]:
        """Around `predict` in training: what the network says besides its answer becomes further terms of the loss."""
        yield {}

    # -- the stock pipeline ----------------------------------------------------------------------------------------

    def call(self, options: Config) -> dict[str, Any]:
        """Keyword arguments of the stock pipeline's call that depend on neither the prompt nor the size."""
        return {"guidance_scale": options.validation_guidance}

    def drawn_size(self, width: int, height: int, options: Config) -> tuple[int, int]:
        """The width and height that the stock pipeline makes where these are wanted: some know only a few sizes."""
        return width, height

    def size_call(self, width: int, height: int, options: Config) -> dict[str, Any]:
        """The size in pixels as the stock pipeline takes it."""
        return {"width": width, "height": height}

    def picture_call(self, picture: Any, width: int, height: int, options: Config) -> dict[str, Any]:
        """The picture that a prompt starts from, a PIL one of any size, as the stock pipeline takes it.

        Cut to the shape of the result: the pipelines themselves would stretch it.
        """
        from PIL import Image, ImageOps

        return {"image": ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.LANCZOS)}

    def inpainting_call(self, picture: Any, mask: Any, width: int, height: int, options: Config) -> dict[str, Any]:
        """A picture and a mask, white where it is drawn anew, PIL ones of one size, as the pipeline takes them."""
        way = self.inpaints(options)
        assert way is not None
        fitted, where = (
            Family.picture_call(self, one, width, height, options)["image"] for one in (picture, mask.convert("L"))
        )
        return {"image": fitted, "mask_image": where.convert("L"), "strength": 1.0, **way.more}

    def pictures_call(self, pictures: list[Any], width: int, height: int, options: Config) -> dict[str, Any]:
        """The pictures of one prompt: one, or a list of them as `image`."""
        calls = [self.picture_call(picture, width, height, options) for picture in pictures]
        return calls[0] if len(calls) == 1 else {**calls[0], "image": [call["image"] for call in calls]}

    def prompt_call(self, prompt: str, negative: str, options: Config) -> dict[str, Any]:
        """The prompt as the stock pipeline takes it as text."""
        return {"prompt": prompt, "negative_prompt": negative or None}

    def embedded_call(self, text: Cond, negative: Cond) -> dict[str, Any]:
        """The prompt as the stock pipeline takes it when it is encoded already; both conditions are (1, ...)."""
        return {
            "prompt_embeds": text["text"],
            "pooled_prompt_embeds": text["pooled"],
            "negative_prompt_embeds": negative["text"],
            "negative_pooled_prompt_embeds": negative["pooled"],
        }

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        """Tell the stock pipeline, before a call, what it takes as attributes of the object and not as arguments."""

    def told(self, options: Config) -> dict[str, Any]:
        """The options that `prepare` tells it of, which a picture's recipe keeps."""
        return {}

    def sound_of(self, pipe: DiffusionPipeline, made: Any) -> tuple[Any, int] | None:
        """The sound of what the stock pipeline returned, (channels, N) in -1..1, and its rate."""
        return None

    def made_parts(self, flavour: str | None, renders: bool) -> dict[str, Any]:
        """Parts that the stock pipeline insists on and no folder has; some are needed only by one that renders."""
        return {}

    def stand_ins(self, flavour: str | None) -> dict[str, Any]:
        """What the pipeline that reads captions insists on in place of parts that it does not need for that."""
        return {}

    def to_pipeline(self, latents: Tensor) -> Tensor:
        """Normalised latents as the pipeline's `latents` argument and `output_type="latent"` have them."""
        return latents

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        """The way back; `height` and `width` in latent positions."""
        return latents


TINY_DEFAULTS: Mapping[str, Any] = {
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
    """A part of a condition, or None, to read numbers of: from the host if it is known there, which need not wait."""
    return cond.get(ON_HOST, {}).get(name, cond.get(name))


def config_of(model: Any) -> Any:
    """The denoiser's config, also behind DistributedDataParallel or a compiled wrapper."""
    from darkroom.families.shared.classes import bare

    return bare(model).config
