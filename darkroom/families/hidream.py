"""HiDream-I1: double and single stream blocks of experts, flow matching; CLIP, T5 and all layers of Llama 3.1 for text.

Paper 2505.22705; upstream: HiDream-ai/HiDream-I1. The network takes the noise level as 0..1000 and answers x0 - noise.
Shapes: latents (B, 16, H, W); text (B, L, D) from T5, llama (B, layers, L, D), pooled (B, P) of both CLIP encoders. In
training the network answers tokens (B, 16, N, 4): an image that is not square is padded to its longest sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family, read_config
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Latents, Limits
from darkroom.families.shared.text import encode_prompt
from darkroom.families.sizes import CLIP_G, CLIP_L, FLUX_VAE, LLAMA31_8B, T5_XXL
from darkroom.families.tiny.components import clip, kl_vae, llama, t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

LLAMA = "terminusresearch/HiDream-I1-Llama-3.1-8B-Instruct"
# the pipeline paints images of this edge's area; asked for less, it is told so
LARGEST_EDGE = 1024


class HiDream(Family):
    name, title = "hidream", "HiDream-I1"
    pipeline, denoiser = "HiDreamImagePipeline", "HiDreamImageTransformer2DModel"
    prediction = "flow_matching"
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="shift_scale")
    blocks = ("double_stream_blocks", "single_stream_blocks")
    hidden_states = HiddenStates(image="first")
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder_3"}
    component_repositories = {"text_encoder_4": LLAMA, "tokenizer_4": LLAMA}
    previews = "madebyollin/taef1"
    component_sizes = {
        "": {
            # which read longer captions here than elsewhere
            "text_encoder": CLIP_L | {"max_position_embeddings": 248},
            "text_encoder_2": CLIP_G | {"max_position_embeddings": 218},
            "text_encoder_3": T5_XXL,
            "text_encoder_4": LLAMA31_8B,
            "vae": FLUX_VAE,
        }
    }
    sizes = {
        "": {
            "patch_size": 2,
            "in_channels": 16,
            "num_layers": 16,
            "num_single_layers": 32,
            "num_attention_heads": 20,
            "attention_head_dim": 128,
            "caption_channels": (4096, 4096),
            "text_emb_dim": 2048,
            "num_routed_experts": 4,
            "num_activated_experts": 2,
            "axes_dims_rope": (64, 32, 32),
            "max_resolution": (128, 128),
            "llama_layers": (*range(32), *(31,) * 16),
        }
    }
    default_flavour = "full"
    flavours = {
        "full": Flavour("HiDream-ai/HiDream-I1-Full"),
        "dev": Flavour(
            "HiDream-ai/HiDream-I1-Dev",
            {"flow_schedule_shift": 6.0, "validation_guidance": 1.0, "validation_num_inference_steps": 28},
            distilled="28 steps that answer as if guided",
        ),
        "fast": Flavour(
            "HiDream-ai/HiDream-I1-Fast",
            {"validation_guidance": 1.0, "validation_num_inference_steps": 16},
            distilled="16 steps without guidance",
        ),
    }
    defaults = {
        "tokenizer_max_length": 128,
        "flow_schedule_shift": 3.0,
        "validation_guidance": 5.0,
        "validation_num_inference_steps": 50,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "HiDreamImageTransformer2DModel",
            {
                "patch_size": 2,
                "in_channels": 16,
                "out_channels": 16,
                "num_layers": 1,
                "num_single_layers": 1,
                "attention_head_dim": 8,
                "num_attention_heads": 4,
                "caption_channels": (32, 32),
                "text_emb_dim": 64,
                "num_routed_experts": 4,
                "num_activated_experts": 2,
                "axes_dims_rope": (4, 2, 2),
                "max_resolution": (32, 32),
                "llama_layers": (0, 1),
            },
        ),
        vae=kl_vae(16, 0.3611, 0.1159),
        encoders={
            "text_encoder": clip(cls="CLIPTextModelWithProjection"),
            "text_encoder_2": clip(act="gelu", cls="CLIPTextModelWithProjection"),
            "text_encoder_3": t5(),
            "text_encoder_4": llama(3),
        },
        tokenizers={"tokenizer": "clip", "tokenizer_2": "clip", "tokenizer_3": "t5", "tokenizer_4": "chat"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        oracle={"attention_head_dim": 32, "axes_dims_rope": (16, 8, 8), "num_routed_experts": 2},
    )

    # -- text ------------------------------------------------------------------------------------------------------

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        reader = configs["text_encoder_4"]
        width = configs["text_encoder_3"]["d_model"] + reader["num_hidden_layers"] * reader["hidden_size"]
        pooled = sum(configs[name]["projection_dim"] for name in ("text_encoder", "text_encoder_2"))
        return options.tokenizer_max_length * width + pooled

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D), llama (B, layers, L, D), pooled (B, P)."""
        text, _, layers, _, pooled, _ = encode_prompt(pipe, captions, options)
        return {"text": text, "llama": layers.transpose(0, 1), "pooled": pooled}

    def limits(self, settings: Settings) -> Limits:
        """An image's tokens are padded to its longest sequence."""
        sides = settings.get("max_resolution")
        return Limits(pixels=sides[0] * sides[1] * self.latents.downscale**2 if sides else None)

    # -- the step --------------------------------------------------------------------------------------------------

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W)."""
        answer = model(
            hidden_states=x_t,
            timesteps=t.float() * 1000,  # in bf16, times near 1000 would be rounded to steps of 4
            encoder_hidden_states_t5=cond["text"],
            encoder_hidden_states_llama3=cond["llama"].transpose(0, 1),
            pooled_embeds=cond["pooled"],
            return_dict=False,
        )[0]
        if model.training and not read_config(model).force_inference_output:
            answer = _unpack(answer, *x_t.shape[-2:])
        return -answer

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance, "max_sequence_length": options.tokenizer_max_length}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {
            "prompt_embeds_t5": text["text"],
            "prompt_embeds_llama3": text["llama"].transpose(0, 1),
            "pooled_prompt_embeds": text["pooled"],
            "negative_prompt_embeds_t5": negative["text"],
            "negative_prompt_embeds_llama3": negative["llama"].transpose(0, 1),
            "negative_pooled_prompt_embeds": negative["pooled"],
        }

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        """It scales every size to one area, a little more than asked for here, since it rounds down."""
        edge = min(LARGEST_EDGE, (width * height) ** 0.5)
        pipe.default_sample_size = edge * (1 + 1e-9) / pipe.vae_scale_factor


def _unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, C, N, 4), those of the image first, to (B, C, height, width)."""
    rows, columns = height // 2, width // 2
    grid = tokens[:, :, : rows * columns].unflatten(2, (rows, columns)).unflatten(4, (2, 2))
    return grid.permute(0, 1, 2, 4, 3, 5).reshape(*tokens.shape[:2], height, width)


FAMILY = HiDream
