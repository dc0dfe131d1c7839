"""What shared code must know of an architecture, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Latents:
    """The space a denoiser works in.

    channels    of one latent
    downscale   pixels per latent position along an edge
    patch       latent positions per token along an edge
    normaliser  how the VAE's output becomes a latent; a name in `families.latents.NORMALISERS`
    """

    channels: int
    downscale: int = 8
    patch: int = 1
    normaliser: str = "scale"

    def tokens(self, height: int, width: int) -> int:
        """Image tokens of a latent of `height` x `width` positions."""
        return (height // self.patch) * (width // self.patch)


@dataclasses.dataclass(frozen=True)
class Flavour:
    """One set of published weights: where it is, the option defaults that suit it, its latents if not the family's."""

    repository: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    latents: Latents | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """One component of a tiny model: the class by name and its constructor arguments."""

    cls: str
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A complete random model that runs on a CPU in seconds, built from the family's own classes.

    encoders    component name to text encoder; tokenizers: component name to a builder in `families.tiny`
    oracle      denoiser arguments for the one-picture oracle where the tiny denoiser is too narrow for it
    """

    denoiser: Part
    vae: Part
    encoders: Mapping[str, Part]
    tokenizers: Mapping[str, str]
    scheduler: Part
    oracle: Mapping[str, Any] = dataclasses.field(default_factory=dict)
