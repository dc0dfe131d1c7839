"""DeepFloyd IF: a UNet that denoises pixels of 64 x 64, told by T5, and stage II, one that makes 256 x 256 of them.

Upstream: deep-floyd/IF. There is no VAE: what other families call latents are the pixels in -1..1, (B, 3, H, W). The
network takes an index 0..999 and answers noise and, in three further channels, a variance that its sampler uses and
nobody trains. Text (B, 77, D) is T5's last layer; its padding is seen.
Stage II also sees, as further channels, the small image, enlarged and noised (B, 3, H, W), and is told how much noise
it got, an index 0..999 (2205.11487). In training the small image is the sample itself at a quarter of its size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.sd1x import NO_CHECKER
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.first_frame import to_images
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Inpainting, Latents
from darkroom.families.tiny.components import t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image as PILImage
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

TOKENS = 77


# stage II makes images this many times as large as what it is given
ENLARGED = 4
LEVELS, USUAL_LEVEL = 1000, 250
NOISING = ComponentSpec("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"})

UNET = {
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
}
TINY = ComponentSpecs(
    denoiser=ComponentSpec("UNet2DConditionModel", UNET),
    vae=None,
    encoders={"text_encoder": t5()},
    tokenizers={"tokenizer": "t5"},
    scheduler=ComponentSpec("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}),
    settings={**NO_CHECKER, "watermarker": None},
    defaults={"aspect_bucket_alignment": 32, "tokenizer_max_length": TOKENS},
)
TINY_II = dataclasses.replace(
    TINY,
    denoiser=ComponentSpec("UNet2DConditionModel", {**UNET, "in_channels": 6, "class_embed_type": "timestep"}),
    extras={"image_noising_scheduler": NOISING},
)


def _stage_two(repository: str) -> Flavour:
    return Flavour(
        repository,
        {
            "resolution": 256,
            "validation_resolution": "256",
            "validation_guidance": 4.0,
            "validation_num_inference_steps": 50,
        },
        note="stage II: enlarges an image four times",
        pipeline="IFSuperResolutionPipeline",
        tiny=TINY_II,
        image_input="needed",
    )


class DeepFloyd(Family):
    name, title = "deepfloyd", "DeepFloyd IF"
    pipeline, denoiser, denoiser_component = "IFPipeline", "UNet2DConditionModel", "unet"
    prediction = "epsilon"
    latents = Latents(channels=3, downscale=1, normalizer="pixels")
    blocks = ("down_blocks", "up_blocks")
    hidden_states = HiddenStates(are_maps=True)
    unused_components = ("safety_checker", "feature_extractor", "watermarker")
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder"}
    raw_output = "pt"
    inpainting = Inpainting("IFInpaintingPipeline", frozenset({"width", "height"}))
    default_flavour = "i-medium-400m"
    flavours = {
        "i-medium-400m": Flavour("DeepFloyd/IF-I-M-v1.0"),
        "i-large-900m": Flavour("DeepFloyd/IF-I-L-v1.0"),
        "i-xlarge-4.3b": Flavour("DeepFloyd/IF-I-XL-v1.0"),
        "ii-medium-450m": _stage_two("DeepFloyd/IF-II-M-v1.0"),
        "ii-large-1.2b": _stage_two("DeepFloyd/IF-II-L-v1.0"),
    }
    tinies = {"tiny-ii": "ii-medium-450m"}
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
    tiny = TINY

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return TOKENS * configs["text_encoder"]["d_model"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, 77, D) from T5."""
        text, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False)
        return {"text": text}

    # -- the small image ------------------------------------------------------------------------------------------

    def _enlarges(self, options: Config) -> bool:
        """Is this stage II?"""
        return self.spec.components is TINY_II

    def sample_entries(
        self, components: SampleEncoders, pixels: Tensor, latents: Tensor, options: Config
    ) -> dict[str, Tensor]:
        """For stage II small (B, 3, H/4, W/4): the samples as it will be given images to enlarge."""
        import numpy as np
        import torch

        if not self._enlarges(options):
            return {}
        height, width = pixels.shape[-2:]
        low_resolution = [self.image_kwargs(still, width, height, options)["image"] for still in to_images(pixels)]
        rows = torch.from_numpy(np.stack([np.asarray(image) for image in low_resolution]))
        return {"small": rows.permute(0, 3, 1, 2).float() / 127.5 - 1}

    def sample_identity(self, options: Config) -> dict[str, object]:
        return {"small": ENLARGED} if self._enlarges(options) else {}

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> dict[str, Tensor]:
        """For stage II seen (B, 3, H, W), the small image, enlarged and noised, and level (B,), how much."""
        import torch
        from torch.nn.functional import interpolate

        from darkroom.diffusion.process import Epsilon
        from darkroom.diffusion.schedules import NoiseSchedule

        if not self._enlarges(options):
            return {}
        small, level = batch.extras["small"].float(), options.deepfloyd_noise_level
        if level is None:
            levels = torch.randint(LEVELS, (len(small),), generator=generator)
        else:
            levels = torch.full((len(small),), level)
        large = interpolate(small, batch.latents.shape[-2:], mode="bilinear", align_corners=True)
        # the levels are on the host, and so is the table that they are looked up in
        noising = Epsilon(NoiseSchedule.from_scheduler(find_class(NOISING.cls)(**NOISING.config).config))
        return {"seen": noising.mix(large, draw_noise(large, generator), levels), "level": levels}

    # -- the step --------------------------------------------------------------------------------------------------

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Noise (B, 3, H, W)."""
        import torch

        inputs, labels = x_t, {}
        if "seen" in cond:
            inputs = torch.cat([x_t, cond["seen"].to(x_t)], dim=1)
            labels = {"class_labels": cond["level"].to(x_t.device)}
        answer = model(inputs, t, encoder_hidden_states=cond["text"], **labels, return_dict=False)[0]
        return answer[:, : self.latents.channels]

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        if not self._enlarges(options):
            return super().pipeline_kwargs(options)
        level = options.deepfloyd_noise_level
        return {**super().pipeline_kwargs(options), "noise_level": USUAL_LEVEL if level is None else level}

    def image_kwargs(self, image: PILImage, width: int, height: int, options: Config) -> Kwargs:
        """What is to be enlarged, in the size that makes the result one of `width` x `height`."""
        return super().image_kwargs(image, width // ENLARGED, height // ENLARGED, options)

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {"prompt_embeds": text["text"], "negative_prompt_embeds": negative["text"]}


def draw_noise(images: Tensor, generator: Generator) -> Tensor:
    """Noise of the images' shape."""
    from darkroom.diffusion.noise import gaussian_like

    return gaussian_like(images, generator)


FAMILY = DeepFloyd
