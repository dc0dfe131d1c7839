"""DeepFloyd IF, stage I: a UNet that denoises pixels of 64 x 64, told by T5.

Upstream: deep-floyd/IF. There is no VAE: what other families call latents are the pixels in -1..1, (B, 3, H, W). The
network takes an index 0..999 and answers noise and, in three further channels, a variance that its sampler uses and
nobody trains. Text (B, 77, D) is T5's last layer; its padding is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darkroom.families.base import Family
from darkroom.families.facts import Flavour, Latents, Part, Tiny
from darkroom.families.sd1x import NO_CHECKER
from darkroom.families.tiny.parts import t5

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 77


class DeepFloyd(Family):
    name, title = "deepfloyd", "DeepFloyd IF"
    pipeline, denoiser, denoiser_part = "IFPipeline", "UNet2DConditionModel", "unet"
    prediction = "epsilon"
    latents = Latents(channels=3, downscale=1, normaliser="pixels")
    blocks = ("down_blocks", "up_blocks")
    idle_parts = ("safety_checker", "feature_extractor", "watermarker")
    text_parts = {"pretrained_t5_model_name_or_path": "text_encoder"}
    raw_output = "pt"
    default_flavour = "i-medium-400m"
    flavours = {
        "i-medium-400m": Flavour("DeepFloyd/IF-I-M-v1.0"),
        "i-large-900m": Flavour("DeepFloyd/IF-I-L-v1.0"),
        "i-xlarge-4.3b": Flavour("DeepFloyd/IF-I-XL-v1.0"),
    }
    defaults = {
        "resolution": 64,
        "validation_resolution": "64",
        "aspect_bucket_alignment": 32,
        "tokenizer_max_length": TOKENS,
        "validation_guidance": 7.0,
        "validation_num_inference_steps": 100,
    }
    targets = {
        "default": ("to_k", "to_q", "to_v", "to_out.0"),
        "all": ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"),
    }
    tiny = Tiny(
        denoiser=Part(
            "UNet2DConditionModel",
            {
                "sample_size": 64,
                "in_channels": 3,
                "out_channels": 6,
                "block_out_channels": (16, 32, 32),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "down_block_types": ("ResnetDownsampleBlock2D",) * 2 + ("SimpleCrossAttnDownBlock2D",),
                "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
                "up_block_types": ("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * 2,
                "cross_attention_dim": 32,
                "encoder_hid_dim": 32,
                "attention_head_dim": 8,
                "addition_embed_type": "text",
                "addition_embed_type_num_heads": 2,
                "cross_attention_norm": "group_norm",
                "resnet_time_scale_shift": "scale_shift",
                "act_fn": "gelu",
            },
        ),
        vae=None,
        encoders={"text_encoder": t5()},
        tokenizers={"tokenizer": "t5"},
        scheduler=Part("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}),
        settings={**NO_CHECKER, "watermarker": None},
        defaults={"aspect_bucket_alignment": 32, "tokenizer_max_length": TOKENS},
    )

    def text_numbers(self, configs: Mapping[str, Mapping[str, Any]], options: Any) -> int:
        return TOKENS * configs["text_encoder"]["d_model"]

    def encode_text(self, pipe: Any, captions: list[str], options: Any) -> dict[str, Tensor]:
        """text (B, 77, D) from T5."""
        text, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False)
        return {"text": text}

    def predict(self, model: Any, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Noise (B, 3, H, W)."""
        answer = model(x_t, t, encoder_hidden_states=cond["text"], return_dict=False)[0]
        return answer[:, : self.latents.channels]

    def embedded_call(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> dict[str, Any]:
        return {"prompt_embeds": text["text"], "negative_prompt_embeds": negative["text"]}


FAMILY = DeepFloyd()
