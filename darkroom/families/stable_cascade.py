"""Stable Cascade's prior, stage C: a UNet on latents of a forty-third of an image's size, told by CLIP bigG.

Paper 2306.00637; upstream: Stability-AI/StableCascade. The network takes a time 0..1 and answers noise. Latents (B,
16, H / 32, W / 32) are EfficientNet's of images of three quarters of the size that is drawn: sizes here are those
that are read, and what is drawn from 24 x 24 latents has 1024 pixels an edge. The other two stages are not trained.
Text (B, 77, D) is CLIP's last layer, pooled (B, 1, D) its projection; no image is shown, which is zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.core.errors import ConfigError
from darkroom.families.base import Family
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Latents
from darkroom.families.sizes import CLIP_G
from darkroom.families.tiny.components import clip

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

PRIOR, DECODER = "stabilityai/stable-cascade-prior", "stabilityai/stable-cascade"
TOKENS = 77
# places of the decoder's latents for one of the prior's; it wants an even number
DECODED = 10.67
# of the discrete process that stands for times 0..1
LAST_STEP = 999


class StableCascade(Family):
    name, title = "stable_cascade", "Stable Cascade"
    pipeline, denoiser, denoiser_component = "StableCascadePipeline", "StableCascadeUNet", "prior"
    prediction = "epsilon"
    latents = Latents(channels=16, downscale=32, normalizer="pixels")
    blocks = ("down_blocks", "up_blocks")
    hidden_states = HiddenStates(are_maps=True)
    unused_components = ("feature_extractor", "image_encoder")
    component_repositories = {"decoder": DECODER, "vqgan": DECODER}
    pipeline_decodes = True
    component_sizes = {"": {"text_encoder": CLIP_G}}
    sizes = {
        "stage-c": {
            "in_channels": 16,
            "out_channels": 16,
            "conditioning_dim": 2048,
            "block_out_channels": (2048, 2048),
            "num_attention_heads": (32, 32),
            "down_num_layers_per_block": (8, 24),
            "up_num_layers_per_block": (24, 8),
            "down_blocks_repeat_mappers": (1, 1),
            "up_blocks_repeat_mappers": (1, 1),
            "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
            "clip_text_in_channels": 1280,
            "clip_text_pooled_in_channels": 1280,
            "clip_image_in_channels": 768,
            "dropout": (0.1, 0.1),
            "timestep_conditioning_type": ("sca", "crp"),
        }
    }
    default_flavour = "stage-c"
    flavours = {
        "stage-c": Flavour(PRIOR),
        "stage-c-lite": Flavour(PRIOR, {"pretrained_transformer_subfolder": "prior_lite"}),
    }
    defaults = {
        "resolution": 768,
        "validation_resolution": "768",
        "aspect_bucket_alignment": 32,
        "tokenizer_max_length": TOKENS,
        "pretrained_vae_model_name_or_path": DECODER,
        "validation_guidance": 4.0,
        "validation_num_inference_steps": 20,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "StableCascadeUNet",
            {
                "in_channels": 16,
                "out_channels": 16,
                "conditioning_dim": 32,
                "block_out_channels": (32, 32),
                "num_attention_heads": (4, 4),
                "down_num_layers_per_block": (1, 1),
                "up_num_layers_per_block": (1, 1),
                "clip_text_in_channels": 32,
                "clip_text_pooled_in_channels": 32,
                "clip_image_in_channels": 32,
                "clip_seq": 4,
                "switch_level": (False,),
                "timestep_ratio_embedding_dim": 16,
                "patch_size": 1,
            },
        ),
        vae=ComponentSpec(
            "EfficientNetEncoder",
            {
                "stages": (
                    (True, 1, 1, 8, 1),
                    (True, 4, 2, 8, 1),
                    (True, 4, 2, 16, 1),
                    (False, 4, 2, 16, 1),
                    (False, 4, 2, 16, 1),
                ),
                "stem_channels": 8,
                "last_channels": 32,
            },
        ),
        encoders={"text_encoder": clip(act="gelu", cls="CLIPTextModelWithProjection")},
        tokenizers={"tokenizer": "clip"},
        extras={
            "decoder": ComponentSpec(
                "StableCascadeUNet",
                {
                    "in_channels": 4,
                    "out_channels": 4,
                    "conditioning_dim": 32,
                    "block_out_channels": (16, 32),
                    "num_attention_heads": (0, 4),
                    "down_num_layers_per_block": (1, 1),
                    "up_num_layers_per_block": (1, 1),
                    "down_blocks_repeat_mappers": (1, 1),
                    "up_blocks_repeat_mappers": (1, 1),
                    "block_types_per_layer": (
                        ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                        ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
                    ),
                    "clip_text_pooled_in_channels": 32,
                    "clip_seq": 4,
                    "effnet_in_channels": 16,
                    "pixel_mapper_in_channels": 3,
                    "patch_size": 2,
                    "timestep_conditioning_type": ("sca",),
                    "timestep_ratio_embedding_dim": 16,
                },
            ),
            "vqgan": ComponentSpec(
                "StableCascadeVQModel",
                {"bottleneck_blocks": 1, "embed_dim": 16, "num_vq_embeddings": 16},
            ),
        },
        scheduler=ComponentSpec("DDPMWuerstchenScheduler", {}),
        oracle={"conditioning_dim": 128, "block_out_channels": (192, 192), "dropout": (0.0, 0.0)},
        defaults={
            "resolution": 96,
            "validation_resolution": "96",
            "aspect_bucket_alignment": 32,
            "tokenizer_max_length": TOKENS,
            "pretrained_vae_model_name_or_path": None,
        },
    )

    # -- text ------------------------------------------------------------------------------------------------------

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        encoder = configs["text_encoder"]
        return TOKENS * encoder["hidden_size"] + encoder["projection_dim"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, 77, D) and pooled (B, 1, D)."""
        text, pooled, _, _ = pipe.encode_prompt(pipe.text_encoder.device, len(captions), 1, False, captions)
        return {"text": text, "pooled": pooled}

    # -- the step --------------------------------------------------------------------------------------------------

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Noise (B, 16, H, W)."""
        from darkroom.families.shared.classes import unwrap

        return model(
            sample=x_t,
            # its waves are ten thousand times as fast: rounded to bfloat16 they would tell another time
            timestep_ratio=t.float() / LAST_STEP,
            clip_text_pooled=cond["pooled"],
            clip_text=cond["text"],
            clip_img=x_t.new_zeros(len(x_t), 1, unwrap(model).config.clip_image_in_channels),
            return_dict=False,
        )[0]

    # -- the pipeline ----------------------------------------------------------------------------------------------

    def size_kwargs(self, width: int, height: int, options: Config) -> Kwargs:
        """What is drawn is four thirds of what is read. Raises ConfigError for a size that the decoder cannot draw."""
        if any(int(edge // self.latents.downscale * DECODED) % 2 for edge in (width, height)):
            problem = "The decoder cannot draw an image of this size."
            raise ConfigError("validation_resolution", f"{width}x{height}", "", problem, "Take multiples of 96.")
        return {"width": width * 4 // 3, "height": height * 4 // 3}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {
            "prompt_embeds": text["text"],
            "prompt_embeds_pooled": text["pooled"],
            "negative_prompt_embeds": negative["text"],
            "negative_prompt_embeds_pooled": negative["pooled"],
        }


FAMILY = StableCascade
