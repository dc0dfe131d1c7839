"""ERNIE-Image: one stream of image and text tokens, flow matching, a Mistral 3 language model for text.

Upstream: baidu/ERNIE-Image. The network takes the noise level as 0..1000 and answers noise - x0.
Shapes: latents (B, 128, H, W), the VAE's 2x2 neighbors side by side; text (L, D) of each caption, its own length, B of
them padded to (B, L, D). An image's positions count on from its caption's length. The model that diffusers' pipeline
has for rewriting prompts is left out: what is trained on is what is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Latents
from darkroom.families.shared.text import stack_padded
from darkroom.families.tiny.components import flux2_vae, mistral3

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config


class Ernie(Family):
    name, title = "ernie", "ERNIE-Image"
    pipeline, denoiser = "ErnieImagePipeline", "ErnieImageTransformer2DModel"
    prediction = "flow_matching"
    attention_masks = "always"
    latents = Latents(channels=128, downscale=16, normalizer="batch_norm_1e-5")
    blocks = ("layers",)
    hidden_states = HiddenStates(sequence_first=True)
    unused_components = ("pe", "pe_tokenizer")
    default_flavour = "base"
    flavours = {
        "base": Flavour("baidu/ERNIE-Image"),
        "turbo": Flavour(
            "baidu/ERNIE-Image-Turbo",
            {"validation_guidance": 1.0, "validation_num_inference_steps": 8},
            distilled="eight steps without guidance",
        ),
    }
    defaults = {
        "tokenizer_max_length": 1024,
        "aspect_bucket_alignment": 16,
        "flow_schedule_shift": 3.0,
        "validation_guidance": 4.0,
        "validation_num_inference_steps": 50,
    }
    targets = {
        "default": ("to_k", "to_q", "to_v", "to_out.0"),
        "all": ("to_k", "to_q", "to_v", "to_out.0", "mlp.gate_proj", "mlp.up_proj", "mlp.linear_fc2"),
    }
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "ErnieImageTransformer2DModel",
            {
                "hidden_size": 32,
                "num_attention_heads": 2,
                "num_layers": 2,
                "ffn_hidden_size": 64,
                "in_channels": 128,
                "out_channels": 128,
                "patch_size": 1,
                "text_in_dim": 32,
                "rope_axes_dim": (4, 6, 6),
            },
        ),
        vae=flux2_vae(),
        encoders={"text_encoder": mistral3(3, cls="Mistral3Model")},
        tokenizers={"tokenizer": "chat"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        oracle={
            "hidden_size": 256,
            "num_attention_heads": 4,
            "ffn_hidden_size": 512,
            "rope_axes_dim": (16, 24, 24),
        },
    )

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        """At most: a caption is stored in its own length."""
        return options.tokenizer_max_length * configs["text_encoder"]["text_config"]["hidden_size"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> Cond:
        """text, B tensors (L, D), of the last layer but one."""
        text = pipe.encode_prompt(captions, device=pipe.device)
        # the pipeline has no limit of its own; a row knows nothing of those behind it, so they can be cut off here
        return {"text": [rows[: options.tokenizer_max_length] for rows in text]}

    def stack_text(self, entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return stack_padded(entries)

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 128, H, W)."""
        import torch

        text, mask = cond["text"], cond.get("mask")
        lengths = torch.full((len(text),), text.shape[1], device=text.device) if mask is None else mask.sum(1)
        return model(
            hidden_states=x_t,
            timestep=t.float() * 1000,  # in bf16, times near 1000 would be rounded to steps of 4
            text_bth=text,
            text_lens=lengths,
            return_dict=False,
        )[0]

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance, "use_pe": False}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {"prompt_embeds": list(text["text"]), "negative_prompt_embeds": list(negative["text"])}


FAMILY = Ernie
