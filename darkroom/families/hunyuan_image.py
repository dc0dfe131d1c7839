"""HunyuanImage 2.1: two streams and then one over single latents, flow matching, Qwen2.5-VL and a reader of glyphs.

Upstream: Tencent-Hunyuan/HunyuanImage-2.1. The network takes the noise level as 0..1000 and answers noise - x0. Shapes:
latents (B, 64, H, W) of a thirty-second of an image's edge; text and glyphs as `shared/glyphs.py` has them. It was made
for images of two thousand pixels an edge. The distilled flavour, which takes two times, is not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom.families.shared.glyphs import ReadsGlyphs, text_inputs
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.sizes import BYT5_SMALL, QWEN25_VL_7B
from darkroom.families.tiny.components import qwen2_vl, t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.pipeline_call import Stage
    from darkroom.families.shared.types import Kwargs
    from darkroom.options.config import Config

# from these steps on guidance is projected (2410.02416): in images in general, and in those with words
PROJECTED, PROJECTED_WITH_WORDS = 5, 38
GUIDERS = ("guider", "ocr_guider")


class HunyuanImage(ReadsGlyphs):
    name, title = "hunyuan_image", "HunyuanImage 2.1"
    pipeline, denoiser = "HunyuanImagePipeline", "HunyuanImageTransformer2DModel"
    prediction = "flow_matching"
    attention_masks = "always"
    latents = Latents(channels=64, downscale=32, normalizer="scale")
    blocks = ("transformer_blocks", "single_transformer_blocks")
    glyph_tokens = 128
    component_sizes = {
        "": {
            "text_encoder": QWEN25_VL_7B,
            "text_encoder_2": BYT5_SMALL,
            "vae": {
                "in_channels": 3,
                "out_channels": 3,
                "latent_channels": 64,
                "block_out_channels": (128, 256, 512, 512, 1024, 1024),
                "layers_per_block": 2,
                "spatial_compression_ratio": 32,
                "sample_size": 384,
                "scaling_factor": 0.75289,
            },
        }
    }
    sizes = {"": {"text_embed_2_dim": 1472}}
    default_flavour = "2.1"
    flavours = {"2.1": Flavour("hunyuanvideo-community/HunyuanImage-2.1-Diffusers")}
    defaults = {
        "resolution": 2048,
        "validation_resolution": "2048",
        "aspect_bucket_alignment": 64,
        "tokenizer_max_length": 1000,
        "flow_schedule_shift": 5.0,
        "validation_guidance": 3.5,
        "validation_num_inference_steps": 50,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "HunyuanImageTransformer2DModel",
            {
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 2,
                "num_single_layers": 2,
                "num_refiner_layers": 1,
                "mlp_ratio": 2.0,
                "text_embed_dim": 32,
                "text_embed_2_dim": 32,
                "rope_axes_dim": (8, 8),
            },
        ),
        vae=ComponentSpec(
            "AutoencoderKLHunyuanImage",
            {
                "in_channels": 3,
                "out_channels": 3,
                "latent_channels": 64,
                "block_out_channels": (32, 32, 32, 64, 64, 128),
                "layers_per_block": 1,
                "spatial_compression_ratio": 32,
                "sample_size": 256,
                "scaling_factor": 0.75289,
            },
        ),
        encoders={"text_encoder": qwen2_vl(), "text_encoder_2": t5(vocabulary=384)},
        tokenizers={"tokenizer": "chat", "tokenizer_2": "byt5"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 5.0}),
        oracle={"num_attention_heads": 4, "attention_head_dim": 32, "rope_axes_dim": (16, 16)},
        defaults={"resolution": 128, "validation_resolution": "128", "aspect_bucket_alignment": 64},
    )

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 64, H, W)."""
        return model(
            hidden_states=x_t,
            # float32 in any precision: bfloat16 has no more than 256 noise levels up to 1000
            timestep=t.float() * 1000,
            **text_inputs(cond),
            return_dict=False,
        )[0]

    def default_components(self, stage: Stage) -> dict[str, object]:
        """What guides: components of the pipeline, and no argument of its call."""
        from diffusers.guiders import AdaptiveProjectedMixGuidance

        starts = (PROJECTED, PROJECTED_WITH_WORDS)
        return {
            name: AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=start)
            for name, start in zip(GUIDERS, starts, strict=True)
        }

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        for name in GUIDERS:
            getattr(pipe, name).guidance_scale = options.validation_guidance
        self.limit_tokens(pipe, options)

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {}


FAMILY = HunyuanImage
