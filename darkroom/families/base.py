"""The base class of all families: facts about an architecture, and the few methods that only it can implement.

A family file does not import torch at its top, so listing families and printing a plan are fast; methods that use
tensors import it when they run. Classes of diffusers are named as text and found by `shared.classes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.families.shared.pipeline_call import PipelineCall
from darkroom.families.shared.spec import ComponentSpecs, Flavour, HiddenStates, Inpainting, Latents, Limits
from darkroom.families.shared.text_encoding import TextEncoding

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.audio_stream import AudioStream
    from darkroom.families.shared.control_methods import ControlChannels, ControlNet
    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.families.shared.types import Cond, Settings
    from darkroom.options.config import Config

# key in the condition of a training step: values that are also on the CPU: noise levels "t" (B,) and cached text
ON_HOST = "on_host"
# the first of the streams that are denoised: the latents of images and videos
LATENTS = "latents"


class Family(TextEncoding, PipelineCall):
    """One architecture. Subclasses set the class attributes and implement `encode_text` and `predict`.

    An object is one flavour of it: `spec` has what the flavour says, else the family.

    Tensors: x_t (B, C, H, W) normalized latents, for video (B, C, F, H, W); t (B,), a fraction 0..1 (1 = noise) for
    flow families, an index 0..999 for discrete ones; cond a dict of (B, ...) tensors, or of tuples of them, the cached
    text condition plus `model_inputs`.
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
    # the audio of clips; None for families without audio
    audio: ClassVar[AudioStream | None] = None
    # each flavour's own pipeline encodes its text, and not the family's, which needs the fewest components
    flavours_encode_text: ClassVar[bool] = False
    # the option with the latent frames of a section, where clips are whole sections after a first frame
    section_option: ClassVar[str | None] = None
    # option values with which captions are encoded in another way than the pipeline encodes prompts
    unlike_pipeline_text: ClassVar[Settings] = {"t5_padding": "zero"}
    # options that `prepare` uses, for the recipe that is stored with an image
    prepared_options: ClassVar[tuple[str, ...]] = ()
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
