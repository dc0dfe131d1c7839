"""A family and one of its flavours, resolved: what the rest of the program asks a model about."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from darkroom.families.shared.control_methods import Control, ControlChannels, ControlNet
    from darkroom.families.shared.facts import FamilyFacts
    from darkroom.families.shared.spec import ComponentSpecs, Flavour, Inpainting, Latents
    from darkroom.families.shared.types import Settings
    from darkroom.options.config import Config

EMBEDDED = "embedded:"
TINY = "tiny:"
CONTROLNET = "controlnet"
# the ability of a flavour that takes over where the base leaves off
REFINER = "refiner"

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


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One flavour of a family with everything that it leaves to its family filled in. Made by `resolve_flavour`.

    name                the flavour, `tiny` and its like among them
    published           the published flavour that it is or is a small copy of
    flavour             its own facts: repository, notes, inputs
    defaults            option defaults: the family's, then the flavour's
    latents             its latent space
    pipeline            the name of its diffusers pipeline
    text_pipeline       the name of the pipeline that encodes its text
    components          classes of its components, and their configs in its tiny model
    denoisers           components that denoise; the one for high noise first
    trained             those of them that a run trains
    trainable_text      text encoders that can be trained
    denoiser_sizes      config values of the published denoiser beside its class's defaults; None: unknown, or no base
                        to be published
    component_sizes     the same for its other networks, by component; unknown ones are left out
    supports            capabilities, kinds of samples among them: images, video, references
    fps                 frames per second of clips; None: images
    guidance_off        pipeline arguments that switch guidance off
    negative_is_caption its pipeline encodes a negative prompt like any caption, except the empty one
    pipeline_decodes    its pipeline decodes in its own way, not with one call of the VAE's decoder
    section_option      the option with the latent frames of a section, where clips are whole sections
    controlnet, control_channels, inpainting   what its pipeline's siblings can do; None: nothing
    """

    name: str
    published: str
    flavour: Flavour
    defaults: Settings
    latents: Latents
    pipeline: str
    text_pipeline: str
    components: ComponentSpecs
    denoisers: tuple[str, ...]
    trained: tuple[str, ...]
    trainable_text: tuple[str, ...]
    denoiser_sizes: Settings | None
    component_sizes: Mapping[str, Settings]
    supports: frozenset[str]
    fps: float | None
    guidance_off: Settings
    negative_is_caption: bool
    pipeline_decodes: bool
    section_option: str | None
    controlnet: ControlNet | None
    control_channels: ControlChannels | None
    inpainting: Inpainting | None

    @property
    def is_tiny(self) -> bool:
        """Is it a small random copy of the published flavour?"""
        return self.flavour.repository.startswith(TINY)

    def control(self, options: Config) -> Control | None:
        """How the run passes a control image to the denoiser; None without control."""
        method = self.controlnet if options.controlnet else None
        return self.flavour.control or method or (self.control_channels if options.control else None)

    def active_inpainting(self, options: Config) -> Inpainting | None:
        """The inpainting pipeline of the run; None without one, or with control."""
        return None if self.control(options) else self.inpainting

    def validation_pipeline(self, options: Config) -> str:
        """The name of the pipeline that renders validation images of the run."""
        method = self.control(options)
        return method.pipeline if method else self.pipeline

    def adapter_components(self, options: Config) -> tuple[str, ...]:
        """The pipeline components that a run's adapter is for."""
        return (CONTROLNET,) if options.controlnet else self.trained

    def clip_frames(self, options: Config) -> int:
        """Frames of a validation clip: the largest valid count up to `validation_num_video_frames`."""
        assert options.validation_num_video_frames is not None, "the family's defaults fill it"
        return self.latents.round_frames(options.validation_num_video_frames)

    def frame_step(self, options: Config) -> int:
        """Step between valid clip lengths, in frames."""
        section = getattr(options, self.section_option) if self.section_option else 1
        return max(1, self.latents.temporal * section)

    def min_frames(self, options: Config) -> int:
        """Frames of the shortest valid clip: a first one, and a section after it where clips have sections."""
        return 1 + self.frame_step(options) if self.section_option else 1

    def noise_range(self, options: Config) -> tuple[float, float]:
        """The range of noise levels that a run trains, 0..1: (0, 1) is every level.

        A single expert gets its side of the boundary; `refiner_training` splits the range further. A flavour that
        refines takes the less noisy part unless it is told to take all.
        """
        low, high = 0.0, 1.0
        boundary, trained = options.timestep_boundary, self.adapter_components(options)
        if boundary is not None and len(self.denoisers) > 1 and trained == self.denoisers[:1]:
            low = boundary
        elif boundary is not None and len(self.denoisers) > 1 and trained == self.denoisers[1:]:
            high = boundary
        refines = REFINER in self.supports and not options.sdxl_refiner_uses_full_range
        if options.refiner_training and options.refiner_training_invert_schedule:
            low = max(low, options.refiner_training_strength)
        elif options.refiner_training or refines:
            high = min(high, options.refiner_training_strength)
        return low, high


