"""Sana-Video: linear attention over video patches, flow matching, a Gemma 2 language model for text, Wan's video VAE.

Paper 2509.24695; upstream: NVlabs/Sana. The network takes the noise level as 0..1000 and answers noise - x0.
Shapes: latents (B, 16, F, H, W), F = (frames - 1) / 4 + 1; text as Sana's, with an instruction that asks for motion.
Image to video: the first latent frame stays clean, and every token has a time of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom.families.sana import Sana
from darkroom.families.shared.first_frame import noise_fractions, token_times
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.sizes import DEFAULT, GEMMA2_2B
from darkroom.families.tiny.components import gemma2

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.types import Kwargs
    from darkroom.options.config import Config


class SanaVideo(Sana):
    name, title = "sanavideo", "Sana-Video"
    pipeline, denoiser = "SanaVideoPipeline", "SanaVideoTransformer3DModel"
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="channels", temporal=4)
    fps = 16.0
    supports = Sana.supports | {"video"}
    controlnet = None
    component_sizes = {"": {"text_encoder": GEMMA2_2B, "vae": DEFAULT}}
    sizes = {"": {}}
    default_flavour = "2b-480p"
    flavours = {
        "2b-480p": Flavour(
            "Efficient-Large-Model/SANA-Video_2B_480p_diffusers",
            note="from text, and from the first frame of clips whose dataset says video.is_i2v",
            image_input="optional",
            image_pipeline="SanaImageToVideoPipeline",
        )
    }
    defaults = {
        "resolution": 480,
        "validation_resolution": "832x480",
        "aspect_bucket_alignment": 32,
        "tokenizer_max_length": 300,
        "flow_schedule_shift": 8.0,
        "validation_guidance": 6.0,
        "validation_num_inference_steps": 50,
        "validation_num_video_frames": 81,
    }
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "SanaVideoTransformer3DModel",
            {
                "in_channels": 16,
                "out_channels": 16,
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "num_layers": 2,
                "num_cross_attention_heads": 2,
                "cross_attention_head_dim": 12,
                "cross_attention_dim": 24,
                "caption_channels": 32,
                "sample_size": 8,
                "patch_size": (1, 2, 2),
                "rope_max_seq_len": 32,
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
        encoders={"text_encoder": gemma2()},
        tokenizers={"tokenizer": "gemma"},
        scheduler=ComponentSpec(
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 8.0},
        ),
        oracle={
            "num_attention_heads": 4,
            "attention_head_dim": 32,
            "num_cross_attention_heads": 4,
            "cross_attention_head_dim": 32,
            "cross_attention_dim": 128,
        },
        # the pipeline makes no edges that are not multiples of 32
        defaults={"aspect_bucket_alignment": 32},
    )

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> dict[str, Tensor]:
        """noisy, where clips start from their first frame."""
        if not batch.is_i2v:
            return {}
        return {"noisy": noise_fractions(batch.latents, batch.latents.new_zeros(len(batch.latents)))}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, F, H, W)."""
        noisy, time = cond.get("noisy"), t.float() * 1000
        if noisy is not None:
            frames, height, width = x_t.shape[2:]
            patch = self.latents.patch
            tokens = token_times(time, noisy, self.latents.tokens(height, width))
            time = tokens.view(-1, 1, frames, height // patch, width // patch)
        return model(
            x_t,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"],
            timestep=time,
            return_dict=False,
        )[0]

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {**super().pipeline_kwargs(options), "frames": self.spec.clip_frames(options)}


FAMILY = SanaVideo
