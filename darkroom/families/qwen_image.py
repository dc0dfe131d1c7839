"""Qwen-Image: double stream blocks over packed 2x2 latents, flow matching, a Qwen2.5-VL model that reads the caption.

Paper 2508.02324; upstream: QwenLM/Qwen-Image. The network takes the noise level as 0..1 and answers noise - x0.
Shapes: latents (B, 16, H, W), of a video VAE's single frame, become tokens (B, H/2 * W/2, 64), channel first inside a
token; text (L, D) of each caption, its own length, B of them padded to (B, L, D) with a mask (B, L).
Editing: the tokens of reference pictures follow the noised ones, and the language model looks at the pictures too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darkroom.families.base import Family
from darkroom.families.facts import ControlNet, Flavour, Latents, Part, Tiny
from darkroom.families.flux import pack, unpack
from darkroom.families.text import stack_padded
from darkroom.families.tiny.parts import qwen2_vl, qwen2_vl_processor, qwen_image_vae

if TYPE_CHECKING:
    from torch import Generator, Tensor

# the first editing model looks at one picture in full, later ones at several small copies
EDIT, EDIT_PLUS = "QwenImageEditPipeline", "QwenImageEditPlusPipeline"
# pixels of a reference picture, whatever the result's
FULL_SIZE = 1024 * 1024
# pixels that the later language models see of it, and the edge of what is one token to them
SMALL_SIZE, EYE = 384 * 384, 28


def _tiny(denoiser: Mapping[str, Any], extras: Mapping[str, Part]) -> Tiny:
    return Tiny(
        denoiser=Part(
            "QwenImageTransformer2DModel",
            {
                "patch_size": 2,
                "in_channels": 64,
                "out_channels": 16,
                "num_layers": 2,
                "attention_head_dim": 16,
                "num_attention_heads": 3,
                "joint_attention_dim": 32,
                "axes_dims_rope": (8, 4, 4),
                **denoiser,
            },
        ),
        vae=qwen_image_vae(),
        encoders={"text_encoder": qwen2_vl()},
        tokenizers={"tokenizer": "chat"},
        scheduler=Part(
            "FlowMatchEulerDiscreteScheduler",
            {
                "use_dynamic_shifting": True,
                "base_shift": 0.5,
                "max_shift": 0.9,
                "base_image_seq_len": 256,
                "max_image_seq_len": 8192,
                "shift_terminal": 0.02,
                "time_shift_type": "exponential",
            },
        ),
        extras=extras,
        oracle={"attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": (8, 12, 12)},
    )


def _edit(repository: str, pipeline: str, **denoiser: Any) -> Flavour:
    """A model that changes pictures as its prompt says."""
    return Flavour(
        repository,
        pipeline=pipeline,
        tiny=_tiny(denoiser, {"processor": qwen2_vl_processor()}),
        supports=frozenset({"references"}),
        picture="needed",
        several=pipeline == EDIT_PLUS,
        reads="references",
    )


class QwenImage(Family):
    name, title = "qwen_image", "Qwen-Image"
    pipeline, denoiser = "QwenImagePipeline", "QwenImageTransformer2DModel"
    prediction = "flow_matching"
    unguided = {"true_cfg_scale": 1.0}
    latents = Latents(channels=16, downscale=8, patch=2, normaliser="channels", framed=True)
    blocks = ("transformer_blocks",)
    controlnet = ControlNet("QwenImageControlNetModel", "QwenImageControlNetPipeline", ("controlnet_block_samples",))
    default_flavour = "v2.0"
    flavours = {
        "v2.0": Flavour("Qwen/Qwen-Image-2512"),
        "v1.0": Flavour("Qwen/Qwen-Image"),
        "edit-v1": _edit("Qwen/Qwen-Image-Edit", EDIT),
        "edit-v2": _edit("Qwen/Qwen-Image-Edit-2509", EDIT_PLUS),
        "edit-v2+": _edit("Qwen/Qwen-Image-Edit-2509", EDIT_PLUS),
        "edit-v3": _edit("Qwen/Qwen-Image-Edit-2511", EDIT_PLUS, zero_cond_t=True),
    }
    tinies = {"tiny-edit": "edit-v1", "tiny-edit-plus": "edit-v3"}
    defaults = {
        "tokenizer_max_length": 1024,
        "aspect_bucket_alignment": 32,
        "flow_schedule_shift": 1.73,
        "validation_guidance_real": 4.0,
        "validation_num_inference_steps": 30,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = _tiny({}, {})

    def text_numbers(self, configs: Mapping[str, Mapping[str, Any]], options: Any) -> int:
        """At most: a caption is stored in its own length, with what is seen of a picture where one is read with it."""
        area = {EDIT: FULL_SIZE, EDIT_PLUS: SMALL_SIZE}.get(self.pipeline_for(options.model_flavour), 0)
        tokens = options.tokenizer_max_length + area // EYE**2
        return tokens * configs["text_encoder"]["text_config"]["hidden_size"]

    def encode_text(self, pipe: Any, captions: list[str], options: Any) -> dict[str, Any]:
        """text, B tensors (L, D), of the last layer, without the instruction that stands before every caption."""
        return _rows(*pipe.encode_prompt(captions, max_sequence_length=options.tokenizer_max_length))

    def text_pipeline_for(self, flavour: str | None) -> str:
        return self.pipeline_for(flavour)

    def encode_seen(self, pipe: Any, caption: str, pictures: list[Any], options: Any) -> dict[str, Any]:
        """text, one tensor (L, D): what `encode_text` gives, of an instruction that shows the pictures."""
        given = [self._seen(pipe, picture) for picture in pictures]
        image = given if type(pipe).__name__ == EDIT_PLUS else given[0]
        return _rows(*pipe.encode_prompt([caption], image=image))

    @staticmethod
    def _seen(pipe: Any, picture: Any) -> Any:
        """A picture in the size in which the language model looks at it."""
        stock = sys.modules[type(pipe).__module__]
        area = SMALL_SIZE if type(pipe).__name__ == EDIT_PLUS else FULL_SIZE
        width, height = stock.calculate_dimensions(area, picture.width / picture.height)[:2]
        return pipe.image_processor.resize(picture, height, width)

    def stack_text(self, entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return stack_padded(entries)

    def conditions(self, batch: Any, options: Any, generator: Generator) -> dict[str, Any]:
        """references: latents (B, 16, h, w) each, of any size."""
        return {"references": batch.references} if batch.references else {}

    def predict(self, model: Any, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W)."""
        import torch

        height, width = x_t.shape[-2:]
        seen = [x_t, *(reference.to(x_t) for reference in cond.get("references", ()))]
        tokens = model(
            hidden_states=torch.cat([pack(each) for each in seen], dim=1),
            timestep=t.to(x_t.dtype),
            encoder_hidden_states_mask=cond.get("mask"),
            encoder_hidden_states=cond["text"],
            img_shapes=[[(1, each.shape[-2] // 2, each.shape[-1] // 2) for each in seen]] * len(x_t),
            return_dict=False,
        )[0]
        return unpack(tokens[:, : height * width // 4], height, width)

    def new_controlnet(self, cls: Any, denoiser: Any, custom: Mapping[str, Any]) -> Any:
        """The first blocks of the transformer."""
        from darkroom.families.control import of_transformer

        sizes = {name: denoiser.config[name] for name in ("attention_head_dim", "num_attention_heads")}
        return of_transformer(cls, denoiser, {**sizes, **custom})

    def call(self, options: Any) -> dict[str, Any]:
        return {
            "true_cfg_scale": options.validation_guidance_real,
            "max_sequence_length": options.tokenizer_max_length,
        }

    def picture_call(self, picture: Any, width: int, height: int, options: Any) -> dict[str, Any]:
        """The picture in its own shape, in the size that the pipeline would make it."""
        from PIL import Image

        from darkroom.families.classes import named

        stock = sys.modules[named(self.pipeline_for(options.model_flavour)).__module__]
        size = stock.calculate_dimensions(FULL_SIZE, picture.width / picture.height)[:2]
        return {"image": picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)}

    def prompt_call(self, prompt: str, negative: str, options: Any) -> dict[str, Any]:
        # guidance is off without a negative prompt, even an empty one
        return {"prompt": prompt, "negative_prompt": negative}

    def embedded_call(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> dict[str, Any]:
        return {"prompt_embeds": text["text"], "negative_prompt_embeds": negative["text"]}

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        return unpack(latents, height, width)


def _rows(text: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """Texts (B, L, D) as B tensors (L, D) without the rows that are padding."""
    return {"text": list(text) if mask is None else [row[real.bool()] for row, real in zip(text, mask, strict=True)]}


FAMILY = QwenImage()
