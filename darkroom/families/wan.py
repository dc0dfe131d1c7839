"""Wan 2.1 and 2.2: one stream of video patches that attends to UMT5 text, flow matching, a causal video VAE.

Paper 2503.20314; upstream: Wan-Video/Wan2.1. The network takes the noise level as 0..1000 and answers noise - x0.
Shapes: latents (B, 16, F, H, W), F = (frames - 1) / 4 + 1; text (B, L, D) with zeros behind each caption's end.
Image to video: the network also sees, as further channels, which frames are given (B, 4, F, H, W) and the latents of a
clip that is gray but for its first frame (B, 16, F, H, W), and in one flavour its last; Wan 2.1 reads those frames
through CLIP too, (B, 257, 1280) each.
The 5B model has a time for each token instead: a given first frame stays clean and has time 0.
VACE and Fun-Control follow control clips: see `wan_control`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darkroom.families.base import Family, find_on_host, read_config
from darkroom.families.shared import wan_control
from darkroom.families.shared.classes import unwrap
from darkroom.families.shared.first_frame import (
    IMAGE_TO_VIDEO,
    FirstFrameFamily,
    noise_fractions,
    to_images,
    token_times,
)
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.shared.text import encode_prompt, has_ftfy
from darkroom.families.sizes import CLIP_H_VISION, DEFAULT, UMT5_XXL, WAN22_VAE
from darkroom.families.tiny.components import clip_vision, t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

LAST_FRAME = "last_frame"
# Wan 2.2 has a denoiser for high noise and one for low noise
EXPERTS = ("transformer", "transformer_2")
# these weights were trained with a noise level for every token
TOKEN_TIMES = frozenset({"ti2v-5b-2.2"})
WIDE_LATENTS = Latents(channels=48, downscale=16, patch=2, normalizer="channels", temporal=4)

DENOISER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}
VAE = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
ORACLE = {"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 256}


def _tiny(
    denoiser: Settings,
    oracle: Settings,
    shift: float = 3.0,
    cls: str = "WanTransformer3DModel",
    **changes: Any,
) -> ComponentSpecs:
    components: dict[str, Any] = {
        "vae": ComponentSpec("AutoencoderKLWan", VAE),
        "encoders": {"text_encoder": t5(cls="UMT5EncoderModel")},
        "tokenizers": {"tokenizer": "t5"},
        "scheduler": ComponentSpec(
            "UniPCMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift},
        ),
    }
    return ComponentSpecs(
        denoiser=ComponentSpec(cls, {**DENOISER, **denoiser}),
        oracle={**ORACLE, **oracle},
        **{**components, **changes},
    )


TINY_I2V = _tiny(
    {"in_channels": 36, "image_dim": 32, "added_kv_proj_dim": 24},
    {"added_kv_proj_dim": 128},
    shift=5.0,
    extras=clip_vision(),
)
TINY_FLF2V = _tiny(
    {**TINY_I2V.denoiser.config, "pos_embed_seq_len": 10}, {"added_kv_proj_dim": 128}, shift=5.0, extras=clip_vision()
)
TINY_TI2V = _tiny(
    {"in_channels": 48, "out_channels": 48},
    {"num_attention_heads": 8, "ffn_dim": 512},
    shift=5.0,
    vae=ComponentSpec(
        "AutoencoderKLWan",
        {
            **VAE,
            "decoder_base_dim": 8,
            "z_dim": 48,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
            "scale_factor_temporal": 4,
            # unlike each other, so that a mix-up of channels shows
            "latents_mean": tuple(i / 48 - 0.5 for i in range(48)),
            "latents_std": tuple(0.5 + i / 48 for i in range(48)),
        },
    ),
    settings={"expand_timesteps": True},
)

TINY_VACE = _tiny({"vace_layers": [0]}, {}, cls="WanVACETransformer3DModel")
# the network takes the last 512 tokens for text, and what is before them for the image
TINY_FUN_I2V = _tiny(
    {**TINY_I2V.denoiser.config, "in_channels": 48},
    {"added_kv_proj_dim": 128},
    shift=5.0,
    extras=clip_vision(),
    defaults={"tokenizer_max_length": 512},
)
TINY_FUN = dataclasses.replace(TINY_FUN_I2V, extras={})
TINY_PAIR = _tiny({}, {}, settings={"boundary_ratio": 0.875})
TINY_I2V_PAIR = _tiny({"in_channels": 36}, {}, shift=5.0, settings={"boundary_ratio": 0.9})


def _pair(trained: tuple[str, ...] = (), note: str = "") -> Flavour:
    """Wan 2.2 from text: both denoisers, or one of them."""
    return Flavour(
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        {"flow_schedule_shift": 5.0, "timestep_boundary": 0.875},
        note=note,
        tiny=TINY_PAIR,
        experts=EXPERTS,
        trainable=trained,
    )


def _i2v_pair(trained: tuple[str, ...] = (), note: str = "") -> Flavour:
    """Wan 2.2 from a first frame: both denoisers, or one of them."""
    return Flavour(
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        {"flow_schedule_shift": 5.0, "timestep_boundary": 0.9, "validation_guidance": 3.5},
        note=note,
        pipeline="WanImageToVideoPipeline",
        tiny=TINY_I2V_PAIR,
        supports=frozenset({IMAGE_TO_VIDEO}),
        image_input="needed",
        experts=EXPERTS,
        trainable=trained,
    )


LARGE = {"resolution": 720, "validation_resolution": "1280x720", "flow_schedule_shift": 5.0}


class Wan(FirstFrameFamily):
    name, title = "wan", "Wan"
    pipeline, denoiser = "WanPipeline", "WanTransformer3DModel"
    prediction = "flow_matching"
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="channels", temporal=4)
    blocks = ("blocks",)
    unused_components = ("transformer_2",)
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder"}
    fps = 16.0
    supports = Family.supports | {"video"}
    caches = True
    component_sizes = {
        "": {"text_encoder": UMT5_XXL, "image_encoder": CLIP_H_VISION, "vae": DEFAULT},
        "ti2v-5b-2.2": {"vae": WAN22_VAE},
    }
    sizes = {
        "t2v-480p-1.3b-2.1": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        **{name: {} for name in ("t2v-480p-14b-2.1", "t2v-14b-2.2", "t2v-14b-2.2-high", "t2v-14b-2.2-low")},
        **{
            name: {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
            for name in ("i2v-14b-2.1", "i2v-14b-2.1-720p")
        },
        **{name: {"in_channels": 36} for name in ("i2v-14b-2.2", "i2v-14b-2.2-high", "i2v-14b-2.2-low")},
        "ti2v-5b-2.2": {
            "in_channels": 48,
            "out_channels": 48,
            "num_attention_heads": 24,
            "ffn_dim": 14336,
            "num_layers": 30,
        },
    }
    default_flavour = "t2v-480p-1.3b-2.1"
    flavours = {
        "t2v-480p-1.3b-2.1": Flavour("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        "t2v-480p-14b-2.1": Flavour("Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        "i2v-14b-2.1": Flavour(
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
            {"flow_schedule_shift": 5.0},
            pipeline="WanImageToVideoPipeline",
            tiny=TINY_I2V,
            supports=frozenset({IMAGE_TO_VIDEO}),
            image_input="needed",
        ),
        "i2v-14b-2.1-720p": Flavour(
            "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
            LARGE,
            pipeline="WanImageToVideoPipeline",
            tiny=TINY_I2V,
            supports=frozenset({IMAGE_TO_VIDEO}),
            image_input="needed",
        ),
        "flf2v-14b-2.1-720p": Flavour(
            "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
            {**LARGE, "flow_schedule_shift": 16.0},
            note="from the first and the last frame",
            pipeline="WanImageToVideoPipeline",
            tiny=TINY_FLF2V,
            supports=frozenset({IMAGE_TO_VIDEO, LAST_FRAME}),
            image_input="needed",
            multiple_images=True,
            image_arguments=("image", "last_image"),
        ),
        "t2v-14b-2.2": _pair(note="trains both denoisers at once, each with an adapter of its own"),
        "t2v-14b-2.2-high": _pair(EXPERTS[:1], "the denoiser for high noise: composition and movement"),
        "t2v-14b-2.2-low": _pair(EXPERTS[1:], "the denoiser for low noise: detail"),
        "i2v-14b-2.2": _i2v_pair(note="trains both denoisers at once, each with an adapter of its own"),
        "i2v-14b-2.2-high": _i2v_pair(EXPERTS[:1], "the denoiser for high noise: composition and movement"),
        "i2v-14b-2.2-low": _i2v_pair(EXPERTS[1:], "the denoiser for low noise: detail"),
        "ti2v-5b-2.2": Flavour(
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            {**LARGE, "aspect_bucket_alignment": 64, "validation_resolution": "1280x704"},
            note="from text, and from the first frame of clips whose dataset says video.is_i2v",
            latents=WIDE_LATENTS,
            tiny=TINY_TI2V,
            fps=24.0,
            image_input="optional",
            image_pipeline="WanImageToVideoPipeline",
        ),
        "vace-1.3b-2.1": wan_control.vace("1.3B", TINY_VACE),
        "vace-14b-2.1": wan_control.vace("14B", TINY_VACE),
        "fun-control-1.3b-2.1": wan_control.fun_control("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "1.3B", 1536, TINY_FUN),
        "fun-control-14b-2.1": wan_control.fun_control("Wan-AI/Wan2.1-T2V-14B-Diffusers", "14B", 5120, TINY_FUN),
        "fun-control-i2v-14b-2.1": wan_control.fun_control(
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "14B", 5120, TINY_FUN_I2V, frozenset({IMAGE_TO_VIDEO})
        ),
    }
    tinies = {
        "tiny-i2v": "i2v-14b-2.1",
        "tiny-flf2v": "flf2v-14b-2.1-720p",
        "tiny-pair": "t2v-14b-2.2",
        "tiny-high": "t2v-14b-2.2-high",
        "tiny-low": "t2v-14b-2.2-low",
        "tiny-i2v-pair": "i2v-14b-2.2",
        "tiny-ti2v": "ti2v-5b-2.2",
        "tiny-vace": "vace-1.3b-2.1",
        "tiny-fun": "fun-control-1.3b-2.1",
        "tiny-fun-i2v": "fun-control-i2v-14b-2.1",
    }
    defaults = {
        "resolution": 480,
        "validation_resolution": "832x480",
        "aspect_bucket_alignment": 32,
        "tokenizer_max_length": 512,
        "flow_schedule_shift": 3.0,
        "validation_guidance": 5.0,
        "validation_num_inference_steps": 40,
        "validation_num_video_frames": 81,
    }
    # diffusers reads a file for a denoiser with the image's own keys and values only if it has those two as well
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj")}
    tiny = _tiny({}, {})

    # -- text ------------------------------------------------------------------------------------------------------

    def text_identity(self, options: Config) -> dict[str, object]:
        """diffusers' pipeline cleans a prompt further where ftfy is installed."""
        return {**super().text_identity(options), "ftfy": has_ftfy()}

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return options.tokenizer_max_length * configs["text_encoder"]["d_model"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D) from UMT5."""
        text, _ = encode_prompt(pipe, captions, options)
        return {"text": text}

    # -- the first frame -------------------------------------------------------------------------------------------

    def _is_vace(self, options: Config) -> bool:
        return bool(self.spec.control(options)) and self.spec.validation_pipeline(options) != wan_control.FUN_CONTROL

    @property
    def _ends_with_image(self) -> bool:
        return LAST_FRAME in self.spec.supports

    def sample_entries(
        self, components: SampleEncoders, pixels: Tensor, latents: Tensor, options: Config
    ) -> dict[str, Tensor]:
        """For image to video, of the frames that are given: first_frame (B, 16, F, H, W) and, for 2.1, image (B, N, D).

        The VAE looks back in time, so every latent frame of an otherwise gray clip knows something of the first. With
        the last frame given too, image is (B, 2, N, D). For Fun-Control the first frame is a clip of one, F = 1. For
        VACE gray (B, 16, F, H, W), the latents of no clip at all.
        """
        import torch

        from darkroom.families.shared.latents import encode

        clip = pixels if pixels.ndim == 5 else pixels.unsqueeze(2)  # (B, 3, F, H, W)
        if self._is_vace(options):
            return {"grey": encode(components.vae(), torch.zeros_like(clip), components.latents)}
        if not self.is_image_to_video:
            return {}
        has_end = self._ends_with_image and clip.shape[2] > 1
        indices = [0, -1] if has_end else [0]
        condition = torch.zeros_like(clip[:, :, :1] if self.spec.control(options) else clip)
        condition[:, :, indices] = clip[:, :, indices]
        entries = {"first_frame": encode(components.vae(), condition, components.latents)}
        if "image_encoder" in self.spec.components.extras:
            ends = self._ends_with_image
            features = [_encode_images(components, clip[:, :, frame]) for frame in ([0, -1] if ends else [0])]
            entries["image"] = torch.stack(features, dim=1) if ends else features[0]
        return entries

    def sample_identity(self, options: Config) -> dict[str, object]:
        end = {"ends_with": "last frame"} if self._ends_with_image else {}
        gray = {"kept of a control clip": "nothing"} if self._is_vace(options) else {}
        first_frame = (
            {"starts_from": "first frame alone"} if self.spec.control(options) and self.is_image_to_video else {}
        )
        return {**super().sample_identity(options), **end, **gray, **first_frame}

    # -- the step --------------------------------------------------------------------------------------------------

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> dict[str, Tensor]:
        """given (B, 20, F, H, W) and image (B, N, D) of image to video; noisy where each token has its time.

        For VACE control (B, 96, F, H, W), for Fun-Control given (B, 32, F, H, W).
        """
        import torch

        inputs: dict[str, Tensor] = {}
        if self._is_vace(options):
            inputs["control"] = wan_control.build_vace_inputs(batch, self.latents.downscale)
        elif self.spec.control(options):
            inputs["given"] = wan_control.build_fun_control_inputs(batch)
        elif self.is_image_to_video:
            first = batch.extras["first_frame"]
            # four channels, one for each frame that a latent frame stands for; the first stands for one, four times
            mask = torch.zeros_like(first[:, : self.latents.temporal])
            mask[:, :, 0] = 1
            if self._ends_with_image and mask.shape[2] > 1:
                mask[:, -1, -1] = 1
            inputs["given"] = torch.cat([mask, first], dim=1)
        if "image" in batch.extras:
            image = batch.extras["image"]
            inputs["image"] = image.flatten(0, 1) if image.ndim == 4 else image
        if self.spec.published in TOKEN_TIMES:
            starts = torch.full((len(batch.latents),), bool(batch.is_i2v))
            inputs["noisy"] = noise_fractions(batch.latents, (~starts).float())
        return inputs

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, C, F, H, W)."""
        import torch

        from darkroom.families.shared.experts import Experts

        condition, image, noisy = (cond.get(name) for name in ("given", "image", "noisy"))
        # float32 in any precision: bfloat16 has no more than 256 noise levels up to 1000
        time = t.float() * 1000  # (B,)
        if noisy is not None:
            time = token_times(time, noisy, self.latents.tokens(*x_t.shape[-2:]))  # (B, N)
        if image is None and (width := read_config(model).image_dim):
            image = wan_control.empty_image_features(len(x_t), width, x_t.device)
        control: dict[str, Tensor] = {}
        if "control" in cond:
            strengths = x_t.new_ones(len(read_config(model).vace_layers))
            control = {"control_hidden_states": cond["control"].to(x_t), "control_hidden_states_scale": strengths}
        if (levels := find_on_host(cond, "t")) is not None and isinstance(unwrap(model), Experts):
            control["levels"] = levels.float() * 1000
        return model(
            hidden_states=x_t if condition is None else torch.cat([x_t, condition.to(x_t)], dim=1),
            timestep=time,
            encoder_hidden_states=cond["text"],
            encoder_hidden_states_image=None if image is None else image.to(x_t),
            **control,
            return_dict=False,
        )[0]

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {
            "guidance_scale": options.validation_guidance,
            "max_sequence_length": options.tokenizer_max_length,
            "num_frames": self.spec.clip_frames(options),
        }

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {"prompt_embeds": text["text"], "negative_prompt_embeds": negative["text"]}

    def image_counts(self, options: Config) -> range:
        """Two where a clip has a last frame too, or follows a control clip, which is first, and starts from a frame."""
        two = self._ends_with_image or (self.spec.control(options) and self.is_image_to_video)
        return range(2, 3) if two else super().image_counts(options)


def _encode_images(components: SampleEncoders, pixels: Tensor) -> Tensor:
    """Images (B, 3, H, W) in -1..1 as CLIP's last hidden states but one, (B, N, D)."""
    import torch

    encoder = components.extra("image_encoder")
    read = components.extra("image_processor")(images=to_images(pixels), return_tensors="pt")
    with torch.no_grad():
        states = encoder(pixel_values=read["pixel_values"].to(encoder.device), output_hidden_states=True)
    return states.hidden_states[-2]


FAMILY = Wan
