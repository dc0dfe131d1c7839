"""LongCat-Image: FLUX's blocks over packed 2x2 latents, flow matching, a Qwen2.5-VL model alone for text.

Paper 2512.07584; upstream: meituan-longcat/LongCat-Image. The network takes the noise level as 0..1 and answers
noise - x0. Shapes: latents (B, 16, H, W) become tokens (B, H/2 * W/2, 64), channel first inside a token; text
(B, L, D), where padding counts as text. Positions have three columns: kind (0 text, 1 image), row and column; those
of the text run down the diagonal, those of an image start where the longest text ends. The model that rewrites prompts
is left out: what is trained on is what is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.flux import ATTENTION, FEED_FORWARD, TEXT_ATTENTION, image_ids, pack, unpack
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Latents
from darkroom.families.sizes import FLUX_VAE, QWEN25_VL_7B
from darkroom.families.tiny.components import kl_vae, qwen2_vl

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

LONGEST_TEXT = 512
IMAGE = 1


class LongCatImage(Family):
    name, title = "longcat_image", "LongCat-Image"
    pipeline, denoiser = "LongCatImagePipeline", "LongCatImageTransformer2DModel"
    prediction = "flow_matching"
    shift_line = (256, 4096, 0.5, 1.15)
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="shift_scale")
    blocks = ("transformer_blocks", "single_transformer_blocks")
    hidden_states = HiddenStates(output=1)
    unused_components = ("text_processor",)
    component_sizes = {"": {"text_encoder": QWEN25_VL_7B, "vae": FLUX_VAE}}
    sizes = {"": {"num_layers": 10, "num_single_layers": 20}}
    default_flavour = "final"
    flavours = {
        "final": Flavour("meituan-longcat/LongCat-Image"),
        "dev": Flavour("meituan-longcat/LongCat-Image-Dev", note="from the middle of training, made to be trained on"),
    }
    defaults = {
        "tokenizer_max_length": LONGEST_TEXT,
        "aspect_bucket_alignment": 16,
        "flow_schedule_shift": 3.0,
        "validation_guidance": 4.5,
        "validation_num_inference_steps": 50,
    }
    targets = {
        "default": ATTENTION,
        "all": ATTENTION + TEXT_ATTENTION,
        "all+ffs": ATTENTION + TEXT_ATTENTION + FEED_FORWARD,
    }
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "LongCatImageTransformer2DModel",
            {
                "patch_size": 1,
                "in_channels": 64,
                "num_layers": 1,
                "num_single_layers": 1,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": 32,
                "pooled_projection_dim": 32,
                "axes_dims_rope": (4, 4, 8),
            },
        ),
        vae=kl_vae(16, 0.3611, 0.1159),
        encoders={"text_encoder": qwen2_vl()},
        tokenizers={"tokenizer": "chat"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        # it serves to rewrite prompts only
        settings={"text_processor": None},
        oracle={"attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": (8, 12, 12)},
        defaults={"tokenizer_max_length": LONGEST_TEXT},
    )

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return min(options.tokenizer_max_length, LONGEST_TEXT) * configs["text_encoder"]["text_config"]["hidden_size"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D) of the last layer, without the template around every caption."""
        text, _ = pipe.encode_prompt(captions)
        # a row knows nothing of those behind it, so a shorter text is the beginning of the longest
        return {"text": text[:, : options.tokenizer_max_length]}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W)."""
        import torch

        height, width = x_t.shape[-2:]
        text = cond["text"]
        # float32 in any precision: bfloat16 has no more than 256 places in a row
        places = image_ids(height, width, x_t.device, torch.float32, IMAGE)
        places = torch.cat([places[:, :1], places[:, 1:] + LONGEST_TEXT], dim=1)  # behind the text
        diagonal = torch.arange(text.shape[1], device=x_t.device, dtype=torch.float32)
        tokens = model(
            hidden_states=pack(x_t),
            timestep=t.to(x_t.dtype),
            encoder_hidden_states=text,
            txt_ids=torch.stack([torch.zeros_like(diagonal), diagonal, diagonal], dim=-1),
            img_ids=places,
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance, "enable_prompt_rewrite": False}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {"prompt_embeds": text["text"], "negative_prompt_embeds": negative["text"]}

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        """diffusers 0.42 counts prompts also where there are only their embeddings."""

        def encode_prompt(
            prompt: list[str] | None = None, prompt_embeds: Tensor | None = None, **arguments: object
        ) -> object:
            if prompt is None and prompt_embeds is not None:
                prompt = [""] * len(prompt_embeds)
            return type(pipe).encode_prompt(pipe, prompt=prompt, prompt_embeds=prompt_embeds, **arguments)

        pipe.encode_prompt = encode_prompt

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        return unpack(latents, height, width)


FAMILY = LongCatImage
