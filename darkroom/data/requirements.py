"""What a model asks of data, as plain values, so that nothing here has to know a family."""

from __future__ import annotations

from dataclasses import dataclass

from darkroom.media.frames import FrameRule

ANY_NUMBER = FrameRule()


@dataclass(frozen=True)
class DataRequirements:
    """Which samples a family can use.

    media       kinds of samples that it trains on
    frames      which numbers of frames its clips may have
    fps         frames per second that it was trained with, None when it has no rate of its own
    downscale   pixels per latent position along an edge; `temporal` frames per latent frame after the first, 0 for none
    may_start   its clips may start from their own first frame, as a dataset says
    references  it takes other images beside the noised one
    reads       what its text encoder looks at beside a caption: "references", the "start" of the sample, or nothing
    control     how a control image reaches it: as "latents", as "pixels", or not at all; wants_control: every sample
                must bring one
    sound       the sound of clips that it trains on: samples a second, and channels
    layers      its samples are images with their layers
    pixels      the largest area of a sample, and edge the longest edge; None where there is no limit
    step        edges are multiples of this many pixels
    batch       the most samples of a batch; None where there is no limit
    substitutes it stands in for a flavour that takes other images, and leaves out what it cannot take itself
    """

    name: str
    title: str = ""
    media: frozenset[str] = frozenset({"image"})
    frames: FrameRule = ANY_NUMBER
    fps: float | None = None
    downscale: int = 8
    temporal: int = 0
    may_start: bool = False
    references: bool = False
    text_images: str = ""
    control: str | None = None
    requires_control: bool = False
    audio_format: tuple[int, int] | None = None
    layers: bool = False
    pixels: int | None = None
    edge: int | None = None
    step: int = 1
    batch: int | None = None
    substitutes: bool = False

    @property
    def has_frames(self) -> bool:
        """Whether its latents have an axis of frames or layers, also for a single image."""
        return self.temporal > 0 or self.layers

    @property
    def display_name(self) -> str:
        """Its name for people."""
        return self.title or self.name
