"""Qwen-Image: double stream blocks over packed 2x2 latents, flow matching, a Qwen2.5-VL model that reads the caption.

Paper 2508.02324; upstream: QwenLM/Qwen-Image. The network takes the noise level as 0..1 and answers noise - x0.
Shapes: latents (B, 16, H, W), of a video VAE's single frame, become tokens (B, H/2 * W/2, 64), channel first inside a
token; text (L, D) of each caption, its own length, B of them padded to (B, L, D) with a mask (B, L).
Editing: the tokens of reference pictures follow the noised ones, and the language model looks at the pictures too.
Layered: latents (B, 16, 1 + layers, H, W) of a picture with alpha and of its layers, in the order of the dataset; each
is encoded alone, all are noised, their tokens follow one another, and those of the clean picture come last.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from darkroom.families.base import Family
from darkroom.families.flux import pack, unpack
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, ControlNet, Flavour, Inpainting, Latents
from darkroom.families.shared.text import stack_padded
from darkroom.families.sizes import DEFAULT, QWEN25_VL_7B
from darkroom.families.tiny.components import qwen2_vl, qwen2_vl_processor, qwen_image_vae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Generator, Tensor

    from darkroom.data.batches.batch import Batch
    from darkroom.options.config import Config

# the first editing model looks at one picture in full, later ones at several small copies
EDIT, EDIT_PLUS = "QwenImageEditPipeline", "QwenImageEditPlusPipeline"
LAYERED = "QwenImageLayeredPipeline"
# edges of the squares whose area its pictures have
LAYERED_SIZES = (640, 1024)
# pixels of a reference picture, whatever the result's
FULL_SIZE = 1024 * 1024
# pixels that the later language models see of it, and the edge of what is one token to them
SMALL_SIZE, EYE = 384 * 384, 28


def _tiny(denoiser: Mapping[str, Any], extras: Mapping[str, ComponentSpec]) -> ComponentSpecs:
    return ComponentSpecs(
        denoiser=ComponentSpec(
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
        scheduler=ComponentSpec(
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


SPACE = Latents(channels=16, downscale=8, patch=2, normaliser="channels", framed=True)


def _layered(repository: str) -> Flavour:
    """A model that takes a picture apart."""
    components = _tiny({"use_additional_t_cond": True, "use_layer3d_rope": True}, {"processor": qwen2_vl_processor()})
    vae = qwen_image_vae(input_channels=4)
    return Flavour(
        repository,
        defaults={"resolution": LAYERED_SIZES[0], "validation_resolution": f"{LAYERED_SIZES[0]}"},
        note="takes a picture apart into layers with alpha",
        pipeline=LAYERED,
        latents=dataclasses.replace(SPACE, layered=True),
        tiny=dataclasses.replace(components, vae=vae, defaults={"validation_num_layers": 2}),
        supports=frozenset({"layers"}),
        picture="needed",
    )


class QwenImage(Family):
    name, title = "qwen_image", "Qwen-Image"
    pipeline, denoiser = "QwenImagePipeline", "QwenImageTransformer2DModel"
    prediction = "flow_matching"
    attention_masks = "batches"
    shift_line = (256, 8192, 0.5, 0.9)
    unguided = {"true_cfg_scale": 1.0}
    latents = SPACE
    blocks = ("transformer_blocks",)
    controlnet = ControlNet("QwenImageControlNetModel", "QwenImageControlNetPipeline", ("controlnet_block_samples",))
    inpainting = Inpainting("QwenImageInpaintPipeline")
    caches = True
    part_sizes = {"": {"text_encoder": QWEN25_VL_7B, "vae": DEFAULT}}
    sizes = {"": {}}
    default_flavour = "v2.0"
    flavours = {
        "v2.0": Flavour("Qwen/Qwen-Image-2512"),
        "v1.0": Flavour("Qwen/Qwen-Image"),
        "edit-v1": _edit("Qwen/Qwen-Image-Edit", EDIT),
        "edit-v2": _edit("Qwen/Qwen-Image-Edit-2509", EDIT_PLUS),
        "edit-v2+": _edit("Qwen/Qwen-Image-Edit-2509", EDIT_PLUS),
        "edit-v3": _edit("Qwen/Qwen-Image-Edit-2511", EDIT_PLUS, zero_cond_t=True),
        "layered": _layered("Qwen/Qwen-Image-Layered"),
    }
    tinies = {"tiny-edit": "edit-v1", "tiny-edit-plus": "edit-v3", "tiny-layered": "layered"}
    defaults = {
        "tokenizer_max_length": 1024,
        "aspect_bucket_alignment": 32,
        "flow_schedule_shift": 1.73,
        "validation_guidance_real": 4.0,
        "validation_num_inference_steps": 30,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = _tiny({}, {})

    def text_numbers(self, configs: Mapping[str, Mapping[str, Any]], options: Config) -> int:
        """At most: a caption is stored in its own length, with what is seen of a picture where one is read with it."""
        area = {EDIT: FULL_SIZE, EDIT_PLUS: SMALL_SIZE}.get(self.pipeline_for(options.model_flavour), 0)
        tokens = options.tokenizer_max_length + area // EYE**2
        return tokens * configs["text_encoder"]["text_config"]["hidden_size"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Any]:
        """text, B tensors (L, D), of the last layer, without the instruction that stands before every caption."""
        return _rows(*pipe.encode_prompt(captions, max_sequence_length=options.tokenizer_max_length))

    def text_pipeline_for(self, flavour: str | None) -> str:
        return self.pipeline_for(flavour)

    def encode_seen(
        self, pipe: DiffusionPipeline, caption: str, pictures: list[Any], options: Config
    ) -> dict[str, Any]:
        """text, one tensor (L, D): what `encode_text` gives, of an instruction that shows the pictures."""
        given = [self._seen(pipe, picture) for picture in pictures]
        image = given if type(pipe).__name__ == EDIT_PLUS else given[0]
        return _rows(*pipe.encode_prompt([caption], image=image))

    @staticmethod
    def _seen(pipe: DiffusionPipeline, picture: Any) -> Any:
        """A picture in the size in which the language model looks at it."""
        stock = sys.modules[type(pipe).__module__]
        area = SMALL_SIZE if type(pipe).__name__ == EDIT_PLUS else FULL_SIZE
        width, height = stock.calculate_dimensions(area, picture.width / picture.height)[:2]
        return pipe.image_processor.resize(picture, height, width)

    def stack_text(self, entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return stack_padded(entries)

    def conditions(self, batch: Batch, options: Config, generator: Generator) -> dict[str, Any]:
        """references: latents (B, 16, h, w) each, of any size; of a layered picture, the picture itself."""
        if self._is_layered(options):
            return {"references": (batch.latents[:, :, 0],)}
        return {"references": batch.references} if batch.references else {}

    def predict(self, model: Any, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W), of layered pictures (B, 16, 1 + layers, H, W)."""
        import torch

        height, width = x_t.shape[-2:]
        noised = _pictures(x_t)
        seen = [*noised, *(reference.to(x_t) for reference in cond.get("references", ()))]
        # the published pipeline tells the layered network nothing else
        told = {"additional_t_cond": torch.zeros_like(t, dtype=torch.long)} if x_t.ndim == 5 else {}
        tokens = model(
            hidden_states=torch.cat([pack(each) for each in seen], dim=1),
            timestep=t.to(x_t.dtype),
            encoder_hidden_states_mask=cond.get("mask"),
            encoder_hidden_states=cond["text"],
            img_shapes=[[(1, each.shape[-2] // 2, each.shape[-1] // 2) for each in seen]] * len(x_t),
            **told,
            return_dict=False,
        )[0]
        return self.from_pipeline(tokens[:, : len(noised) * height * width // 4], height, width)

    def new_controlnet(self, cls: Any, denoiser: Any, custom: Mapping[str, Any]) -> Any:
        """The first blocks of the transformer."""
        from darkroom.families.shared.control import of_transformer

        sizes = {name: denoiser.config[name] for name in ("attention_head_dim", "num_attention_heads")}
        return of_transformer(cls, denoiser, {**sizes, **custom})

    def call(self, options: Config) -> dict[str, Any]:
        layers = {"layers": options.validation_num_layers} if self._is_layered(options) else {}
        return {
            "true_cfg_scale": options.validation_guidance_real,
            "max_sequence_length": options.tokenizer_max_length,
            **layers,
        }

    def _is_layered(self, options: Config) -> bool:
        return self.latents_for(options.model_flavour).layered

    def drawn_size(self, width: int, height: int, options: Config) -> tuple[int, int]:
        """Layers have the shape of their picture and one of two areas."""
        if not self._is_layered(options):
            return width, height
        area = self.size_call(width, height, options)["resolution"] ** 2
        size = self._dimensions(area, width / height, options)
        # the pipeline computes its size from that of the picture, which is cut to this one: rounding needs a few turns
        while (again := self._dimensions(area, size[0] / size[1], options)) != size:
            size = again
        return size

    def _dimensions(self, area: int, aspect: float, options: Config) -> tuple[int, int]:
        """Width and height that the flavour's stock pipeline computes."""
        from darkroom.families.shared.classes import named

        stock = sys.modules[named(self.pipeline_for(options.model_flavour)).__module__]
        width, height = stock.calculate_dimensions(area, aspect)[:2]
        return int(width), int(height)

    def pipeline_decodes_for(self, flavour: str | None) -> bool:
        """The pipeline for layers cannot hand over latents: asked for them, it returns nothing that exists."""
        return self.latents_for(flavour).layered

    def size_call(self, width: int, height: int, options: Config) -> dict[str, Any]:
        if not self._is_layered(options):
            return super().size_call(width, height, options)
        return {"resolution": min(LAYERED_SIZES, key=lambda edge: abs(edge - (width * height) ** 0.5))}

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        if not self._is_layered(options):
            return
        # it would have its language model describe the picture in place of an empty prompt, and does so before it
        # looks whether the prompt is encoded already
        pipe.get_image_caption = lambda *_, **__: ""
        if pipe.text_encoder is None:  # it asks for its number format in any case
            pipe.text_encoder = SimpleNamespace(dtype=pipe.transformer.dtype)

    def picture_call(self, picture: Any, width: int, height: int, options: Config) -> dict[str, Any]:
        """The picture in its own shape, in the size that the pipeline would make it; one to part is cut to size."""
        from PIL import Image, ImageOps

        if self._is_layered(options):
            return {"image": ImageOps.fit(picture.convert("RGBA"), (width, height), Image.Resampling.LANCZOS)}
        size = self._dimensions(FULL_SIZE, picture.width / picture.height, options)
        return {"image": picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)}

    def prompt_call(self, prompt: str, negative: str, options: Config) -> dict[str, Any]:
        # guidance is off without a negative prompt, even an empty one
        return {"prompt": prompt, "negative_prompt": negative}

    def embedded_call(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> dict[str, Any]:
        return {"prompt_embeds": text["text"], "negative_prompt_embeds": negative["text"]}

    def to_pipeline(self, latents: Tensor) -> Tensor:
        import torch

        return torch.cat([pack(picture) for picture in _pictures(latents)], dim=1)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        """The way back; tokens of more than one picture are those of a layered one."""
        import torch

        pictures = [unpack(tokens, height, width) for tokens in latents.split(height * width // 4, dim=1)]
        return pictures[0] if len(pictures) == 1 else torch.stack(pictures, dim=2)


def _pictures(latents: Tensor) -> Sequence[Tensor]:
    """Latents (B, 16, H, W) as they are, or (B, 16, F, H, W) one by one."""
    return (latents,) if latents.ndim == 4 else latents.unbind(2)


def _rows(text: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """Texts (B, L, D) as B tensors (L, D) without the rows that are padding."""
    return {"text": list(text) if mask is None else [row[real.bool()] for row, real in zip(text, mask, strict=True)]}


FAMILY = QwenImage()
