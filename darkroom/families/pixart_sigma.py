"""PixArt-Sigma: cross attention from 2x2 patches of four channels to T5 text, noise prediction.

Paper 2403.04692; upstream: PixArt-alpha/PixArt-sigma. The network takes the timestep as an index 0..999 and answers the
noise and, in as many channels again, its variance, which the stock sampler drops.
Shapes: latents (B, 4, H, W); text (B, L, D) with a mask (B, L) of its real tokens. Captions are read in lower case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family, read_config
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.shared.text import encode_prompt
from darkroom.families.sizes import SD_VAE, T5_XXL
from darkroom.families.tiny.components import kl_vae, t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

LARGE = {"resolution": 2048, "validation_resolution": "2048"}
SMALL = {"resolution": 512, "validation_resolution": "512"}


class PixArtSigma(Family):
    name, title = "pixart_sigma", "PixArt-Sigma"
    pipeline, denoiser = "PixArtSigmaPipeline", "PixArtTransformer2DModel"
    prediction = "epsilon"
    attention_masks = "always"
    latents = Latents(channels=4, downscale=8, patch=2)
    blocks = ("transformer_blocks",)
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder"}
    previews = "madebyollin/taesdxl"
    component_sizes = {"": {"text_encoder": T5_XXL, "vae": SD_VAE}}
    sizes = {
        "": {"num_layers": 42, "caption_channels": 4096},
        **{name: {"caption_channels": 4096} for name in ("600M-512", "600M-1024", "600M-2048")},
    }
    default_flavour = "900M-1024-v0.6"
    flavours = {
        "900M-1024-v0.6": Flavour("terminusresearch/pixart-900m-1024-ft-v0.6"),
        "900M-1024-v0.7-stage1": Flavour(
            "terminusresearch/pixart-900m-1024-ft-v0.7-stage1", note="the first of two models, for high noise"
        ),
        "900M-1024-v0.7-stage2": Flavour(
            "terminusresearch/pixart-900m-1024-ft-v0.7-stage2", note="the second of two models, for low noise"
        ),
        "600M-512": Flavour("PixArt-alpha/PixArt-Sigma-XL-2-512-MS", SMALL),
        "600M-1024": Flavour("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"),
        "600M-2048": Flavour("PixArt-alpha/PixArt-Sigma-XL-2-2K-MS", LARGE),
    }
    defaults = {
        "tokenizer_max_length": 300,
        # larger gradients unsettle it
        "max_grad_norm": 0.01,
        "validation_guidance": 4.5,
        "validation_num_inference_steps": 20,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "PixArtTransformer2DModel",
            {
                "sample_size": 8,
                "num_layers": 2,
                "patch_size": 2,
                "in_channels": 4,
                "out_channels": 8,
                "attention_head_dim": 8,
                "num_attention_heads": 4,
                "cross_attention_dim": 32,
                "caption_channels": 32,
                "use_additional_conditions": False,
            },
        ),
        vae=kl_vae(4, 0.13025),
        encoders={"text_encoder": t5()},
        tokenizers={"tokenizer": "t5"},
        scheduler=ComponentSpec("DPMSolverMultistepScheduler", {"beta_schedule": "linear"}),
        oracle={"attention_head_dim": 32, "cross_attention_dim": 128},
    )

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return options.tokenizer_max_length * (configs["text_encoder"]["d_model"] + 1)

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D), mask (B, L)."""
        text, mask, _, _ = encode_prompt(pipe, captions, options)
        if options.t5_padding == "zero":
            text = text * mask.to(text)[..., None]
        return {"text": text, "mask": mask}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The noise, or what the checkpoint's prediction type says, (B, 4, H, W)."""
        answer = model(
            x_t,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"],
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return answer[:, : read_config(model).in_channels]

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {
            "guidance_scale": options.validation_guidance,
            "max_sequence_length": options.tokenizer_max_length,
            "clean_caption": False,
            # it would paint another size and crop it
            "use_resolution_binning": False,
        }

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        return {"prompt": prompt, "negative_prompt": negative}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {
            # the pipeline would read the default, an empty text, where it has no reader
            "negative_prompt": None,
            "prompt_embeds": text["text"],
            "prompt_attention_mask": text["mask"],
            "negative_prompt_embeds": negative["text"],
            "negative_prompt_attention_mask": negative["mask"],
        }


FAMILY = PixArtSigma
