"""Chroma: FLUX's blocks without its modulation layers, flow matching, a T5 encoder alone for text.

Upstream: lodestone-rock/flow. One small network, the approximator, makes the modulation of every block. The network
takes the noise level as 0..1 and answers noise - x0.
Shapes: latents (B, 16, H, W) become tokens (B, H/2 * W/2, 64), channel first inside a token; text (B, L, D) with a mask
(B, L) of its real tokens and the first one of its padding, which the model was trained to see. The rest of the padding
is hidden, as in the original; diffusers 0.42's own pipeline leaves it visible and is given a boolean mask here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.flux import ATTENTION, FEED_FORWARD, TEXT_ATTENTION, image_ids, pack, unpack
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Latents
from darkroom.families.shared.text import encode_prompt
from darkroom.families.sizes import FLUX_VAE, T5_XXL
from darkroom.families.tiny.components import kl_vae, t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config


# inputs of a single block that gradient checkpointing hands on; a double block has two more, the mask among them
SINGLE = 3


class Chroma(Family):
    name, title = "chroma", "Chroma"
    pipeline, denoiser = "ChromaPipeline", "ChromaTransformer2DModel"
    prediction = "flow_matching"
    attention_masks = "always"
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="shift_scale")
    blocks = ("transformer_blocks", "single_transformer_blocks")
    hidden_states = HiddenStates(output=1)
    corrects = (
        "The padding of captions is hidden, as in the original model. The pipeline of diffusers 0.42 hands its mask to "
        "the attention as numbers, which hides nothing: images that it draws without Darkroom see the padding."
    )
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder"}
    previews = "madebyollin/taef1"
    component_sizes = {"": {"text_encoder": T5_XXL, "vae": FLUX_VAE}}
    sizes = {"": {}}
    default_flavour = "base"
    flavours = {
        "base": Flavour("lodestones/Chroma1-Base"),
        "hd": Flavour("lodestones/Chroma1-HD"),
        "flash": Flavour(
            "lodestones/Chroma1-Flash",
            {"validation_guidance": 1.0, "validation_num_inference_steps": 16},
            distilled="a few steps without guidance",
        ),
    }
    defaults = {
        "tokenizer_max_length": 512,
        "flow_schedule_shift": 3.0,
        "validation_guidance": 5.0,
        "validation_num_inference_steps": 35,
    }
    targets = {
        "default": ATTENTION,
        "all": ATTENTION + TEXT_ATTENTION,
        "all+ffs": ATTENTION + TEXT_ATTENTION + FEED_FORWARD,
    }
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "ChromaTransformer2DModel",
            {
                "patch_size": 1,
                "in_channels": 64,
                "num_layers": 1,
                "num_single_layers": 1,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": 32,
                "axes_dims_rope": (4, 4, 8),
                "approximator_num_channels": 64,
                "approximator_hidden_dim": 32,
                "approximator_layers": 1,
            },
        ),
        vae=kl_vae(16, 0.3611, 0.1159),
        encoders={"text_encoder": t5()},
        tokenizers={"tokenizer": "t5"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}),
        oracle={
            "attention_head_dim": 32,
            "num_attention_heads": 4,
            "axes_dims_rope": (8, 12, 12),
            "approximator_hidden_dim": 128,
        },
    )

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return options.tokenizer_max_length * (configs["text_encoder"]["d_model"] + 1)

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D), mask (B, L)."""
        text, _, mask, _, _, _ = encode_prompt(pipe, captions, options)
        return {"text": text, "mask": mask}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W)."""
        import torch

        height, width = x_t.shape[-2:]
        tokens, text = pack(x_t), cond["text"]
        # boolean, as in the original: diffusers' own float mask is added to the attention and hides nothing
        mask = torch.cat([cond["mask"].bool(), cond["mask"].new_ones(tokens.shape[:2], dtype=torch.bool)], dim=1)
        with _pass_mask_to_checkpoints(model, mask):
            answer = model(
                hidden_states=tokens,
                timestep=t.to(x_t.dtype),
                encoder_hidden_states=text,
                txt_ids=text.new_zeros(text.shape[1], 3),
                img_ids=image_ids(height, width, x_t.device, x_t.dtype),
                attention_mask=mask,
                return_dict=False,
            )[0]
        return unpack(answer, height, width)

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance, "max_sequence_length": options.tokenizer_max_length}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {
            "prompt_embeds": text["text"],
            "prompt_attention_mask": text["mask"].bool(),
            "negative_prompt_embeds": negative["text"],
            "negative_prompt_attention_mask": negative["mask"].bool(),
        }

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        """Its mask becomes a boolean one, for prompts that it reads itself too."""
        plain = type(pipe)._prepare_attention_mask

        def prepare_attention_mask(*, attention_mask: Tensor | None, **arguments: object) -> Tensor | None:
            hidden = None if attention_mask is None else attention_mask.bool()
            return plain(pipe, attention_mask=hidden, **arguments)

        pipe._prepare_attention_mask = prepare_attention_mask

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        return unpack(latents, height, width)


@contextlib.contextmanager
def _pass_mask_to_checkpoints(model: ModelMixin, mask: Tensor) -> Iterator[None]:
    """Inside, gradient checkpointing hands single blocks the mask too, which diffusers forgets."""
    plain = getattr(model, "_gradient_checkpointing_func", None)
    if plain is None:
        yield
        return
    model._gradient_checkpointing_func = lambda block, *inputs: plain(block, *inputs, *[mask] * (len(inputs) == SINGLE))
    try:
        yield
    finally:
        model._gradient_checkpointing_func = plain


FAMILY = Chroma
