"""HunyuanVideo: double and single stream blocks over video patches, flow matching, a Llama model for text.

Paper 2412.03603; upstream: Tencent/HunyuanVideo. The network takes the noise level as 0..1000, a guidance value times
1000, and answers noise - x0. Shapes: latents (B, 16, F, H, W), F = (frames - 1) / 4 + 1; text (B, L, D) of the third
layer from the end, with a mask (B, L) of its real tokens; pooled (B, P) from CLIP. An instruction stands before every
caption; its 95 rows are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from darkroom.families.base import Family
from darkroom.families.facts import Flavour, Latents, Part, Tiny
from darkroom.families.tiny.parts import clip, llama

if TYPE_CHECKING:
    from torch import Generator, Tensor


class HunyuanVideoOriginal(Family):
    name, title = "hunyuanvideo_original", "HunyuanVideo"
    pipeline, denoiser = "HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel"
    prediction = "flow_matching"
    latents = Latents(channels=16, downscale=8, patch=2, temporal=4)
    blocks = ("transformer_blocks", "single_transformer_blocks")
    guidance_input = True
    unguided = {}
    fps: ClassVar[float | None] = 24.0
    supports = Family.supports | {"video"}
    default_flavour = "t2v"
    flavours = {"t2v": Flavour("hunyuanvideo-community/HunyuanVideo")}
    defaults = {
        "resolution": 720,
        "validation_resolution": "1280x720",
        "aspect_bucket_alignment": 16,
        "tokenizer_max_length": 256,
        "flow_schedule_shift": 7.0,
        "validation_guidance": 6.0,
        "validation_guidance_real": 1.0,
        "validation_num_inference_steps": 50,
        "validation_num_video_frames": 129,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = Tiny(
        denoiser=Part(
            "HunyuanVideoTransformer3DModel",
            {
                "in_channels": 16,
                "out_channels": 16,
                "num_attention_heads": 2,
                "attention_head_dim": 10,
                "num_layers": 1,
                "num_single_layers": 1,
                "num_refiner_layers": 1,
                "patch_size": 2,
                "patch_size_t": 1,
                "guidance_embeds": True,
                "text_embed_dim": 32,
                "pooled_projection_dim": 32,
                "rope_axes_dim": (2, 4, 4),
            },
        ),
        vae=Part(
            "AutoencoderKLHunyuanVideo",
            {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 16},
        ),
        encoders={
            "text_encoder": llama(4, cls="LlamaModel", vocabulary=450, marks=(0, 1, 2)),
            "text_encoder_2": clip(),
        },
        tokenizers={"tokenizer": "llama", "tokenizer_2": "clip"},
        scheduler=Part("FlowMatchEulerDiscreteScheduler", {"shift": 7.0}),
        oracle={"num_attention_heads": 4, "attention_head_dim": 32, "rope_axes_dim": (8, 12, 12)},
    )

    # -- text ------------------------------------------------------------------------------------------------------

    def text_numbers(self, configs: Mapping[str, Mapping[str, Any]], options: Any) -> int:
        text = options.tokenizer_max_length * (configs["text_encoder"]["hidden_size"] + 1)
        return text + configs["text_encoder_2"]["hidden_size"]

    def encode_text(self, pipe: Any, captions: list[str], options: Any) -> dict[str, Tensor]:
        """text (B, L, D) from Llama with its mask (B, L), pooled (B, P) from CLIP."""
        text, pooled, mask = pipe.encode_prompt(captions, max_sequence_length=options.tokenizer_max_length)
        return {"text": text, "pooled": pooled, "mask": mask}

    # -- the step --------------------------------------------------------------------------------------------------

    def conditions(self, batch: Any, options: Any, generator: Generator) -> dict[str, Tensor]:
        """guidance (B,): constant, or drawn between the two bounds."""
        import torch

        count = len(batch.latents)
        if options.flux_guidance_mode == "random-range":
            low, high = options.flux_guidance_min, options.flux_guidance_max
            return {"guidance": low + (high - low) * torch.rand(count, generator=generator)}
        return {"guidance": torch.full((count,), float(options.flux_guidance_value))}

    def predict(self, model: Any, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, F, H, W)."""
        return model(
            hidden_states=x_t,
            # float32 in any precision: bfloat16 has no more than 256 noise levels up to 1000
            timestep=t.float() * 1000,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"].to(x_t.dtype),
            pooled_projections=cond["pooled"],
            guidance=cond["guidance"].to(x_t) * 1000,
            return_dict=False,
        )[0]

    # -- the stock pipeline ----------------------------------------------------------------------------------------

    def call(self, options: Any) -> dict[str, Any]:
        return {
            "guidance_scale": options.validation_guidance,
            "true_cfg_scale": options.validation_guidance_real,
            "max_sequence_length": options.tokenizer_max_length,
            "num_frames": self.latents.whole_frames(options.validation_num_video_frames),
        }

    def prompt_call(self, prompt: str, negative: str, options: Any) -> dict[str, Any]:
        # the pipeline's real guidance is off without a negative prompt, even an empty one
        return {"prompt": prompt, "negative_prompt": negative}

    def embedded_call(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> dict[str, Any]:
        return {
            **super().embedded_call(text, negative),
            "prompt_attention_mask": text["mask"],
            "negative_prompt_attention_mask": negative["mask"],
        }


FAMILY = HunyuanVideoOriginal()
