"""AuraFlow: joint and single stream blocks over 2x2 patches of four channels, flow matching, a UMT5 encoder for text.

Upstream: cloneofsimo/minRF. The network takes the noise level as 0..1 and answers noise - x0.
Shapes: latents (B, 4, H, W); text (B, L, D) with zeros behind each caption's end. Its table of learned positions limits
the size of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Latents, Limits
from darkroom.families.shared.text import encode_prompt
from darkroom.families.sizes import PILE_T5_XL, SD_VAE
from darkroom.families.tiny.components import kl_vae, t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config


EARLY: Settings = {"pos_embed_max_size": 4096}


class AuraFlow(Family):
    name, title = "auraflow", "AuraFlow"
    pipeline, denoiser = "AuraFlowPipeline", "AuraFlowTransformer2DModel"
    prediction = "flow_matching"
    latents = Latents(channels=4, downscale=8, patch=2)
    blocks = ("joint_transformer_blocks", "single_transformer_blocks")
    hidden_states = HiddenStates(output=1)
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder"}
    previews = "madebyollin/taesdxl"
    component_sizes = {"": {"text_encoder": PILE_T5_XL, "vae": SD_VAE}}
    # those of the later ones are in their own settings
    sizes = {"": {}, "v0.2": EARLY, "v0.1": EARLY}
    default_flavour = "v0.3"
    flavours = {
        "v0.3": Flavour("terminusresearch/auraflow-v0.3"),
        "pony": Flavour("purplesmartai/pony-v7-base", {"tokenizer_max_length": 768}),
        "v0.2": Flavour("fal/AuraFlow-v0.2"),
        "v0.1": Flavour("fal/AuraFlow"),
    }
    defaults = {
        "tokenizer_max_length": 256,
        "flow_schedule_shift": 1.73,
        "validation_guidance": 2.0,
        "validation_num_inference_steps": 20,
    }
    targets = {
        "default": ("to_k", "to_q", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    }
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "AuraFlowTransformer2DModel",
            {
                "sample_size": 32,
                "patch_size": 2,
                "in_channels": 4,
                "num_mmdit_layers": 1,
                "num_single_dit_layers": 1,
                "attention_head_dim": 8,
                "num_attention_heads": 4,
                "joint_attention_dim": 32,
                "caption_projection_dim": 32,
                "out_channels": 4,
                "pos_embed_max_size": 256,
            },
        ),
        vae=kl_vae(4, 0.13025),
        encoders={"text_encoder": t5(cls="UMT5EncoderModel")},
        tokenizers={"tokenizer": "t5"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 1.73}),
        oracle={"attention_head_dim": 32, "caption_projection_dim": 128},
    )

    def limits(self, settings: Settings) -> Limits:
        """Its table of positions is a square of so many tokens."""
        table = settings.get("pos_embed_max_size")
        return Limits(edge=table and math.isqrt(table) * self.latents.patch * self.latents.downscale)

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return options.tokenizer_max_length * configs["text_encoder"]["d_model"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D); the pipeline has put zeros where there is padding."""
        text, _, _, _ = encode_prompt(pipe, captions, options)
        return {"text": text}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 4, H, W)."""
        return model(x_t, encoder_hidden_states=cond["text"], timestep=t.to(x_t.dtype), return_dict=False)[0]

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance, "max_sequence_length": options.tokenizer_max_length}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        # the pipeline asks for masks and uses them only where it reads a prompt itself
        return {
            "prompt_embeds": text["text"],
            "prompt_attention_mask": text["text"].new_ones(text["text"].shape[:2]),
            "negative_prompt_embeds": negative["text"],
            "negative_prompt_attention_mask": negative["text"].new_ones(negative["text"].shape[:2]),
        }


FAMILY = AuraFlow
