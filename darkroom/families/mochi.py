"""Mochi 1: joint blocks over 2x2 patches of twelve channels of video, flow matching, a T5 encoder for text.

Upstream: genmoai/mochi. The network takes the noise level as 1 - t, 0 for pure noise, times 1000, and answers
x0 - noise. Shapes: latents (B, 12, F, H, W), F = (frames - 1) / 6 + 1; text (B, L, D) and mask (B, L). Where the base
says so, an empty prompt has no token at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.shared.text import encode_prompt
from darkroom.families.sizes import DEFAULT, T5_XXL
from darkroom.families.tiny.components import t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config


class Mochi(Family):
    name, title = "mochi", "Mochi 1"
    pipeline, denoiser = "MochiPipeline", "MochiTransformer3DModel"
    prediction = "flow_matching"
    # where it pools the text
    attention_masks = "always"
    latents = Latents(channels=12, downscale=8, patch=2, normalizer="channels", temporal=6)
    blocks = ("transformer_blocks",)
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder"}
    fps = 30.0
    supports = Family.supports | {"video"}
    component_sizes = {"": {"text_encoder": T5_XXL, "vae": DEFAULT}}
    sizes = {"": {}}
    default_flavour = "1-preview"
    flavours = {"1-preview": Flavour("genmo/mochi-1-preview")}
    defaults = {
        "resolution": 480,
        "validation_resolution": "848x480",
        "aspect_bucket_alignment": 16,
        "tokenizer_max_length": 256,
        "validation_guidance": 4.5,
        "validation_num_inference_steps": 64,
        "validation_num_video_frames": 85,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "MochiTransformer3DModel",
            {
                "patch_size": 2,
                "num_attention_heads": 4,
                "attention_head_dim": 8,
                "num_layers": 2,
                "pooled_projection_dim": 32,
                "in_channels": 12,
                "text_embed_dim": 32,
                "time_embed_dim": 32,
            },
        ),
        vae=ComponentSpec(
            "AutoencoderKLMochi",
            {
                "encoder_block_out_channels": (32, 32, 32, 32),
                "decoder_block_out_channels": (32, 32, 32, 32),
                "layers_per_block": (1, 1, 1, 1, 1),
                "add_attention_block": (False, False, False, False, True),
            },
        ),
        encoders={"text_encoder": t5()},
        tokenizers={"tokenizer": "t5"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
        settings={"force_zeros_for_empty_prompt": True},
        oracle={"attention_head_dim": 32},
    )

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return options.tokenizer_max_length * (configs["text_encoder"]["d_model"] + 1)

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D), mask (B, L)."""
        import torch

        # the pipeline takes a whole batch for empty where its last prompt is
        each = [encode_prompt(pipe, [caption], options)[:2] for caption in captions]
        text, mask = (torch.cat(tensors) for tensors in zip(*each, strict=True))
        return {"text": text, "mask": mask}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 12, F, H, W)."""
        return -model(
            hidden_states=x_t,
            encoder_hidden_states=cond["text"],
            # float32 in any precision: bfloat16 has no more than 256 noise levels up to 1000
            timestep=(1 - t.float()) * 1000,
            encoder_attention_mask=cond["mask"],
            return_dict=False,
        )[0]

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {
            "num_frames": self.spec.clip_frames(options),
            "guidance_scale": options.validation_guidance,
            "max_sequence_length": options.tokenizer_max_length,
        }

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {
            "prompt_embeds": text["text"],
            "prompt_attention_mask": text["mask"],
            "negative_prompt_embeds": negative["text"],
            "negative_prompt_attention_mask": negative["mask"],
        }


FAMILY = Mochi
