"""The base class of all families: facts about an architecture, and the few methods that only it can implement.

A family file does not import torch at its top, so listing families and printing a plan are fast; methods that use
tensors import it when they run. Classes of diffusers are named as text and found by `shared.classes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darkroom.families.shared.facts import FamilyFacts
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.families.shared.pipeline_call import PipelineCall
from darkroom.families.shared.spec import Limits
from darkroom.families.shared.text_encoding import TextEncoding

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.families.shared.types import Cond, Settings
    from darkroom.options.config import Config

# key in the condition of a training step: values that are also on the CPU: noise levels "t" (B,) and cached text
ON_HOST = "on_host"
# the first of the streams that are denoised: the latents of images and videos
LATENTS = "latents"


class Family(FamilyFacts, TextEncoding, PipelineCall):
    """One architecture. Subclasses set the facts and implement `encode_text` and `predict`.

    An object is one flavour of it: `spec` has what the flavour says, else the family.

    Tensors: x_t (B, C, H, W) normalized latents, for video (B, C, F, H, W); t (B,), a fraction 0..1 (1 = noise) for
    flow families, an index 0..999 for discrete ones; cond a dict of (B, ...) tensors, or of tuples of them, the cached
    text condition plus `model_inputs`.
    """

    def __init__(self, flavour: str | None = None) -> None:
        """Raises KeyError for a flavour that the family does not have."""
        self.spec = resolve_flavour(type(self), flavour)

    def masks_attention(self, options: Config) -> frozenset[str]:
        """In which of "training" and "inference" attention may get a mask, which not every kernel supports."""
        if self.attention_masks == "always":
            return frozenset({"training", "inference"})
        several = self.attention_masks == "batches" and options.train_batch_size > 1
        return frozenset({"training"} if several else ())

    def limits(self, settings: Settings) -> Limits:
        """The largest inputs of a denoiser with this config.json, which may be incomplete."""
        return Limits()

    # -- further entries of a sample ------------------------------------------------------------------------------

    def sample_entries(self, components: SampleEncoders, pixels: Tensor, latents: Tensor, options: Config) -> Cond:
        """Cache entries of a sample besides its latents, {name: (B, ...)}; in training they are `batch.extras`.

        pixels (B, 3, H, W) or (B, 3, F, H, W) in -1..1, latents their normalized latents; `components` has the models.
        """
        return {}

    def sample_identity(self, options: Config) -> dict[str, object]:
        """Options that change `sample_entries`; part of the cache key."""
        return {}

    def slice_batch(self, batch: Batch, options: Config, generator: Generator) -> Batch:
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


def predict_streams(
    family: Family, model: Module, x_t: Mapping[str, Tensor], t: Tensor, cond: Cond
) -> dict[str, Tensor]:
    """The predictions by stream, each as its x_t: of LATENTS, and of `extra_streams`."""
    if family.audio:
        return family.audio.predict(family, model, x_t, t, cond)
    return {LATENTS: family.predict(model, x_t[LATENTS], t, cond)}


def find_on_host(cond: Cond, name: str) -> Any:
    """A value of a condition, or None, for reading on the CPU: the CPU copy if there is one, which avoids a sync."""
    return cond.get(ON_HOST, {}).get(name, cond.get(name))


def read_config(model: Module) -> Any:
    """The denoiser's config, also behind DistributedDataParallel or a compiled wrapper."""
    from darkroom.families.shared.classes import unwrap

    return unwrap(model).config
