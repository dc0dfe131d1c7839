"""Facts about an architecture that shared code needs, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from darkroom.families.shared.control_methods import ControlInput
    from darkroom.families.shared.types import Settings


@dataclasses.dataclass(frozen=True)
class Latents:
    """The latent space of a denoiser.

    channels    of one latent
    downscale   pixels per latent position along an edge
    patch       latent positions per token along an edge
    normalizer  how the VAE's output becomes a latent; a name in `families.latents.NORMALIZERS`
    temporal    frames per latent frame after the first; 0: images only, latents have no frame axis
    framed      the VAE has a frame axis of one frame that the family's latents lack
    single_sample_vae  diffusers' VAE fails on batches
    layered     a sample is an image and its layers, with alpha, along the frame axis; each is encoded by itself
    """

    channels: int
    downscale: int = 8
    patch: int = 1
    normalizer: str = "scale"
    temporal: int = 0
    framed: bool = False
    single_sample_vae: bool = False
    layered: bool = False

    def tokens(self, height: int, width: int, frames: int = 1) -> int:
        """Tokens of a latent of `frames` x `height` x `width` positions."""
        return frames * (height // self.patch) * (width // self.patch)

    def round_frames(self, frames: int) -> int:
        """The largest legal clip length of at most `frames` frames: n with (n - 1) % temporal == 0; 0 if there is none.

        >>> Latents(16, temporal=4).round_frames(16)
        13
        """
        if frames < 1 or self.layered:
            return max(0, frames)
        return frames - (frames - 1) % self.temporal if self.temporal else 1

    def shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """Shape of the latent of `frames` frames of `height` x `width` pixels: (C, h, w), with frames (C, F, h, w)."""
        depth = (frames,) if self.layered else ((frames - 1) // self.temporal + 1,) if self.temporal else ()
        return (self.channels, *depth, height // self.downscale, width // self.downscale)


class HiddenStates(NamedTuple):
    """What the blocks of a denoiser return, for whoever taps them.

    lists           the lists of blocks that images pass through; left out, all of the family's `blocks`
    output          of several tensors that a block returns, which one is the image's
    image           where the image's tokens are in a block whose sequence has the text's too
    sequence_first  tokens come before the batch: (N, B, D)
    are_maps        feature maps (B, C, H, W) of several sizes, and not tokens (B, N, D)
    """

    lists: tuple[str, ...] = ()
    output: int = 0
    image: Literal["first", "last"] = "last"
    sequence_first: bool = False
    are_maps: bool = False


class Limits(NamedTuple):
    """The largest inputs of a denoiser, from its config. None: limited by memory only.

    pixels  the largest area of an image, or of a frame
    edge    the longest edge in pixels, limited by position tables
    step    edges are multiples of this many pixels
    tokens  the longest caption in tokens
    """

    pixels: int | None = None
    edge: int | None = None
    step: int = 1
    tokens: int | None = None


class SeparateDenoiser(NamedTuple):
    """A denoiser that is published as a single file, outside of the flavour's repository.

    file  description of the file; settings: config values that differ from the repository's config.json
    """

    file: str
    settings: Settings


@dataclasses.dataclass(frozen=True)
class Inpainting:
    """How prompts with an image and a mask are rendered.

    pipeline         the diffusers pipeline, which takes them as `image` and `mask_image`
    unsupported      pipeline arguments of the family that this pipeline lacks
    extra_arguments  further arguments of this pipeline
    """

    pipeline: str
    unsupported: frozenset[str] = frozenset()
    extra_arguments: Settings = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Flavour:
    """One set of published weights: where it is, the option defaults that suit it, and what differs from its family.

    supports            capabilities beyond those of the family
    image_input         whether a prompt may or must have an input image
    multiple_images     whether it may have several
    image_pipeline      the diffusers pipeline for prompts with an image, if it is another one
    text_images         images that the text encoder sees with a caption: "references", "start", or none
    experts             the denoisers of the base if there are several, the one for high noise first
    trainable           the experts that a run trains; empty: all
    control             how control clips are passed, if the denoiser is made for them
    separate_denoiser   the denoiser's file, if it is not in the repository
    inpainting          how inpainting works, if not as for the family's other flavours
    image_arguments     the pipeline's argument for each image of a prompt, if they are not one list
    encodes_text        its own pipeline encodes its text, and not the family's
    guidance_off        pipeline arguments that switch its guidance off, if not the family's
    negative_is_caption, pipeline_decodes   as of the family, for this flavour alone
    distilled           what it was distilled to, which training undoes
    assistant           the adapter that was published for training it nevertheless
    """

    repository: str
    defaults: Settings = dataclasses.field(default_factory=dict)
    note: str = ""
    latents: Latents | None = None
    pipeline: str | None = None
    tiny: ComponentSpecs | None = None
    fps: float | None = None
    supports: frozenset[str] = frozenset()
    image_input: Literal["none", "optional", "needed"] = "none"
    multiple_images: bool = False
    image_pipeline: str | None = None
    text_images: Literal["", "references", "start"] = ""
    experts: tuple[str, ...] = ()
    trainable: tuple[str, ...] = ()
    image_arguments: tuple[str, ...] = ()
    encodes_text: bool = False
    guidance_off: Settings | None = None
    negative_is_caption: bool = True
    pipeline_decodes: bool = False
    control: ControlInput | None = None
    inpainting: Inpainting | None = None
    separate_denoiser: SeparateDenoiser | None = None
    distilled: str = ""
    assistant: str = ""

    @property
    def about(self) -> str:
        """Notes on the flavour, for tables."""
        worn = f"distilled to {self.distilled}; training on it wears that off" if self.distilled else ""
        return "; ".join(filter(None, [self.note, worn, self.assistant and f"train with {self.assistant}"]))


@dataclasses.dataclass(frozen=True)
class ComponentSpec:
    """One component of a tiny model: the class by name and its constructor arguments."""

    cls: str
    config: Settings


@dataclasses.dataclass(frozen=True)
class ComponentSpecs:
    """A complete random model that runs on a CPU in seconds, built from the family's own classes.

    vae         None if the family denoises pixels
    encoders    component name to text encoder; tokenizers: component name to a builder in `families.tiny.tokenizers`
    extras      component name to image encoder or processor
    settings    config values of the pipeline besides its components
    oracle      denoiser arguments for the one-image oracle, if the tiny denoiser is too small for it
    defaults    option defaults for this tiny model only
    """

    denoiser: ComponentSpec
    vae: ComponentSpec | None
    encoders: Mapping[str, ComponentSpec]
    tokenizers: Mapping[str, str]
    scheduler: ComponentSpec
    extras: Mapping[str, ComponentSpec] = dataclasses.field(default_factory=dict)
    settings: Settings = dataclasses.field(default_factory=dict)
    oracle: Settings = dataclasses.field(default_factory=dict)
    defaults: Settings = dataclasses.field(default_factory=dict)
