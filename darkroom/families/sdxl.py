"""Stable Diffusion XL: a UNet over four latent channels, noise prediction, two CLIP encoders, size conditioning.

Paper 2307.01952. Shapes: latents (B, 4, H, W); text (B, 77, D1 + D2), pooled (B, P); time_ids (B, 6) holds original
height and width, crop top and left, target height and width, all in pixels.

The refiner takes over where the base leaves off, for the cleanest fifth of the noise levels. It reads text with the
second encoder alone, (B, 77, D2), and time_ids (B, 5) end with an aesthetic score in place of the target size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from darkroom.core.errors import ConfigError
from darkroom.families.base import Family
from darkroom.families.shared.control_methods import ControlNet
from darkroom.families.shared.model_spec import REFINER
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Inpainting, Latents
from darkroom.families.sizes import CLIP_G, CLIP_L, SD_VAE
from darkroom.families.tiny.components import clip, kl_vae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config


UNET = {
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
}
SECOND_ENCODER = {"text_encoder_2": clip(vocabulary=515, act="gelu", cls="CLIPTextModelWithProjection")}
SCHEDULER = ComponentSpec(
    "EulerDiscreteScheduler",
    {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    },
)
ORACLE = {
    "block_out_channels": (48, 48),
    "norm_num_groups": 8,
    "transformer_layers_per_block": (1, 1),
    "attention_head_dim": (2, 2),
}
TINY_REFINER = ComponentSpecs(
    denoiser=ComponentSpec(
        "UNet2DConditionModel", {**UNET, "projection_class_embeddings_input_dim": 72, "cross_attention_dim": 32}
    ),
    vae=kl_vae(4, 0.13025),
    encoders=SECOND_ENCODER,
    tokenizers={"tokenizer_2": "clip_g"},
    scheduler=SCHEDULER,
    settings={
        "text_encoder": None,
        "tokenizer": None,
        "requires_aesthetics_score": True,
        "force_zeros_for_empty_prompt": False,
    },
    oracle=ORACLE,
    # a fifth of them is drawn
    defaults={"validation_num_inference_steps": 10},
)


def _refiner(repository: str) -> Flavour:
    return Flavour(
        repository,
        note="refines an image: it is trained on the noise levels that the base leaves, and starts from an image",
        pipeline="StableDiffusionXLImg2ImgPipeline",
        tiny=TINY_REFINER,
        supports=frozenset({REFINER}),
        image_input="needed",
    )


# settings of the published networks beside their class's defaults
BASE_SIZE = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER_SIZE = {
    **BASE_SIZE,
    "cross_attention_dim": 1280,
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (6, 12, 24, 24),
    "transformer_layers_per_block": 4,
    "projection_class_embeddings_input_dim": 2560,
}


class SDXL(Family):
    name, title = "sdxl", "Stable Diffusion XL"
    pipeline, denoiser, denoiser_component = "StableDiffusionXLPipeline", "UNet2DConditionModel", "unet"
    trainable_text: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    prediction = "epsilon"
    flavours_encode_text = True
    latents = Latents(channels=4, downscale=8)
    blocks = ("down_blocks", "up_blocks")
    hidden_states = HiddenStates(are_maps=True)
    controlnet: ClassVar[ControlNet | None] = ControlNet(
        "ControlNetModel",
        "StableDiffusionXLControlNetPipeline",
        ("down_block_additional_residuals", "mid_block_additional_residual"),
        control_input_space="pixels",
        argument="image",
        unsupported=frozenset({"guidance_rescale"}),
    )
    inpainting: ClassVar[Inpainting | None] = Inpainting("StableDiffusionXLInpaintPipeline")
    previews = "madebyollin/taesdxl"
    component_sizes = {"": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "vae": SD_VAE}}
    sizes = {"": BASE_SIZE, "refiner-1.0": REFINER_SIZE, "refiner-0.9": REFINER_SIZE}
    default_flavour = "base-1.0"
    flavours = {
        "base-1.0": Flavour("stabilityai/stable-diffusion-xl-base-1.0"),
        "base-0.9": Flavour("stabilityai/stable-diffusion-xl-base-0.9"),
        "refiner-1.0": _refiner("stabilityai/stable-diffusion-xl-refiner-1.0"),
        "refiner-0.9": _refiner("stabilityai/stable-diffusion-xl-refiner-0.9"),
    }
    tinies = {"tiny-refiner": "refiner-1.0"}
    defaults = {"tokenizer_max_length": 77, "validation_guidance": 5.0, "validation_num_inference_steps": 30}
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "UNet2DConditionModel", {**UNET, "projection_class_embeddings_input_dim": 80, "cross_attention_dim": 64}
        ),
        vae=kl_vae(4, 0.13025),
        encoders={"text_encoder": clip(), **SECOND_ENCODER},
        tokenizers={"tokenizer": "clip", "tokenizer_2": "clip_g"},
        scheduler=SCHEDULER,
        oracle=ORACLE,
    )

    @property
    def _refines(self) -> bool:
        return REFINER in self.spec.supports

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        widths = [config["hidden_size"] for config in configs.values()]
        return 77 * sum(widths) + configs["text_encoder_2"]["projection_dim"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, 77, D) of the encoders side by side, pooled (B, P) of the second."""
        text, _, pooled, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def unconditional(self, pipe: DiffusionPipeline, entry: dict[str, Tensor], options: Config) -> dict[str, Tensor]:
        """Zeros, if the model's own pipeline uses zeros for an absent negative prompt."""
        if not pipe.config.force_zeros_for_empty_prompt:
            return entry
        return {name: value.new_zeros(value.shape) for name, value in entry.items()}

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> dict[str, Tensor]:
        """time_ids (B, 6), or (B, 5). The sample's own sizes and crop, as the model was trained to read them."""
        import torch

        last = batch.target_sizes
        if self._refines:
            last = torch.full((len(last), 1), options.data_aesthetic_score, device=last.device)
        return {"time_ids": torch.cat([batch.original_sizes, batch.crops, last], dim=-1).float()}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The noise, or what the checkpoint's prediction type says, (B, 4, H, W)."""
        text = cond["text"]
        added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"].to(text)}
        return model(x_t, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        call = {
            "guidance_scale": options.validation_guidance,
            "guidance_rescale": options.validation_guidance_rescale,
        }
        if not self._refines:
            return call
        share = self.spec.noise_range(options)[1]
        size = int(options.validation_num_inference_steps * share)
        if not size:
            raise ConfigError(
                "validation_num_inference_steps",
                options.validation_num_inference_steps,
                "",
                f"The refiner draws the last {share:g} of these steps, which is less than one.",
                "Set it to 10 or more.",
            )
        return {
            **call,
            # an image is refined from where the trained noise levels begin
            "strength": share,
            # training tells dropped captions the same score as the others
            "aesthetic_score": options.data_aesthetic_score,
            "negative_aesthetic_score": options.data_aesthetic_score,
        }


FAMILY = SDXL
