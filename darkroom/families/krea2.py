"""Krea 2: one stream of text and image tokens, flow matching, twelve layers of a Qwen3-VL model for text.

Upstream: krea-ai/krea-2. The network takes the noise level as 0..1 and answers noise - x0.
Shapes: latents (B, 16, H, W), of a video VAE's single frame, become tokens (B, H/2 * W/2, 64), channel first inside a
token; text (B, L, 12, D), the layers of each token, with a mask (B, L): padding stands between a caption and the end of
its template. Positions of text are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.flux import image_ids, pack, unpack
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.sizes import DEFAULT
from darkroom.families.tiny.components import qwen3_vl, qwen_image_vae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

LAYERS = tuple(range(2, 36, 3))


class Krea2(Family):
    name, title = "krea2", "Krea 2"
    pipeline, denoiser = "Krea2Pipeline", "Krea2Transformer2DModel"
    prediction = "flow_matching"
    attention_masks = "always"
    shift_line = (256, 6400, 0.5, 1.15)
    guidance_off = {"guidance_scale": 0.0}  # it counts from 0
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="channels", framed=True)
    blocks = ("transformer_blocks",)
    component_sizes = {"": {"vae": DEFAULT}}
    sizes = {"": {"num_layers": 28, "num_attention_heads": 48, "num_key_value_heads": 12}}
    default_flavour = "raw"
    flavours = {
        "raw": Flavour("krea/Krea-2-Raw"),
        "turbo": Flavour(
            "krea/Krea-2-Turbo",
            {"validation_guidance": 0.0, "validation_num_inference_steps": 8},
            distilled="eight steps without guidance",
        ),
    }
    defaults = {
        "tokenizer_max_length": 512,
        "aspect_bucket_alignment": 16,
        "flow_schedule_shift": 3.0,
        "validation_guidance": 4.5,
        "validation_num_inference_steps": 28,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "Krea2Transformer2DModel",
            {
                "in_channels": 64,
                "num_layers": 2,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "intermediate_size": 64,
                "timestep_embed_dim": 32,
                "text_hidden_dim": 32,
                "num_text_layers": len(LAYERS),
                "text_num_attention_heads": 2,
                "text_num_key_value_heads": 1,
                "text_intermediate_size": 64,
                "num_layerwise_text_blocks": 1,
                "num_refiner_text_blocks": 1,
                "axes_dims_rope": (4, 6, 6),
            },
        ),
        vae=qwen_image_vae(),
        encoders={"text_encoder": qwen3_vl(LAYERS[-1] + 1)},
        tokenizers={"tokenizer": "chat"},
        scheduler=ComponentSpec(
            "FlowMatchEulerDiscreteScheduler",
            {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "max_image_seq_len": 6400},
        ),
        oracle={
            "attention_head_dim": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 256,
            "axes_dims_rope": (8, 12, 12),
        },
    )

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        width = configs["text_encoder"]["text_config"]["hidden_size"]
        return options.tokenizer_max_length * (len(LAYERS) * width + 1)

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, 12, D) without the instruction that stands before every caption, mask (B, L)."""
        text, mask = pipe.encode_prompt(captions, max_sequence_length=options.tokenizer_max_length)
        return {"text": text, "mask": mask}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W)."""
        import torch

        height, width = x_t.shape[-2:]
        text = cond["text"]
        # float32 in any precision: rounded, neighboring places of a wide image would be one
        ids = image_ids(height, width, x_t.device, torch.float32)
        tokens = model(
            hidden_states=pack(x_t),
            encoder_hidden_states=text,
            timestep=t.to(x_t.dtype),
            position_ids=torch.cat([ids.new_zeros(text.shape[1], 3), ids]),
            encoder_attention_mask=cond["mask"],
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance, "max_sequence_length": options.tokenizer_max_length}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {
            "prompt_embeds": text["text"],
            "prompt_embeds_mask": text["mask"],
            "negative_prompt_embeds": negative["text"],
            "negative_prompt_embeds_mask": negative["mask"],
        }

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        return unpack(latents, height, width)


FAMILY = Krea2
