"""Stable Diffusion 3: joint attention over 2x2 patches of 16 channels, flow matching, two CLIP encoders and T5.

Paper 2403.03206. The network takes the noise level as 0..1000 and answers noise - x0.
Shapes: latents (B, 16, H, W); text (B, 77 + L, D): CLIP rows first, padded to the T5 width; pooled (B, P1 + P2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.shared.control_methods import ControlNet
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Latents, Limits
from darkroom.families.shared.text import zero_padding
from darkroom.families.sizes import CLIP_G, CLIP_L, FLUX_VAE, T5_XXL
from darkroom.families.tiny.components import clip, kl_vae, t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

CLIP_TOKENS = 77


class SD3ControlNet(ControlNet):
    """It is told pooled vectors and shifted latents, which diffusers' pipeline keeps from those made without."""

    def build(self, cls: type[ModelMixin], denoiser: ModelMixin, custom: Settings) -> ModelMixin:
        """The first blocks of the transformer, but for its last, which has no text stream."""
        from darkroom.families.shared.control_weights import build_from_transformer

        usual = {"num_layers": min(12, denoiser.config.num_layers - 1), "num_extra_conditioning_channels": 0}
        net = build_from_transformer(cls, denoiser, {**usual, **custom})
        # else diffusers' pipeline gives it pooled vectors of zeros and latents that are not shifted
        net.register_to_config(force_zeros_for_pooled_projection=False)
        return net

    def check(self, net: ModelMixin) -> None:
        if net.config.force_zeros_for_pooled_projection:
            raise ValueError("it was made for pooled vectors of zeros and latents that are not shifted")


class SD3(Family):
    name, title = "sd3", "Stable Diffusion 3"
    pipeline, denoiser = "StableDiffusion3Pipeline", "SD3Transformer2DModel"
    trainable_text = ("text_encoder", "text_encoder_2")
    prediction = "flow_matching"
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="shift_scale")
    blocks = ("transformer_blocks",)
    hidden_states = HiddenStates(output=1)
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder_3"}
    controlnet = SD3ControlNet(
        "SD3ControlNetModel", "StableDiffusion3ControlNetPipeline", ("block_controlnet_hidden_states",)
    )
    previews = "madebyollin/taesd3"
    component_sizes = {
        "": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5_XXL, "vae": FLUX_VAE}
    }
    sizes = {
        "medium": {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(13)),
        },
        "large": {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    }
    default_flavour = "medium"
    flavours = {
        "medium": Flavour("stabilityai/stable-diffusion-3.5-medium"),
        "large": Flavour("stabilityai/stable-diffusion-3.5-large"),
    }
    defaults = {"tokenizer_max_length": 256, "validation_guidance": 4.5, "validation_num_inference_steps": 28}
    targets = {
        "default": ("to_k", "to_q", "to_v", "to_out.0"),
        "all": ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out"),
    }
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "SD3Transformer2DModel",
            {
                "sample_size": 32,
                "patch_size": 2,
                "in_channels": 16,
                "out_channels": 16,
                "num_layers": 2,
                "attention_head_dim": 8,
                "num_attention_heads": 4,
                "joint_attention_dim": 64,
                "caption_projection_dim": 32,
                "pooled_projection_dim": 64,
                "pos_embed_max_size": 96,
                "dual_attention_layers": (0,),
                "qk_norm": "rms_norm",
            },
        ),
        vae=kl_vae(16, 1.5305, 0.0609),
        encoders={
            "text_encoder": clip(cls="CLIPTextModelWithProjection"),
            "text_encoder_2": clip(act="gelu", cls="CLIPTextModelWithProjection"),
            "text_encoder_3": t5(64),
        },
        tokenizers={"tokenizer": "clip", "tokenizer_2": "clip", "tokenizer_3": "t5"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        oracle={"attention_head_dim": 32, "num_attention_heads": 4, "caption_projection_dim": 128},
    )

    def limits(self, settings: Settings) -> Limits:
        """Its table of positions has so many tokens along an edge."""
        table = settings.get("pos_embed_max_size")
        return Limits(edge=table and table * self.latents.patch * self.latents.downscale)

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        rows = CLIP_TOKENS + options.tokenizer_max_length
        pooled = sum(configs[name]["projection_dim"] for name in ("text_encoder", "text_encoder_2"))
        return rows * configs["text_encoder_3"]["d_model"] + pooled

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, 77 + L, D), pooled (B, P)."""
        import torch

        length = options.tokenizer_max_length
        text, _, pooled, _ = pipe.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        if options.t5_padding == "zero":
            t5_rows = zero_padding(text[:, CLIP_TOKENS:], pipe.tokenizer_3, captions, length)
            text = torch.cat([text[:, :CLIP_TOKENS], t5_rows], dim=1)
        return {"text": text, "pooled": pooled}

    def unconditional(self, pipe: DiffusionPipeline, entry: dict[str, Tensor], options: Config) -> dict[str, Tensor]:
        """The encoded empty string, or zeros for the CLIP rows or the T5 rows as the options ask."""
        text, pooled = entry["text"].clone(), entry["pooled"].clone()
        if options.sd3_clip_uncond_behaviour == "zero":
            text[:CLIP_TOKENS], pooled = 0, pooled.zero_()
        if options.sd3_t5_uncond_behaviour == "zero":
            text[CLIP_TOKENS:] = 0
        return {"text": text, "pooled": pooled}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W)."""
        return model(
            hidden_states=x_t,
            timestep=t.float() * 1000,  # in bf16, times near 1000 would be rounded to steps of 4
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance, "max_sequence_length": options.tokenizer_max_length}


FAMILY = SD3
