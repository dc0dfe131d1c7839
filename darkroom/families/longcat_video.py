"""LongCat-Video: one stream of video patches that attends to UMT5 text, flow matching, Wan's causal video VAE.

Paper 2510.22200; upstream: meituan-longcat/LongCat-Video. The network takes the noise level as 0..1000, one for each
latent frame where clips start from an image, and answers x0 - noise. diffusers has neither it nor its pipeline:
both are written in `families.modules`.
Shapes: latents (B, 16, F, H, W), F = (frames - 1) / 4 + 1; UMT5 text (B, L, D) with a mask (B, L).
Image to video: the first latent frame stays clean, has time 0, looks at nothing else and is not told the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.shared.first_frame import noise_fractions
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.shared.text import encode_prompt, has_ftfy
from darkroom.families.sizes import DEFAULT, UMT5_XXL
from darkroom.families.tiny.components import t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config

# the patch embedder has a `proj` too
ATTENTION = ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj")
FEED_FORWARD = ("ffn.w1", "ffn.w2", "ffn.w3")


class LongCatVideo(Family):
    name, title = "longcat_video", "LongCat-Video"
    pipeline, denoiser, denoiser_component = "LongCatVideoPipeline", "LongCatVideoTransformer3DModel", "dit"
    prediction = "flow_matching"
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="channels", temporal=4)
    blocks = ("blocks",)
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder"}
    fps = 15.0
    supports = Family.supports | {"video"}
    component_sizes = {"": {"text_encoder": UMT5_XXL, "vae": DEFAULT}}
    sizes = {"": {}}
    default_flavour = "final"
    flavours = {
        "final": Flavour(
            "meituan-longcat/LongCat-Video",
            note="from text, and from the first frame of clips whose dataset says video.is_i2v",
            image_input="optional",
            image_pipeline="LongCatVideoImageToVideoPipeline",
        )
    }
    defaults = {
        "resolution": 480,
        "validation_resolution": "832x480",
        "aspect_bucket_alignment": 16,
        "tokenizer_max_length": 512,
        "flow_schedule_shift": 12.0,
        "validation_guidance": 4.0,
        "validation_num_inference_steps": 50,
        "validation_num_video_frames": 93,
    }
    targets = {"default": ATTENTION, "all+ffs": ATTENTION + FEED_FORWARD}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "LongCatVideoTransformer3DModel",
            {
                "hidden_size": 32,
                "depth": 2,
                "num_heads": 2,
                "caption_channels": 32,
                "adaln_tembed_dim": 32,
                "text_tokens_zero_pad": True,
            },
        ),
        vae=ComponentSpec(
            "AutoencoderKLWan",
            {
                "base_dim": 8,
                "z_dim": 16,
                "dim_mult": [1, 1, 1, 1],
                "num_res_blocks": 1,
                "temperal_downsample": [False, True, True],
            },
        ),
        encoders={"text_encoder": t5(cls="UMT5EncoderModel")},
        tokenizers={"tokenizer": "t5"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 12.0}),
        oracle={"hidden_size": 128, "num_heads": 4, "adaln_tembed_dim": 128},
    )

    # -- text ------------------------------------------------------------------------------------------------------

    def text_identity(self, options: Config) -> dict[str, object]:
        """The pipeline cleans a prompt further where ftfy is installed."""
        return {**super().text_identity(options), "ftfy": has_ftfy()}

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return options.tokenizer_max_length * (configs["text_encoder"]["d_model"] + 1)

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D) from UMT5 and mask (B, L), 1 where there is text."""
        text, mask, _, _ = encode_prompt(pipe, captions, options)
        return {"text": text, "mask": mask}

    # -- the step --------------------------------------------------------------------------------------------------

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> Cond:
        """noisy and given, the number of clean latent frames, where clips start from their first frame."""
        if not batch.is_i2v or batch.latents.shape[2] == 1:
            return {}
        return {"noisy": noise_fractions(batch.latents, batch.latents.new_zeros(len(batch.latents))), "given": 1}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Velocity from data to noise, (B, 16, F, H, W). Upstream's points the other way."""
        # float32 in any precision: bfloat16 has no more than 256 noise levels up to 1000
        time = t.float() * 1000  # (B,)
        if "noisy" in cond:
            time = time[:, None] * cond["noisy"].flatten(1).to(time)  # (B, F)
        return -model(
            hidden_states=x_t,
            timestep=time,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"],
            num_cond_latents=cond.get("given", 0),
            return_dict=False,
        )[0]

    # -- the pipeline ----------------------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {
            "guidance_scale": options.validation_guidance,
            "max_sequence_length": options.tokenizer_max_length,
            "num_frames": self.spec.clip_frames(options),
        }

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {
            "prompt_embeds": text["text"],
            "prompt_attention_mask": text["mask"],
            "negative_prompt_embeds": negative["text"],
            "negative_prompt_attention_mask": negative["mask"],
        }


FAMILY = LongCatVideo