def tiny_names(family: FamilyFacts | type[FamilyFacts]) -> list[str]:
    """`tiny`, a small copy of the default flavour, and further tiny flavours."""
    return ["tiny", *family.tinies]


def flavour_names(family: FamilyFacts | type[FamilyFacts]) -> list[str]:
    """Published flavours, then the tiny ones."""
    return [*family.flavours, *tiny_names(family)]


def resolve_flavour(family: FamilyFacts | type[FamilyFacts], name: str | None) -> ModelSpec:
    """The flavour of a family called `name`; None: the default one. Raises KeyError if there is none."""
    cls = family if isinstance(family, type) else type(family)
    return _resolve(cls, name or cls.default_flavour)  # type: ignore[arg-type]


@functools.cache
def _resolve(family: type[FamilyFacts], name: str) -> ModelSpec:
    published = {"tiny": family.default_flavour, **family.tinies}.get(name, name)
    facts = family.flavours[published]
    components, latents = facts.tiny or family.tiny, facts.latents or family.latents
    flavour = _shrink(facts, name, components, latents) if name in tiny_names(family) else facts
    pipeline = facts.pipeline or family.pipeline
    denoisers = facts.experts or (family.denoiser_component,)
    trainable_text = tuple(encoder for encoder in family.trainable_text if encoder in components.encoders)
    # the siblings of the family's own pipeline are not those of another one
    siblings = family if pipeline == family.pipeline else None
    controlnet, control_channels = (siblings.controlnet, siblings.control_channels) if siblings else (None, None)
    inpainting = facts.inpainting or (siblings.inpainting if siblings else None)
    abilities = {
        "controlnet": controlnet,
        "control": control_channels,
        "inpainting": inpainting,
        "train_text_encoder": trainable_text,
    }
    has_published_base = not flavour.repository.startswith((EMBEDDED, TINY))
    return ModelSpec(
        name=name,
        published=published,
        flavour=flavour,
        defaults={**family.defaults, **flavour.defaults},
        latents=latents,
        pipeline=pipeline,
        text_pipeline=pipeline if facts.encodes_text or family.flavours_encode_text else family.pipeline,
        components=components,
        denoisers=denoisers,
        trained=facts.trainable or denoisers,
        trainable_text=trainable_text,
        denoiser_sizes=family.sizes.get(name, family.sizes.get("")) if has_published_base else None,
        component_sizes={**family.component_sizes.get("", {}), **family.component_sizes.get(name, {})},
        supports=family.supports | facts.supports | {ability for ability, method in abilities.items() if method},
        fps=facts.fps or family.fps,
        guidance_off=family.guidance_off if facts.guidance_off is None else facts.guidance_off,
        negative_is_caption=family.negative_is_caption and facts.negative_is_caption,
        pipeline_decodes=family.pipeline_decodes or facts.pipeline_decodes,
        section_option=family.section_option,
        controlnet=controlnet,
        control_channels=control_channels,
        inpainting=inpainting,
    )


def _shrink(facts: Flavour, name: str, components: ComponentSpecs, latents: Latents) -> Flavour:
    """The small copy of a published flavour: its repository and defaults are other ones, and nothing was distilled."""
    sizes: dict[str, object] = {"aspect_bucket_alignment": max(16, latents.downscale * latents.patch)}
    if latents.temporal:
        sizes["validation_num_video_frames"] = latents.temporal + 1
    return dataclasses.replace(
        facts,
        repository=f"{TINY}{name}",
        defaults={**facts.defaults, **TINY_DEFAULTS, **sizes, **components.defaults},
        note="",
        separate_denoiser=None,
        distilled="",
        assistant="",
    )
