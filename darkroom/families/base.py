"""What a family is: facts, and the two or three things only it knows.

A family file imports no torch at its top, so that listing families and printing a plan cost nothing; the methods that
touch tensors import it when they run. diffusers classes are named as text and resolved by `families.components`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from darkroom.families.facts import Flavour, Latents, Tiny
from darkroom.families.text import split, stack

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Cond = dict[str, Tensor]

EMBEDDED = "embedded:"
TINY = "tiny:"


class Family:
    """One architecture. Subclasses set the facts and write `encode_text` and `predict`.

    Tensors: x_t (B, C, H, W) normalised latents; t (B,), a fraction 0..1 (1 = noise) for flow families, an index
    0..999 for discrete ones; cond a dict of (B, ...) tensors, the cached text condition plus `conditions`.
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
    tiny: ClassVar[Tiny]
    defaults: ClassVar[Mapping[str, Any]] = {}
    supports: ClassVar[frozenset[str]] = frozenset({"lora", "full", "gradient_checkpointing"})
    t5_part: ClassVar[str | None] = None
    guidance_input: ClassVar[bool] = False

    # -- options ---------------------------------------------------------------------------------------------------

    def flavour(self, name: str | None) -> Flavour:
        """The flavour called `name`, or the default one. `tiny` exists for every family. Raises KeyError."""
        if name == "tiny":
            return Flavour(TINY + self.name, TINY_DEFAULTS)
        return self.flavours[name or self.default_flavour]

    def flavour_names(self) -> list[str]:
        """Published flavours, then `tiny`."""
        return [*self.flavours, "tiny"]

    def option_defaults(self, flavour: str | None) -> dict[str, Any]:
        """Option defaults: the family's, then the flavour's."""
        known = flavour is None or flavour in self.flavour_names()
        return {**self.defaults, **(self.flavour(flavour).defaults if known else {})}

    # -- text ------------------------------------------------------------------------------------------------------

    def encode_text(self, pipe: Any, captions: list[str], options: Any) -> Cond:
        """Captions to the batched text condition {name: (B, ...)}, by the stock pipeline `pipe` (text parts only)."""
        raise TypeError(f"{type(self).__name__} must define encode_text")

    def text_entries(self, pipe: Any, captions: list[str], options: Any) -> list[Cond]:
        """One cache entry per caption. The empty caption is the unconditional one: see `unconditional`."""
        import torch

        with torch.no_grad():
            entries = split(self.encode_text(pipe, captions, options))
        return [
            entry if caption else self.unconditional(pipe, entry, options)
            for caption, entry in zip(captions, entries, strict=True)
        ]

    def unconditional(self, pipe: Any, entry: Cond, options: Any) -> Cond:
        """What guidance and caption dropout use in place of a caption; `entry` is the encoded empty string."""
        return entry

    def stack_text(self, entries: list[Cond]) -> Cond:
        """Cache entries to a batch."""
        return stack(entries)

    def text_identity(self, options: Any) -> dict[str, Any]:
        """Options that change a text embedding; part of its cache key."""
        return {"tokenizer_max_length": options.tokenizer_max_length}

    def text_numbers(self, configs: Mapping[str, Mapping[str, Any]], options: Any) -> int:
        """How many numbers one caption's cache entry holds, from the encoders' configs by component."""
        raise TypeError(f"{type(self).__name__} must define text_numbers")

    # -- the step --------------------------------------------------------------------------------------------------

    def conditions(self, batch: Any, options: Any, generator: Generator) -> Cond:
        """Further inputs of a training batch beside its text: sizes, guidance. Draws come from `generator`."""
        return {}

    def predict(self, model: Any, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's answer for the family's prediction type, (B, C, H, W). Conventions are converted here only."""
        raise TypeError(f"{type(self).__name__} must define predict")

    # -- the stock pipeline ----------------------------------------------------------------------------------------

    def call(self, options: Any) -> dict[str, Any]:
        """Keyword arguments of the stock pipeline's call that do not depend on the prompt."""
        return {"guidance_scale": options.validation_guidance}

    def prompt_call(self, prompt: str, negative: str, options: Any) -> dict[str, Any]:
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

    def to_pipeline(self, latents: Tensor) -> Tensor:
        """Normalised latents as the pipeline's `latents` argument and `output_type="latent"` have them."""
        return latents

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        """The way back; `height` and `width` in latent positions."""
        return latents


TINY_DEFAULTS: Mapping[str, Any] = {
    "resolution": 64,
    "validation_resolution": "64",
    "aspect_bucket_alignment": 16,
    "mixed_precision": "no",
    "optimizer": "torch-adamw",
    "learning_rate": 1e-3,
    "validation_num_inference_steps": 4,
    "tokenizer_max_length": 32,
    "gradient_checkpointing": False,
}


def config_of(model: Any) -> Any:
    """The denoiser's config, also behind DistributedDataParallel or a compiled wrapper."""
    for attribute in ("module", "_orig_mod"):
        while hasattr(model, attribute):
            model = getattr(model, attribute)
    return model.config
