"""Cosmos-Predict2 text to image: one frame of a video transformer that attends to T5 text.

Upstream: nvidia-cosmos/cosmos-predict2. Published as a denoiser of x0 + sigma * noise: with t = sigma / (1 + sigma) its
scaled input is (1 - t) * x0 + t * noise, and what it answers is noise - x0. It is a flow model in all but its sampler,
which counts sigma from 80 to 0. Shapes: latents (B, 16, H, W), of a video VAE's single frame; text (B, L, D) with zeros
behind each caption's end. The license asks for NVIDIA's guardrail wherever it makes images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents, Limits
from darkroom.families.shared.text import encode_prompt
from darkroom.families.sizes import DEFAULT, T5_11B
from darkroom.families.tiny.components import t5

if TYPE_CHECKING:
    import numpy as np
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.pipeline_call import Stage
    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config


class NothingToGuard:
    """In the guardrail's place where no image is made, or only ones of the tiny model's noise."""

    def to(self, device: object) -> NothingToGuard:
        """It is nowhere."""
        return self

    def check_text_safety(self, prompt: str) -> bool:
        """Every prompt is safe."""
        return True

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        """Frames as they are."""
        return frames


class Cosmos2Image(Family):
    name, title = "cosmos2image", "Cosmos-Predict2"
    pipeline, denoiser = "Cosmos2TextToImagePipeline", "CosmosTransformer3DModel"
    prediction = "flow_matching"
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="channels", framed=True)
    blocks = ("transformer_blocks",)
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder"}
    sigma_is_ratio = True
    render_packages = ("cosmos_guardrail",)
    component_sizes = {"": {"text_encoder": T5_11B, "vae": DEFAULT}}
    sizes = {
        "2b": {"num_attention_heads": 16, "num_layers": 28},
        "14b": {"num_attention_heads": 40, "num_layers": 36},
    }
    default_flavour = "2b"
    flavours = {
        "2b": Flavour("nvidia/Cosmos-Predict2-2B-Text2Image", note="images need the package cosmos_guardrail"),
        "14b": Flavour("nvidia/Cosmos-Predict2-14B-Text2Image", note="images need the package cosmos_guardrail"),
    }
    defaults = {
        "tokenizer_max_length": 512,
        "aspect_bucket_alignment": 16,
        # sigma = exp(z): t = sigmoid(z)
        "flow_schedule_shift": 1.0,
        # its formula adds to the guided answer: 7 is 8 elsewhere
        "validation_guidance": 7.0,
        "validation_num_inference_steps": 35,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "CosmosTransformer3DModel",
            {
                "in_channels": 16,
                "out_channels": 16,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 2,
                "mlp_ratio": 2,
                "text_embed_dim": 32,
                "adaln_lora_dim": 4,
                "max_size": (4, 32, 32),
                "patch_size": (1, 2, 2),
                "rope_scale": (1.0, 4.0, 4.0),
                # the published ones have it; diffusers resizes their mask by torchvision, which a tiny run goes without
                "concat_padding_mask": False,
                "extra_pos_embed_type": None,
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
        encoders={"text_encoder": t5()},
        tokenizers={"tokenizer": "t5"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
        oracle={"num_attention_heads": 4, "attention_head_dim": 32, "adaln_lora_dim": 32},
    )

    def limits(self, settings: Settings) -> Limits:
        """It counts positions up to the longest of its sides, in patches."""
        if not (sides := settings.get("max_size")):
            return Limits()
        patches = settings.get("patch_size") or (1, self.latents.patch, self.latents.patch)
        max_patches = max(side // patch for side, patch in zip(sides, patches, strict=True))
        return Limits(edge=max_patches * self.latents.patch * self.latents.downscale)

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return options.tokenizer_max_length * configs["text_encoder"]["d_model"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D); the pipeline has put zeros where there is padding."""
        text, _ = encode_prompt(pipe, captions, options)
        return {"text": text}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W)."""
        height, width = (edge * self.latents.downscale for edge in x_t.shape[-2:])
        answer = model(
            hidden_states=x_t.unsqueeze(2),
            timestep=t.to(x_t.dtype),
            encoder_hidden_states=cond["text"],
            # nothing of an image is padding
            padding_mask=x_t.new_zeros(1, 1, height, width),
            return_dict=False,
        )[0]
        return answer.squeeze(2)

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance, "max_sequence_length": options.tokenizer_max_length}

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        # without a negative prompt it would take a long one of its own
        return {"prompt": prompt, "negative_prompt": negative}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {"prompt_embeds": text["text"], "negative_prompt_embeds": negative["text"]}

    def default_components(self, stage: Stage) -> dict[str, object]:
        """The guardrail: NVIDIA's own wherever a published model makes images."""
        if stage == "render" and not self.spec.is_tiny:
            from darkroom.core.optional import import_optional

            (package,) = self.render_packages
            return {"safety_checker": import_optional(package, "", f"An image of {self.title}").CosmosSafetyChecker()}
        return {"safety_checker": NothingToGuard()}

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return latents.unsqueeze(2)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        """One frame's latents to (B, 16, H, W). A finished image comes without its frame axis, and stays."""
        return latents.squeeze(2) if latents.ndim == 5 else latents


FAMILY = Cosmos2Image
