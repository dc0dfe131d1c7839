"""Qwen-Image: double stream blocks over packed 2x2 latents, flow matching, a Qwen2.5-VL model that reads the caption.

Paper 2508.02324; upstream: QwenLM/Qwen-Image. The network takes the noise level as 0..1 and answers noise - x0.
Shapes: latents (B, 16, H, W), of a video VAE's single frame, become tokens (B, H/2 * W/2, 64), channel first inside a
token; text (L, D) of each caption, its own length, B of them padded to (B, L, D) with a mask (B, L).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darkroom.families.base import Family
from darkroom.families.facts import ControlNet, Flavour, Latents, Part, Tiny
from darkroom.families.flux import pack, unpack
from darkroom.families.text import stack_padded
from darkroom.families.tiny.parts import qwen2_vl, qwen_image_vae

if TYPE_CHECKING:
    from torch import Tensor


class QwenImage(Family):
    name, title = "qwen_image", "Qwen-Image"
    pipeline, denoiser = "QwenImagePipeline", "QwenImageTransformer2DModel"
    prediction = "flow_matching"
    unguided = {"true_cfg_scale": 1.0}
    latents = Latents(channels=16, downscale=8, patch=2, normaliser="channels", framed=True)
    blocks = ("transformer_blocks",)
    controlnet = ControlNet("QwenImageControlNetModel", "QwenImageControlNetPipeline", ("controlnet_block_samples",))
    default_flavour = "v2.0"
    flavours = {"v2.0": Flavour("Qwen/Qwen-Image-2512"), "v1.0": Flavour("Qwen/Qwen-Image")}
    defaults = {
        "tokenizer_max_length": 1024,
        "aspect_bucket_alignment": 32,
        "flow_schedule_shift": 1.73,
        "validation_guidance_real": 4.0,
        "validation_num_inference_steps": 30,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = Tiny(
        denoiser=Part(
            "QwenImageTransformer2DModel",
            {
                "patch_size": 2,
                "in_channels": 64,
                "out_channels": 16,
                "num_layers": 2,
                "attention_head_dim": 16,
                "num_attention_heads": 3,
                "joint_attention_dim": 32,
                "axes_dims_rope": (8, 4, 4),
            },
        ),
        vae=qwen_image_vae(),
        encoders={"text_encoder": qwen2_vl()},
        tokenizers={"tokenizer": "chat"},
        scheduler=Part(
            "FlowMatchEulerDiscreteScheduler",
            {
                "use_dynamic_shifting": True,
                "base_shift": 0.5,
                "max_shift": 0.9,
                "base_image_seq_len": 256,
                "max_image_seq_len": 8192,
                "shift_terminal": 0.02,
                "time_shift_type": "exponential",
            },
        ),
        oracle={"attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": (8, 12, 12)},
    )

    def text_numbers(self, configs: Mapping[str, Mapping[str, Any]], options: Any) -> int:
        """At most: a caption is stored in its own length."""
        return options.tokenizer_max_length * configs["text_encoder"]["text_config"]["hidden_size"]

    def encode_text(self, pipe: Any, captions: list[str], options: Any) -> dict[str, Any]:
        """text, B tensors (L, D), of the last layer, without the instruction that stands before every caption."""
        text, mask = pipe.encode_prompt(captions, max_sequence_length=options.tokenizer_max_length)
        return {"text": list(text) if mask is None else [r[m.bool()] for r, m in zip(text, mask, strict=True)]}

    def stack_text(self, entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return stack_padded(entries)

    def predict(self, model: Any, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W)."""
        height, width = x_t.shape[-2:]
        tokens = model(
            hidden_states=pack(x_t),
            timestep=t.to(x_t.dtype),
            encoder_hidden_states_mask=cond.get("mask"),
            encoder_hidden_states=cond["text"],
            img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    def new_controlnet(self, cls: Any, denoiser: Any, custom: Mapping[str, Any]) -> Any:
        """The first blocks of the transformer."""
        from darkroom.families.control import of_transformer

        sizes = {name: denoiser.config[name] for name in ("attention_head_dim", "num_attention_heads")}
        return of_transformer(cls, denoiser, {**sizes, **custom})

    def call(self, options: Any) -> dict[str, Any]:
        return {
            "true_cfg_scale": options.validation_guidance_real,
            "max_sequence_length": options.tokenizer_max_length,
        }

    def prompt_call(self, prompt: str, negative: str, options: Any) -> dict[str, Any]:
        # guidance is off without a negative prompt, even an empty one
        return {"prompt": prompt, "negative_prompt": negative}

    def embedded_call(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> dict[str, Any]:
        return {"prompt_embeds": text["text"], "negative_prompt_embeds": negative["text"]}

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        return unpack(latents, height, width)


FAMILY = QwenImage()
