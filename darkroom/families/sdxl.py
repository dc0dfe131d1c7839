"""Stable Diffusion XL: a UNet over four latent channels, noise prediction, two CLIP encoders, size conditioning.

Paper 2307.01952. Shapes: latents (B, 4, H, W); text (B, 77, D1 + D2), pooled (B, P); time_ids (B, 6) holds original
height and width, crop top and left, target height and width, all in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from darkroom.families.base import Family
from darkroom.families.facts import ControlNet, Flavour, Latents, Part, Tiny
from darkroom.families.tiny.parts import clip, kl_vae

if TYPE_CHECKING:
    from torch import Generator, Tensor


class SDXL(Family):
    name, title = "sdxl", "Stable Diffusion XL"
    pipeline, denoiser, denoiser_part = "StableDiffusionXLPipeline", "UNet2DConditionModel", "unet"
    prediction = "epsilon"
    latents = Latents(channels=4, downscale=8)
    blocks = ("down_blocks", "up_blocks")
    controlnet: ClassVar[ControlNet | None] = ControlNet(
        "ControlNetModel",
        "StableDiffusionXLControlNetPipeline",
        ("down_block_additional_residuals", "mid_block_additional_residual"),
        sees="pixels",
        argument="image",
        lacks=frozenset({"guidance_rescale"}),
    )
    default_flavour = "base-1.0"
    flavours = {
        "base-1.0": Flavour("stabilityai/stable-diffusion-xl-base-1.0"),
        "base-0.9": Flavour("stabilityai/stable-diffusion-xl-base-0.9"),
    }
    defaults = {"tokenizer_max_length": 77, "validation_guidance": 5.0, "validation_num_inference_steps": 30}
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = Tiny(
        denoiser=Part(
            "UNet2DConditionModel",
            {
                "sample_size": 8,
                "block_out_channels": (16, 32),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "attention_head_dim": (2, 4),
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "transformer_layers_per_block": (1, 2),
                "projection_class_embeddings_input_dim": 80,
                "cross_attention_dim": 64,
            },
        ),
        vae=kl_vae(4, 0.13025),
        encoders={
            "text_encoder": clip(),
            "text_encoder_2": clip(vocabulary=515, act="gelu", cls="CLIPTextModelWithProjection"),
        },
        tokenizers={"tokenizer": "clip", "tokenizer_2": "clip_g"},
        scheduler=Part(
            "EulerDiscreteScheduler",
            {
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "steps_offset": 1,
                "timestep_spacing": "leading",
            },
        ),
        oracle={
            "block_out_channels": (48, 48),
            "norm_num_groups": 8,
            "transformer_layers_per_block": (1, 1),
            "attention_head_dim": (2, 2),
        },
    )

    def text_numbers(self, configs: Mapping[str, Mapping[str, Any]], options: Any) -> int:
        widths = [configs[name]["hidden_size"] for name in ("text_encoder", "text_encoder_2")]
        return 77 * sum(widths) + configs["text_encoder_2"]["projection_dim"]

    def encode_text(self, pipe: Any, captions: list[str], options: Any) -> dict[str, Tensor]:
        """text (B, 77, D) of both encoders side by side, pooled (B, P) of the second."""
        text, _, pooled, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def unconditional(self, pipe: Any, entry: dict[str, Tensor], options: Any) -> dict[str, Tensor]:
        """Zeros, if the model's own pipeline uses zeros for an absent negative prompt."""
        if not pipe.config.force_zeros_for_empty_prompt:
            return entry
        return {name: value.new_zeros(value.shape) for name, value in entry.items()}

    def conditions(self, batch: Any, options: Any, generator: Generator) -> dict[str, Tensor]:
        """time_ids (B, 6). The sample's own sizes and crop, as the model was trained to read them."""
        import torch

        return {"time_ids": torch.cat([batch.original_sizes, batch.crops, batch.target_sizes], dim=-1).float()}

    def predict(self, model: Any, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The noise, or what the checkpoint's prediction type says, (B, 4, H, W)."""
        text = cond["text"]
        added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"].to(text)}
        return model(x_t, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]

    def new_controlnet(self, cls: Any, denoiser: Any, custom: Mapping[str, Any]) -> Any:
        """The encoder of the UNet."""
        return cls.from_unet(denoiser, **custom)

    def call(self, options: Any) -> dict[str, Any]:
        return {
            "guidance_scale": options.validation_guidance,
            "guidance_rescale": options.validation_guidance_rescale,
        }


FAMILY = SDXL()
