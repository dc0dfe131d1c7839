"""Kolors: SDXL's UNet over four latent channels, noise prediction, the ChatGLM3 language model for text.

Upstream: Kwai-Kolors/Kolors. Trained on 1100 timesteps. Shapes: latents (B, 4, H, W); text (B, L, D) with padding in
front, pooled (B, D), its last token; time_ids (B, 6) as in `sdxl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from darkroom.families.sdxl import BASE_SIZE, SDXL
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour
from darkroom.families.shared.text import encode_prompt
from darkroom.families.sizes import CHATGLM3_6B, SD_VAE
from darkroom.families.tiny.components import chatglm

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config


class Kolors(SDXL):
    name, title = "kolors", "Kolors"
    pipeline = "KolorsPipeline"
    controlnet = None
    inpainting = None
    tinies = {}
    component_sizes = {"": {"text_encoder": CHATGLM3_6B, "vae": SD_VAE}}
    sizes = {
        "": {
            **BASE_SIZE,
            "encoder_hid_dim": 4096,
            "encoder_hid_dim_type": "text_proj",
            "projection_class_embeddings_input_dim": 5632,
        }
    }
    default_flavour = "1.0"
    trainable_text: ClassVar[tuple[str, ...]] = ()
    flavours = {"1.0": Flavour("terminusresearch/kwai-kolors-1.0")}
    # diffusers' pipeline reads its own prompts with 256 tokens, whatever it is told
    defaults = {"tokenizer_max_length": 256, "validation_guidance": 5.0, "validation_num_inference_steps": 50}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "UNet2DConditionModel",
            {
                **SDXL.tiny.denoiser.config,
                "cross_attention_dim": 32,
                "encoder_hid_dim": 32,
                "encoder_hid_dim_type": "text_proj",
            },
        ),
        vae=SDXL.tiny.vae,
        encoders={"text_encoder": chatglm()},
        tokenizers={"tokenizer": "chatglm"},
        scheduler=ComponentSpec(
            "EulerDiscreteScheduler",
            {**SDXL.tiny.scheduler.config, "beta_end": 0.014, "num_train_timesteps": 1100},
        ),
        oracle=SDXL.tiny.oracle,
        defaults={"tokenizer_max_length": 256},
    )

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return (options.tokenizer_max_length + 1) * configs["text_encoder"]["hidden_size"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D) of the last layer but one, pooled (B, D)."""
        text, _, pooled, _ = encode_prompt(pipe, captions, options)
        return {"text": text, "pooled": pooled}

    def unconditional(self, pipe: DiffusionPipeline, entry: dict[str, Tensor], options: Config) -> dict[str, Tensor]:
        return entry

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance}

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        # without a negative prompt the pipeline would have no pooled vector for it
        return {"prompt": prompt, "negative_prompt": negative}


FAMILY = Kolors
