"""Kandinsky 5 Image: visual patches that attend to text through cross attention, flow matching, Qwen2.5-VL and CLIP.

Paper 2511.14993; upstream: kandinskylab/kandinsky-5. The network takes the noise level as 0..1000 and answers
noise - x0; its latents have their channels last, (B, F, H, W, C). Text (L, D) of each caption, its own length, is
Qwen's last layer without the instruction that stands before every caption; pooled (B, P) is CLIP's. The network takes
no mask, so captions of other lengths are asked one by one. `Kandinsky5` is what the images have in common with video.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darkroom.families.base import Family, find_on_host
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Latents, Limits
from darkroom.families.shared.text import stack_padded
from darkroom.families.sizes import CLIP_L, FLUX_VAE, QWEN25_VL_7B
from darkroom.families.tiny.components import clip, kl_vae, qwen2_vl, qwen2_vl_processor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config


# the network's positions: rows, columns and frames, and tokens of text
ROWS, TOKENS = 128, 1024


def tiny(vae: ComponentSpec, tokenizer: str, shift: float, **denoiser: object) -> ComponentSpecs:
    """The parts of a small model; `tokenizer` has the words of its pipeline's instruction."""
    return ComponentSpecs(
        denoiser=ComponentSpec(
            "Kandinsky5Transformer3DModel",
            {
                "in_visual_dim": 16,
                "in_text_dim": 32,
                "in_text_dim2": 32,
                "time_dim": 32,
                "out_visual_dim": 16,
                "model_dim": 32,
                "ff_dim": 64,
                "num_text_blocks": 1,
                "num_visual_blocks": 2,
                "axes_dims": (8, 4, 4),
                **denoiser,
            },
        ),
        vae=vae,
        encoders={"text_encoder": qwen2_vl(vocabulary=400), "text_encoder_2": clip()},
        tokenizers={"tokenizer": tokenizer, "tokenizer_2": "clip"},
        # the pipelines read captions with it
        extras={"tokenizer": qwen2_vl_processor()},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": shift}),
        oracle={"model_dim": 128, "ff_dim": 256, "time_dim": 128, "axes_dims": (8, 12, 12)},
    )


class Kandinsky5(Family):
    """What images and video share."""

    denoiser = "Kandinsky5Transformer3DModel"
    prediction = "flow_matching"
    blocks = ("text_transformer_blocks", "visual_transformer_blocks")
    hidden_states = HiddenStates(("visual_transformer_blocks",))
    targets = {"default": ("to_key", "to_query", "to_value")}

    # -- text ------------------------------------------------------------------------------------------------------

    def limits(self, settings: Settings) -> Limits:
        """Its rotations are tables, of fixed sizes."""
        return Limits(edge=ROWS * self.latents.patch * self.latents.downscale, tokens=TOKENS)

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        """At most: a caption is stored in its own length."""
        text = options.tokenizer_max_length * configs["text_encoder"]["text_config"]["hidden_size"]
        return text + configs["text_encoder_2"]["hidden_size"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> Cond:
        """text, B tensors (L, D), and pooled (B, P)."""
        import torch

        # one by one: diffusers' pipeline cuts short captions too when one beside them is too long
        embeddings = [
            pipe.encode_prompt(caption, max_sequence_length=options.tokenizer_max_length) for caption in captions
        ]
        return {
            "text": [text[0] for text, _, _ in embeddings],
            "pooled": torch.cat([pooled for _, pooled, _ in embeddings]),
        }

    def stack_text(self, entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        import torch

        return {**stack_padded(entries), "pooled": torch.stack([entry["pooled"] for entry in entries])}

    # -- the step --------------------------------------------------------------------------------------------------

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, as x_t."""
        import torch

        height, width = x_t.shape[-2:]
        hidden_states = self.build_hidden_states(x_t, cond)  # (B, F, H, W, C)
        grid = (hidden_states.shape[1], height // self.latents.patch, width // self.latents.patch)
        mask = find_on_host(cond, "mask")
        lengths = [cond["text"].shape[1]] if mask is None else mask.sum(1).tolist()
        rows = [slice(None)] if mask is None else [slice(i, i + 1) for i in range(len(x_t))]
        answers = [
            model(
                hidden_states=hidden_states[row],
                encoder_hidden_states=cond["text"][row, :length],
                # float32 in any precision: bfloat16 has no more than 256 noise levels up to 1000
                timestep=t[row].float() * 1000,
                pooled_projections=cond["pooled"][row],
                visual_rope_pos=[torch.arange(count, device=x_t.device) for count in grid],
                text_rope_pos=torch.arange(length, device=x_t.device),
                scale_factor=self.stretch(height * self.latents.downscale, width * self.latents.downscale),
                sparse_params=self.sparse(model, hidden_states[row]),
                return_dict=False,
            )
            for row, length in zip(rows, lengths, strict=True)
        ]
        return self.from_pipeline(torch.cat(answers), height, width)

    def build_hidden_states(self, x_t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """What the network looks at, channels last."""
        return self.to_pipeline(x_t)

    def sparse(self, model: Module, hidden_states: Tensor) -> Any:
        """Which patches look at which, for networks that do not let all look at all."""
        return None

    def stretch(self, height: int, width: int) -> Any:
        """By what the positions of frames, rows and columns are divided; sizes in pixels."""
        raise TypeError(f"{type(self).__name__} must define stretch")

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance, "max_sequence_length": options.tokenizer_max_length}

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        # for none at all the video pipelines take one of their own
        return {"prompt": prompt, "negative_prompt": negative}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {**_embeds_kwargs(text, ""), **_embeds_kwargs(negative, "negative_")}


def _embeds_kwargs(text: dict[str, Tensor], which: str) -> dict[str, Tensor]:
    """One condition (1, ...) as arguments of the call, with where its text begins and ends."""
    import torch

    return {
        f"{which}prompt_embeds_qwen": text["text"],
        f"{which}prompt_embeds_clip": text["pooled"],
        f"{which}prompt_cu_seqlens": torch.tensor([0, text["text"].shape[1]], dtype=torch.int32),
    }


class Kandinsky5Image(Kandinsky5):
    name, title = "kandinsky5_image", "Kandinsky 5 Image"
    pipeline = "Kandinsky5T2IPipeline"
    # the pipelines do not know of the shift in the VAE's settings
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="scale")
    previews = "madebyollin/taef1"
    component_sizes = {"": {"text_encoder": QWEN25_VL_7B, "text_encoder_2": CLIP_L, "vae": FLUX_VAE}}
    default_flavour = "t2i-lite-sft"
    flavours = {
        "t2i-lite-sft": Flavour("kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers"),
        "t2i-lite-pretrain": Flavour("kandinskylab/Kandinsky-5.0-T2I-Lite-pretrain-Diffusers"),
    }
    defaults = {
        "tokenizer_max_length": 512,
        "aspect_bucket_alignment": 16,
        "flow_schedule_shift": 3.0,
        "validation_guidance": 3.5,
        "validation_num_inference_steps": 50,
    }
    tiny = tiny(kl_vae(16, 0.3611, 0.1159), "kandinsky5_image", shift=3.0)

    def stretch(self, height: int, width: int) -> list[float]:
        return [1.0, 1.0, 1.0]

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        # it makes a size that is not among its seven into the nearest of them
        pipe.resolutions = [(width, height)]

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return latents.unsqueeze(1).movedim(2, -1)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        return latents.movedim(-1, 2).squeeze(1)


FAMILY = Kandinsky5Image
