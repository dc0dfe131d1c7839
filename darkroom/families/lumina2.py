"""Lumina-Image 2.0: one stream of text and image tokens, flow matching, a Gemma 2 language model for text.

Paper 2503.21758; upstream: Alpha-VLLM/Lumina-Image-2.0. The network takes the noise level as 1 - t, 0 for pure noise,
and answers x0 - noise: time and velocity both run the other way than here.
Shapes: latents (B, 16, H, W); text (B, L, D) with a mask (B, L) of its real tokens. An instruction stands before every
caption but the empty one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Latents, Limits
from darkroom.families.shared.text import encode_prompt
from darkroom.families.sizes import FLUX_VAE, GEMMA2_2B
from darkroom.families.tiny.components import gemma2, kl_vae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config


class Lumina2(Family):
    name, title = "lumina2", "Lumina Image 2.0"
    pipeline, denoiser = "Lumina2Pipeline", "Lumina2Transformer2DModel"
    prediction = "flow_matching"
    attention_masks = "always"
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="shift_scale")
    blocks = ("noise_refiner", "context_refiner", "layers")
    hidden_states = HiddenStates(("layers",))
    negative_is_caption = False
    text_components = {"pretrained_gemma_model_name_or_path": "text_encoder"}
    previews = "madebyollin/taef1"
    component_sizes = {"": {"text_encoder": GEMMA2_2B, "vae": FLUX_VAE}}
    sizes = {"": {"axes_lens": (300, 512, 512)}}
    default_flavour = "2.0"
    flavours = {
        "2.0": Flavour("Alpha-VLLM/Lumina-Image-2.0"),
        "neta-lumina": Flavour("terminusresearch/neta-lumina-v1"),
    }
    defaults = {
        "tokenizer_max_length": 256,
        "flow_schedule_shift": 6.0,
        "validation_guidance": 4.0,
        "validation_num_inference_steps": 30,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "Lumina2Transformer2DModel",
            {
                "sample_size": 8,
                "patch_size": 2,
                "in_channels": 16,
                "hidden_size": 24,
                "num_layers": 2,
                "num_refiner_layers": 1,
                "num_attention_heads": 3,
                "num_kv_heads": 1,
                "multiple_of": 2,
                "axes_dim_rope": (4, 2, 2),
                "axes_lens": (600, 64, 64),
                "cap_feat_dim": 32,
            },
        ),
        vae=kl_vae(16, 0.3611, 0.1159),
        encoders={"text_encoder": gemma2()},
        tokenizers={"tokenizer": "gemma"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 6.0}),
        oracle={"hidden_size": 128, "num_attention_heads": 4, "num_kv_heads": 2, "axes_dim_rope": (8, 12, 12)},
        # the instruction before every caption is long in letters
        defaults={"tokenizer_max_length": 192},
    )

    def limits(self, settings: Settings) -> Limits:
        """Its rotations are tables: of the text, behind whose end the image stands, and of rows and columns."""
        if not (tables := settings.get("axes_lens")):
            return Limits()
        return Limits(edge=min(tables[1:]) * self.latents.patch * self.latents.downscale, tokens=tables[0] - 1)

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return options.tokenizer_max_length * (configs["text_encoder"]["hidden_size"] + 1)

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D) of the last layer but one, mask (B, L)."""
        text, mask, _, _ = encode_prompt(pipe, captions, options)
        return {"text": text, "mask": mask}

    def unconditional(self, pipe: DiffusionPipeline, entry: dict[str, Tensor], options: Config) -> dict[str, Tensor]:
        """The empty text without the instruction, as diffusers' pipeline reads a negative prompt."""
        _, _, text, mask = pipe.encode_prompt("", max_sequence_length=options.tokenizer_max_length)
        return {"text": text[0].detach().cpu(), "mask": mask[0].cpu()}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W)."""
        return -model(
            hidden_states=x_t,
            timestep=1 - t.float(),
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"],
            return_dict=False,
        )[0]

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance, "max_sequence_length": options.tokenizer_max_length}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {
            "prompt_embeds": text["text"],
            "prompt_attention_mask": text["mask"],
            "negative_prompt_embeds": negative["text"],
            "negative_prompt_attention_mask": negative["mask"],
        }


FAMILY = Lumina2
