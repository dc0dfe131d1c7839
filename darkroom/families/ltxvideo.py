"""LTX-Video 0.9: one token for every latent of a video VAE that shrinks 32 times along edges and 8 times in time.

Paper 2501.00103; upstream: Lightricks/LTX-Video. The network takes the noise level as 0..1000, one for each token where
clips start from an image, and answers noise - x0; positions are in seconds and pixels.
Shapes: latents (B, 128, F, H, W), F = (frames - 1) / 8 + 1, become tokens (B, F * H * W, 128); T5 text (B, L, D) with a
mask (B, L).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.shared.first_frame import noise_fractions, token_times
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.shared.text import encode_prompt
from darkroom.families.sizes import LTX095_VAE, T5_XXL
from darkroom.families.tiny.components import t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config

IMAGE_TO_VIDEO_FIELDS: Settings = {"image_input": "optional", "image_pipeline": "LTXImageToVideoPipeline"}
SMALL_CHANNELS = (8, 8, 8, 8)
SINGLE_LAYER = (1, 1, 1, 1, 1)


class LTXVideo(Family):
    name, title = "ltxvideo", "LTX-Video"
    pipeline, denoiser = "LTXPipeline", "LTXVideoTransformer3DModel"
    prediction = "flow_matching"
    attention_masks = "always"
    shift_line = (1024, 4096, 0.95, 2.05)
    latents = Latents(channels=128, downscale=32, normalizer="statistics", temporal=8)
    blocks = ("transformer_blocks",)
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder"}
    fps = 25.0
    supports = Family.supports | {"video"}
    caches = True
    component_sizes = {"": {"text_encoder": T5_XXL}, "0.9.5": {"vae": LTX095_VAE}}
    sizes = {"": {}}
    default_flavour = "0.9.5"
    flavours = {
        "0.9.5": Flavour("Lightricks/LTX-Video-0.9.5", **IMAGE_TO_VIDEO_FIELDS),
        "0.9.0": Flavour("Lightricks/LTX-Video", **IMAGE_TO_VIDEO_FIELDS),
    }
    defaults = {
        "resolution": 480,
        "validation_resolution": "704x480",
        "aspect_bucket_alignment": 64,
        "tokenizer_max_length": 226,
        "flow_schedule_shift": 1.0,
        # a constant 1 would train next to none of the noise at which the pipeline spends half of its steps
        "flow_schedule_auto_shift": True,
        "validation_guidance": 3.0,
        "validation_num_inference_steps": 40,
        "validation_num_video_frames": 121,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "LTXVideoTransformer3DModel",
            {
                "in_channels": 128,
                "out_channels": 128,
                "num_attention_heads": 4,
                "attention_head_dim": 8,
                "cross_attention_dim": 32,
                "num_layers": 2,
                "caption_channels": 32,
            },
        ),
        vae=ComponentSpec(
            "AutoencoderKLLTXVideo",
            {
                "latent_channels": 128,
                "block_out_channels": SMALL_CHANNELS,
                "decoder_block_out_channels": SMALL_CHANNELS,
                "layers_per_block": SINGLE_LAYER,
                "decoder_layers_per_block": SINGLE_LAYER,
                "decoder_inject_noise": (False,) * 5,
                "timestep_conditioning": True,
            },
        ),
        encoders={"text_encoder": t5()},
        tokenizers={"tokenizer": "t5"},
        scheduler=ComponentSpec(
            "FlowMatchEulerDiscreteScheduler",
            {
                "use_dynamic_shifting": True,
                "base_shift": 0.95,
                "max_shift": 2.05,
                "base_image_seq_len": 1024,
                "max_image_seq_len": 4096,
                "shift_terminal": 0.1,
            },
        ),
        oracle={"num_attention_heads": 4, "attention_head_dim": 64, "cross_attention_dim": 256},
        defaults={"aspect_bucket_alignment": 32},
    )

    # -- text ------------------------------------------------------------------------------------------------------

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return options.tokenizer_max_length * (configs["text_encoder"]["d_model"] + 1)

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D) from T5 and mask (B, L), 1 where there is text."""
        text, mask, _, _ = encode_prompt(pipe, captions, options)
        return {"text": text, "mask": mask}

    # -- the step --------------------------------------------------------------------------------------------------

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> Cond:
        """rate: frames per second; noisy: with `ltx_train_mode` i2v, first frames have little noise or none.

        A share `ltx_i2v_prob` of the clips is given its first frame with up to `ltx_partial_noise_fraction` of the
        noise; `ltx_protect_first_frame` gives it to all, without any. A dataset of `is_i2v` false has no part in it.
        """
        import torch

        inputs: Cond = {"rate": float(options.framerate or self.fps or 0)}
        if options.ltx_train_mode == "t2v" or batch.is_i2v is False:
            return inputs
        count = len(batch.latents)
        if options.ltx_protect_first_frame:
            first = torch.zeros(count)
        else:
            draw, amount = torch.rand(2, count, generator=generator)
            first = torch.where(draw < options.ltx_i2v_prob, amount * options.ltx_partial_noise_fraction, 1.0)
        return {**inputs, "noisy": noise_fractions(batch.latents, first)}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Velocity from data to noise, (B, 128, F, H, W)."""
        frames, height, width = x_t.shape[2:]
        time = t.float() * 1000
        if "noisy" in cond:
            time = token_times(time, cond["noisy"], self.latents.tokens(height, width))
        scale = self.latents.downscale
        tokens = model(
            hidden_states=self.to_pipeline(x_t),
            encoder_hidden_states=cond["text"],
            timestep=time,
            encoder_attention_mask=cond["mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(self.latents.temporal / cond["rate"], scale, scale),
            return_dict=False,
        )[0]
        return self.from_pipeline(tokens, height, width)

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {
            "guidance_scale": options.validation_guidance,
            "max_sequence_length": options.tokenizer_max_length,
            "num_frames": self.spec.clip_frames(options),
            "frame_rate": options.framerate or self.fps,
        }

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {
            "prompt_embeds": text["text"],
            "prompt_attention_mask": text["mask"],
            "negative_prompt_embeds": negative["text"],
            "negative_prompt_attention_mask": negative["mask"],
        }

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return latents.flatten(2).mT

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        return latents.mT.unflatten(2, (-1, height, width))


FAMILY = LTXVideo
