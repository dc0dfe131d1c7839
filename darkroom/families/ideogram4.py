"""Ideogram 4: one packed sequence of text and image tokens, flow matching, thirteen layers of Qwen3-VL for text.

Upstream: ideogram-ai/ideogram-4. The network takes the noise level as 1 - t, 0 for pure noise, and answers x0 - noise:
time and velocity both run the other way than here. Its pipeline guides with a second network without text.
Shapes: latents (B, 128, H, W), the VAE's 2x2 neighbors side by side, place by place, become tokens (B, H * W, 128);
text (L, D) of each caption, its own length, B of them padded in front to (B, L, D). Captions are structured like JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darkroom.families.base import Family
from darkroom.families.flux2 import pack
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.sizes import DEFAULT
from darkroom.families.tiny.components import flux2_vae, qwen3_vl

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedTokenizerBase

    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config

# what the network calls a token's role, and where its image positions start
PADDING, IMAGE, TEXT = 0, 2, 3
FIRST_POSITION = 65536
LAYERS = 13


class Encoded(str):
    """A prompt that is encoded already, (L, D), for a pipeline that takes prompts as text only."""

    text: Tensor


class Ideogram4(Family):
    name, title = "ideogram4", "Ideogram 4"
    pipeline, denoiser = "Ideogram4Pipeline", "Ideogram4Transformer2DModel"
    prediction = "flow_matching"
    attention_masks = "always"
    guidance_off = {"guidance_scale": 1.0, "guidance_schedule": None}
    latents = Latents(channels=128, downscale=16, normalizer="batch_norm_by_place")
    blocks = ("layers",)
    unused_components = ("prompt_enhancer_head",)
    guidance_denoisers = ("unconditional_transformer",)
    segment_argument = "indicator"
    negative_is_caption = False
    component_sizes = {"": {"vae": DEFAULT}}
    sizes = {"": {"num_layers": 34}}
    default_flavour = "fp8"
    flavours = {
        "fp8": Flavour("ideogram-ai/ideogram-4-fp8", note="published in 8 bits"),
        "nf4": Flavour("ideogram-ai/ideogram-4-nf4", note="published in 4 bits"),
    }
    defaults = {
        "tokenizer_max_length": 2048,
        "aspect_bucket_alignment": 16,
        # its sampler's own levels for a megapixel: sigmoid(1.5 z + log 2)
        "flow_sigmoid_scale": 1.5,
        "flow_schedule_shift": 2.0,
        "validation_guidance": 7.0,
        "validation_num_inference_steps": 48,
    }
    targets = {
        "default": ("to_k", "to_q", "to_v", "to_out.0"),
        "all": ("to_k", "to_q", "to_v", "to_out.0", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    }
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "Ideogram4Transformer2DModel",
            {
                "in_channels": 128,
                "num_layers": 2,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "adaln_dim": 16,
                "llm_features_dim": LAYERS * 32,
                "mrope_section": (3, 3, 2),
            },
        ),
        vae=flux2_vae(),
        encoders={"text_encoder": qwen3_vl(36)},
        tokenizers={"tokenizer": "chat"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {}),
        oracle={
            "attention_head_dim": 64,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "adaln_dim": 64,
            "mrope_section": (12, 10, 10),
        },
        # the template around every caption is long in letters
        defaults={"tokenizer_max_length": 64},
    )

    # -- text ------------------------------------------------------------------------------------------------------

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        """At most: a caption is stored in its own length."""
        return options.tokenizer_max_length * LAYERS * configs["text_encoder"]["text_config"]["hidden_size"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> Cond:
        """text, B tensors (L, D), its layers innermost; the chat template counts as text."""
        room = max(len(ids) for ids in _token_ids(pipe.tokenizer, captions))
        text, _, _, role = pipe.encode_prompt(captions, 0, 0, room, pipe.device)
        # the pipeline refuses long captions; a row knows nothing of those behind it, so they can be cut off here
        limit, dtype = options.tokenizer_max_length, pipe.text_encoder.dtype
        return {"text": [rows[roles == TEXT][:limit].to(dtype) for rows, roles in zip(text, role, strict=True)]}

    def stack_text(self, entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """text (B, L, D) with zeros before each beginning, length (B,) without them."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        texts = [entry["text"] for entry in entries]
        lengths = torch.tensor([len(rows) for rows in texts], device=texts[0].device)
        return {"text": pad_sequence(texts, batch_first=True, padding_side="left"), "length": lengths}

    # -- the step --------------------------------------------------------------------------------------------------

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 128, H, W)."""
        import torch

        text, tokens = cond["text"], pack(x_t)  # (B, L, D), (B, N, 128)
        (count, longest), pixels = text.shape[:2], tokens.shape[1]
        height, width = x_t.shape[-2:]
        number = torch.arange(longest, device=x_t.device) - (longest - cond["length"].to(x_t.device))[:, None]
        is_text = number >= 0  # (B, L)
        ones = is_text.new_ones(count, pixels, dtype=torch.long)
        places = _places(height, width, x_t.device).expand(count, -1, -1)
        toward_data = model(
            hidden_states=torch.cat([tokens.new_zeros(count, longest, tokens.shape[2]), tokens], dim=1),
            timestep=(1 - t.float()).to(x_t.dtype),
            encoder_hidden_states=torch.cat([text, text.new_zeros(count, pixels, text.shape[2])], dim=1),
            position_ids=torch.cat([number.clamp(min=0)[..., None].expand(-1, -1, 3), places], dim=1),
            segment_ids=torch.cat([torch.where(is_text, 1, -1), ones], dim=1),
            indicator=torch.cat([torch.where(is_text, TEXT, PADDING), ones * IMAGE], dim=1),
            return_dict=False,
        )[0]
        return -self.from_pipeline(toward_data[:, longest:], height, width)

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {
            "guidance_scale": options.validation_guidance,
            "guidance_schedule": None,
            "max_sequence_length": options.tokenizer_max_length,
        }

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        # it is guided away from no text at all
        return {"prompt": prompt}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        prompt = Encoded()
        prompt.text = text["text"][0]
        return {"prompt": prompt}

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        """It takes no embeddings: let its reader know those that a prompt brings."""

        def encode_prompt(
            prompt: str | list[str], grid_h: int, grid_w: int, max_sequence_length: int, device: torch.device | str
        ) -> Any:
            if not isinstance(prompt, Encoded):
                return type(pipe).encode_prompt(pipe, prompt, grid_h, grid_w, max_sequence_length, device)
            length, tokens = len(prompt.text), max_sequence_length + grid_h * grid_w
            features = prompt.text.new_zeros(1, tokens, prompt.text.shape[1], device=device)
            features[0, max_sequence_length - length : max_sequence_length] = prompt.text
            return features, *pipe._prepare_ids([length], grid_h, grid_w, max_sequence_length, device)

        pipe.encode_prompt = encode_prompt

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        return latents.transpose(1, 2).unflatten(2, (height, width))


def _token_ids(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> list[list[int]]:
    """The tokens of each caption and its template, as diffusers' pipeline has them."""
    chats: list[Any] = [[{"role": "user", "content": [{"type": "text", "text": caption}]}] for caption in captions]
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _places(height: int, width: int, device: torch.device | str) -> Tensor:
    """Where each image token stands, (1, H * W, 3): a first column of its own, row and column."""
    import torch

    sides = [torch.arange(side, device=device) for side in (height, width)]
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(1, -1, 3)
    return places + FIRST_POSITION


FAMILY = Ideogram4
