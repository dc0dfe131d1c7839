"""Qwen-Image: double stream blocks over packed 2x2 latents, flow matching, a Qwen2.5-VL model that reads the caption.

Paper 2508.02324; upstream: QwenLM/Qwen-Image. The network takes the noise level as 0..1 and answers noise - x0.
Shapes: latents (B, 16, H, W), of a video VAE's single frame, become tokens (B, H/2 * W/2, 64), channel first inside a
token; text (L, D) of each caption, its own length, B of them padded to (B, L, D) with a mask (B, L).
Editing: the tokens of reference images follow the noised ones, and the language model looks at the images too.
Layered: latents (B, 16, 1 + layers, H, W) of an image with alpha and of its layers, in the order of the dataset; each
is encoded alone, all are noised, their tokens follow one another, and those of the clean image come last.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from darkroom.families.base import Family
from darkroom.families.flux import pack, unpack
from darkroom.families.shared.control_methods import ControlNet
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Inpainting, Latents
from darkroom.families.shared.text import stack_padded
from darkroom.families.sizes import DEFAULT, QWEN25_VL_7B
from darkroom.families.tiny.components import qwen2_vl, qwen2_vl_processor, qwen_image_vae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image as PILImage
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config

# the first editing model looks at one image in full, later ones at several small copies
EDIT, EDIT_PLUS = "QwenImageEditPipeline", "QwenImageEditPlusPipeline"
LAYERED = "QwenImageLayeredPipeline"
# edges of the squares whose area its images have
LAYERED_SIZES = (640, 1024)
# pixels of a reference image, whatever the result's
FULL_SIZE = 1024 * 1024
# pixels that the later language models see of it, and the edge of what is one token to them
SMALL_SIZE, EYE = 384 * 384, 28


def _tiny(denoiser: Settings, extras: Mapping[str, ComponentSpec]) -> ComponentSpecs:
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


def _edit(repository: str, pipeline: str, **denoiser: object) -> Flavour:
    """A model that changes images as its prompt says."""
    return Flavour(
        repository,
        pipeline=pipeline,
        tiny=_tiny(denoiser, {"processor": qwen2_vl_processor()}),
        supports=frozenset({"references"}),
        image_input="needed",
        multiple_images=pipeline == EDIT_PLUS,
        text_images="references",
    )


SPACE = Latents(channels=16, downscale=8, patch=2, normalizer="channels", framed=True)


def _build_layered_flavour(repository: str) -> Flavour:
    """A model that takes an image apart."""
    components = _tiny({"use_additional_t_cond": True, "use_layer3d_rope": True}, {"processor": qwen2_vl_processor()})
    vae = qwen_image_vae(input_channels=4)
    return Flavour(
        repository,
        defaults={"resolution": LAYERED_SIZES[0], "validation_resolution": f"{LAYERED_SIZES[0]}"},
        note="splits an image into layers with alpha",
        pipeline=LAYERED,
        latents=dataclasses.replace(SPACE, layered=True),
        tiny=dataclasses.replace(components, vae=vae, defaults={"validation_num_layers": 2}),
        supports=frozenset({"layers"}),
        image_input="needed",
        # asked for latents, the pipeline returns nothing that exists
        pipeline_decodes=True,
    )


class QwenImage(Family):
    name, title = "qwen_image", "Qwen-Image"
    pipeline, denoiser = "QwenImagePipeline", "QwenImageTransformer2DModel"
    prediction = "flow_matching"
    attention_masks = "batches"
    shift_line = (256, 8192, 0.5, 0.9)
    guidance_off = {"true_cfg_scale": 1.0}
    latents = SPACE
    blocks = ("transformer_blocks",)
    hidden_states = HiddenStates(output=1)
    controlnet = ControlNet(
        "QwenImageControlNetModel",
        "QwenImageControlNetPipeline",
        ("controlnet_block_samples",),
        inherited=("attention_head_dim", "num_attention_heads"),
    )
    inpainting = Inpainting("QwenImageInpaintPipeline")
    caches = True
    flavours_encode_text = True
    component_sizes = {"": {"text_encoder": QWEN25_VL_7B, "vae": DEFAULT}}
    sizes = {"": {}}
    default_flavour = "v2.0"
    flavours = {
        "v2.0": Flavour("Qwen/Qwen-Image-2512"),
        "v1.0": Flavour("Qwen/Qwen-Image"),
        "edit-v1": _edit("Qwen/Qwen-Image-Edit", EDIT),
        "edit-v2": _edit("Qwen/Qwen-Image-Edit-2509", EDIT_PLUS),
        "edit-v2+": _edit("Qwen/Qwen-Image-Edit-2509", EDIT_PLUS),
        "edit-v3": _edit("Qwen/Qwen-Image-Edit-2511", EDIT_PLUS, zero_cond_t=True),
        "layered": _build_layered_flavour("Qwen/Qwen-Image-Layered"),
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

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        """At most: a caption is stored in its own length, with what is seen of an image where one is read with it."""
        area = {EDIT: FULL_SIZE, EDIT_PLUS: SMALL_SIZE}.get(self.spec.pipeline, 0)
        tokens = options.tokenizer_max_length + area // EYE**2
        return tokens * configs["text_encoder"]["text_config"]["hidden_size"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> Cond:
        """text, B tensors (L, D), of the last layer, without the instruction that stands before every caption."""
        return _rows(*pipe.encode_prompt(captions, max_sequence_length=options.tokenizer_max_length))

    def encode_text_with_images(
        self, pipe: DiffusionPipeline, caption: str, images: list[PILImage], options: Config
    ) -> Cond:
        """text, one tensor (L, D): what `encode_text` gives, of an instruction that shows the images."""
        resized = [self._resize_for_text(pipe, single) for single in images]
        image = resized if type(pipe).__name__ == EDIT_PLUS else resized[0]
        return _rows(*pipe.encode_prompt([caption], image=image))

    @staticmethod
    def _resize_for_text(pipe: DiffusionPipeline, image: PILImage) -> PILImage:
        """An image in the size in which the language model looks at it."""
        stock = sys.modules[type(pipe).__module__]
        area = SMALL_SIZE if type(pipe).__name__ == EDIT_PLUS else FULL_SIZE
        width, height = stock.calculate_dimensions(area, image.width / image.height)[:2]
        return pipe.image_processor.resize(image, height, width)

    def stack_text(self, entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return stack_padded(entries)

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> Cond:
        """references: latents (B, 16, h, w) each, of any size; of a layered image, the image itself."""
        if self._is_layered:
            return {"references": (batch.latents[:, :, 0],)}
        return {"references": batch.references} if batch.references else {}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W), of layered images (B, 16, 1 + layers, H, W)."""
        import torch

        height, width = x_t.shape[-2:]
        noised = _split_layers(x_t)
        images = [*noised, *(reference.to(x_t) for reference in cond.get("references", ()))]
        # the published pipeline tells the layered network nothing else
        condition = {"additional_t_cond": torch.zeros_like(t, dtype=torch.long)} if x_t.ndim == 5 else {}
        tokens = model(
            hidden_states=torch.cat([pack(part) for part in images], dim=1),
            timestep=t.to(x_t.dtype),
            encoder_hidden_states_mask=cond.get("mask"),
            encoder_hidden_states=cond["text"],
            img_shapes=[[(1, part.shape[-2] // 2, part.shape[-1] // 2) for part in images]] * len(x_t),
            **condition,
            return_dict=False,
        )[0]
        return self.from_pipeline(tokens[:, : len(noised) * height * width // 4], height, width)

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        layers = {"layers": options.validation_num_layers} if self._is_layered else {}
        return {
            "true_cfg_scale": options.validation_guidance_real,
            "max_sequence_length": options.tokenizer_max_length,
            **layers,
        }

    @property
    def _is_layered(self) -> bool:
        return self.spec.latents.layered

    def round_size(self, width: int, height: int, options: Config) -> tuple[int, int]:
        """Layers have the shape of their image and one of two areas."""
        if not self._is_layered:
            return width, height
        area = self.size_kwargs(width, height, options)["resolution"] ** 2
        size = self._dimensions(area, width / height, options)
        # the pipeline computes its size from that of the image, which is cut to this one: rounding needs a few turns
        while (again := self._dimensions(area, size[0] / size[1], options)) != size:
            size = again
        return size

    def _dimensions(self, area: int, aspect: float, options: Config) -> tuple[int, int]:
        """Width and height that the flavour's diffusers pipeline computes."""
        from darkroom.families.shared.classes import find_class

        stock = sys.modules[find_class(self.spec.pipeline).__module__]
        width, height = stock.calculate_dimensions(area, aspect)[:2]
        return int(width), int(height)

    def size_kwargs(self, width: int, height: int, options: Config) -> Kwargs:
        if not self._is_layered:
            return super().size_kwargs(width, height, options)
        return {"resolution": min(LAYERED_SIZES, key=lambda edge: abs(edge - (width * height) ** 0.5))}

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        if not self._is_layered:
            return
        # it would have its language model describe the image in place of an empty prompt, and does so before it
        # looks whether the prompt is encoded already
        pipe.get_image_caption = lambda *_, **__: ""
        if pipe.text_encoder is None:  # it asks for its number format in any case
            pipe.text_encoder = SimpleNamespace(dtype=pipe.transformer.dtype)

    def image_kwargs(self, image: PILImage, width: int, height: int, options: Config) -> Kwargs:
        """The image in its own shape, in the size that the pipeline would make it; one to part is cut to size."""
        from PIL import Image, ImageOps

        if self._is_layered:
            return {"image": ImageOps.fit(image.convert("RGBA"), (width, height), Image.Resampling.LANCZOS)}
        size = self._dimensions(FULL_SIZE, image.width / image.height, options)
        return {"image": image.convert("RGB").resize(size, Image.Resampling.LANCZOS)}

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        # guidance is off without a negative prompt, even an empty one
        return {"prompt": prompt, "negative_prompt": negative}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {"prompt_embeds": text["text"], "negative_prompt_embeds": negative["text"]}

    def to_pipeline(self, latents: Tensor) -> Tensor:
        import torch

        return torch.cat([pack(layer) for layer in _split_layers(latents)], dim=1)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        """The way back; tokens of more than one image are those of a layered one."""
        import torch

        layers = [unpack(tokens, height, width) for tokens in latents.split(height * width // 4, dim=1)]
        return layers[0] if len(layers) == 1 else torch.stack(layers, dim=2)


def _split_layers(latents: Tensor) -> Sequence[Tensor]:
    """Latents (B, 16, H, W) as they are, or (B, 16, F, H, W) one by one."""
    return (latents,) if latents.ndim == 4 else latents.unbind(2)


def _rows(text: Tensor, mask: Tensor | None) -> Cond:
    """Texts (B, L, D) as B tensors (L, D) without the rows that are padding."""
    return {"text": list(text) if mask is None else [row[real.bool()] for row, real in zip(text, mask, strict=True)]}


FAMILY = QwenImage
