"""What shared code must know of an architecture, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple


@dataclasses.dataclass(frozen=True)
class Latents:
    """The space a denoiser works in.

    channels    of one latent
    downscale   pixels per latent position along an edge
    patch       latent positions per token along an edge
    normaliser  how the VAE's output becomes a latent; a name in `families.latents.NORMALISERS`
    temporal    frames per latent frame after the first; 0: pictures only, latents have no frame axis
    framed      the VAE itself has a frame axis, of one frame, that the family's latents lack
    one_by_one  diffusers' VAE fails on several samples at once
    layered     a sample is a picture and its layers, with alpha; the frame axis counts them, and each is encoded alone
    """

    channels: int
    downscale: int = 8
    patch: int = 1
    normaliser: str = "scale"
    temporal: int = 0
    framed: bool = False
    one_by_one: bool = False
    layered: bool = False

    def tokens(self, height: int, width: int, frames: int = 1) -> int:
        """Tokens of a latent of `frames` x `height` x `width` positions."""
        return frames * (height // self.patch) * (width // self.patch)

    def whole_frames(self, frames: int) -> int:
        """The largest legal clip length of at most `frames` frames: n with (n - 1) % temporal == 0; 0 if there is none.

        >>> Latents(16, temporal=4).whole_frames(16)
        13
        """
        if frames < 1 or self.layered:
            return max(0, frames)
        return frames - (frames - 1) % self.temporal if self.temporal else 1

    def shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """Shape of the latent of `frames` frames of `height` x `width` pixels: (C, h, w), with frames (C, F, h, w)."""
        depth = (frames,) if self.layered else ((frames - 1) // self.temporal + 1,) if self.temporal else ()
        return (self.channels, *depth, height // self.downscale, width // self.downscale)


class Limits(NamedTuple):
    """What a denoiser can be given, by its own settings. None: as much as there is memory for.

    pixels  the largest area of a picture, or of a frame
    edge    the longest edge in pixels, for which it has positions
    step    edges are multiples of this many pixels
    tokens  the longest caption
    """

    pixels: int | None = None
    edge: int | None = None
    step: int = 1
    tokens: int | None = None


class SoundTrack(NamedTuple):
    """The sound that a family is trained on: samples a second, and channels."""

    rate: int
    channels: int


@dataclasses.dataclass(frozen=True)
class ControlInput:
    """How a denoiser that is made for control clips sees them: its call has an argument for them.

    pipeline  the stock pipeline, which takes the frames by `argument`; lacks: arguments of the family's own calls that
              it does not know
    """

    pipeline: str
    argument: str
    lacks: frozenset[str] = frozenset()


class Apart(NamedTuple):
    """A denoiser that is published as one file, while the flavour's repository has the other parts and another one.

    file  which it is, for people; settings: what its config.json would have other than the repository's
    """

    file: str
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Inpainting:
    """How a prompt is drawn that brings a picture and a mask of what is drawn anew in it.

    pipeline  the stock pipeline for it, which takes them as `image` and `mask_image`
    lacks     arguments of the family's own calls that it does not know; more: what it is told besides
    """

    pipeline: str
    lacks: frozenset[str] = frozenset()
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Flavour:
    """One set of published weights: where it is, the option defaults that suit it, and what differs from its family.

    supports  what it takes beyond what every flavour of the family takes
    picture   may or must a prompt come with a picture to start from; several: or with more of them
    started   the stock pipeline for prompts that come with one, where it is not the one for all others
    reads     what its text encoder looks at beside a caption: its "references", the "start" of the sample, or nothing
    experts   the denoisers that its base holds, where there are several: the one for most noise first
    trained   those of the experts that a run trains; all of them if left empty
    control   how it sees control clips, if it is made for them
    apart     where its denoiser is, if that is not in the repository
    inpainting  how it draws parts of a picture anew, where not as its family's other flavours
    distilled   what it was distilled to, which training on it wears off
    assistant   the adapter that was published for training it all the same
    """

    repository: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    latents: Latents | None = None
    pipeline: str | None = None
    tiny: ComponentSpecs | None = None
    fps: float | None = None
    supports: frozenset[str] = frozenset()
    picture: Literal["none", "optional", "needed"] = "none"
    several: bool = False
    started: str | None = None
    reads: Literal["", "references", "start"] = ""
    experts: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    control: ControlInput | None = None
    inpainting: Inpainting | None = None
    apart: Apart | None = None
    distilled: str = ""
    assistant: str = ""

    @property
    def about(self) -> str:
        """What a person should know of it, for lists."""
        worn = f"distilled to {self.distilled}; training on it wears that off" if self.distilled else ""
        return "; ".join(filter(None, [self.note, worn, self.assistant and f"train with {self.assistant}"]))


@dataclasses.dataclass(frozen=True)
class ControlNet:
    """How a family's ControlNet is built, fed and drawn with.

    cls       its class; pipeline: the stock pipeline that has one
    answers   arguments of the denoiser's call that take what it answers, in order
    sees      the control picture as "pixels" or as "latents"
    input     its own name for the picture
    argument  the pipeline's name for the picture; lacks: arguments of the family's own calls that it does not know
    """

    cls: str
    pipeline: str
    answers: tuple[str, ...]
    sees: Literal["pixels", "latents"] = "latents"
    input: str = "controlnet_cond"
    argument: str = "control_image"
    lacks: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class ControlChannels:
    """How a family's denoiser sees the latents of a control picture as further channels.

    pipeline  the stock pipeline that gives it them, by `argument`; lacks: arguments of the family's own calls that it
              does not know
    axis      of the channels in the denoiser's first argument
    """

    pipeline: str
    axis: int = 1
    argument: str = "control_image"
    lacks: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class ComponentSpec:
    """One component of a tiny model: the class by name and its constructor arguments."""

    cls: str
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ComponentSpecs:
    """A complete random model that runs on a CPU in seconds, built from the family's own classes.

    vae         None where pixels themselves are denoised
    encoders    component name to text encoder; tokenizers: component name to a builder in `families.tiny.tokenizers`
    extras      component name to whatever else of transformers reads a sample's pixels: image encoders, processors
    settings    what the stock pipeline is told besides its components
    oracle      denoiser arguments for the one-picture oracle where the tiny denoiser is too narrow for it
    defaults    option defaults that suit this tiny model and no other
    """

    denoiser: ComponentSpec
    vae: ComponentSpec | None
    encoders: Mapping[str, ComponentSpec]
    tokenizers: Mapping[str, str]
    scheduler: ComponentSpec
    extras: Mapping[str, ComponentSpec] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    oracle: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
