"""Stable Diffusion 1.x: a UNet over four latent channels, noise prediction, one CLIP encoder.

Paper 2112.10752. The network takes the index of the noise level, 0..999. Shapes: latents (B, 4, H, W); text (B, 77, D).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.shared.control_methods import ControlNet
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Inpainting, Latents
from darkroom.families.sizes import CLIP_L, SD_VAE
from darkroom.families.tiny.components import clip, kl_vae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

TOKENS = 77

# it would read every finished image; it sees none of ours
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}
SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
ORACLE = {"block_out_channels": (64, 64), "norm_num_groups": 8}


class SD1x(Family):
    name, title = "sd1x", "Stable Diffusion 1.x"
    pipeline, denoiser, denoiser_component = "StableDiffusionPipeline", "UNet2DConditionModel", "unet"
    trainable_text = ("text_encoder",)
    prediction = "epsilon"
    latents = Latents(channels=4, downscale=8)
    blocks = ("down_blocks", "up_blocks")
    hidden_states = HiddenStates(are_maps=True)
    unused_components = ("safety_checker", "feature_extractor", "image_encoder")
    controlnet = ControlNet(
        "ControlNetModel",
        "StableDiffusionControlNetPipeline",
        ("down_block_additional_residuals", "mid_block_additional_residual"),
        control_input_space="pixels",
        argument="image",
        unsupported=frozenset({"guidance_rescale"}),
    )
    inpainting = Inpainting("StableDiffusionInpaintPipeline", frozenset({"guidance_rescale"}))
    previews = "madebyollin/taesd"
    component_sizes = {"": {"text_encoder": CLIP_L, "vae": SD_VAE}}
    sizes = {"": {"cross_attention_dim": 768}}
    default_flavour = "1.5"
    flavours = {
        "1.5": Flavour("stable-diffusion-v1-5/stable-diffusion-v1-5"),
        "1.4": Flavour("CompVis/stable-diffusion-v1-4"),
        "dreamshaper": Flavour("Lykon/dreamshaper-8"),
    }
    defaults = {
        "resolution": 512,
        "validation_resolution": "512",
        "tokenizer_max_length": TOKENS,
        "validation_guidance": 7.5,
        "validation_num_inference_steps": 50,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec("UNet2DConditionModel", UNET),
        vae=kl_vae(4, 0.18215),
        encoders={"text_encoder": clip()},
        tokenizers={"tokenizer": "clip"},
        scheduler=ComponentSpec("EulerDiscreteScheduler", SCHEDULE),
        settings=NO_CHECKER,
        oracle=ORACLE,
    )

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return TOKENS * configs["text_encoder"]["hidden_size"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, 77, D), the last layer's states behind its norm."""
        text, _ = pipe.encode_prompt(captions, pipe.text_encoder.device, 1, do_classifier_free_guidance=False)
        return {"text": text}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The noise, or what the checkpoint's prediction type says, (B, 4, H, W)."""
        return model(x_t, t, encoder_hidden_states=cond["text"], return_dict=False)[0]

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {
            "guidance_scale": options.validation_guidance,
            "guidance_rescale": options.validation_guidance_rescale,
        }

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {"prompt_embeds": text["text"], "negative_prompt_embeds": negative["text"]}


FAMILY = SD1x
