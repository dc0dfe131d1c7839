"""What is known of an architecture, as data: the part of a family that needs no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from darkroom.families.shared.audio_stream import AudioStream
from darkroom.families.shared.control_methods import ControlChannels, ControlNet
from darkroom.families.shared.spec import ComponentSpecs, Flavour, HiddenStates, Inpainting, Latents
from darkroom.families.shared.types import Settings


class FamilyFacts:
    """Attributes that a family sets. A `Flavour` overrides some of them: see `model_spec`."""

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
