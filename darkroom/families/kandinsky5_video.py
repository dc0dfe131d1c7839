"""Kandinsky 5 Video: Kandinsky 5's network on clips, from text, or from a first frame that stays clean.

Paper 2511.14993; upstream: kandinskylab/kandinsky-5. Text, times and channels as in `kandinsky5_image`; latents (B, 16,
F, H, W) of HunyuanVideo's VAE. The network also sees latents that are given otherwise, zeros in all published
pipelines, and which frames are given: (B, 16 + 16 + 1, F, H, W). The first frame is given as the latent of an image:
inside a clip it is another one, as the VAE's norms look at all frames.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from darkroom.core.errors import ConfigError
from darkroom.families.base import Family
from darkroom.families.hunyuanvideo_original import HunyuanVideoOriginal
from darkroom.families.kandinsky5_image import Kandinsky5, tiny
from darkroom.families.shared.first_frame import IMAGE_TO_VIDEO, FirstFrameFamily, noise_fractions
from darkroom.families.shared.spec import Flavour, Latents, Limits
from darkroom.families.sizes import CLIP_L, DEFAULT, QWEN25_VL_7B

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config

SMALL = range(480, 855)
# networks whose attention is sparse, between groups of 8 x 8 tokens of one frame, by flex attention
SPARSE, GROUP = "nabla", 8
# diffusers' pipeline mends the first four latent frames by those behind them
MIN_FRAMES = 17


def _image_to_video_flavour(name: str, defaults: Settings | None = None) -> Flavour:
    return Flavour(
        f"kandinskylab/Kandinsky-5.0-{name}-Diffusers",
        defaults or {},
        pipeline="Kandinsky5I2VPipeline",
        supports=frozenset({IMAGE_TO_VIDEO}),
        image_input="needed",
        tiny=dataclasses.replace(TINY, defaults={"validation_num_video_frames": MIN_FRAMES}),
    )


def _text_to_video_flavour(name: str, frames: int = 121, **defaults: object) -> Flavour:
    return Flavour(
        f"kandinskylab/Kandinsky-5.0-T2V-{name}-Diffusers",
        {"validation_num_video_frames": frames, **defaults},
        tiny=TINY_SPARSE if NABLA.keys() <= defaults.keys() else None,
    )


NABLA: Settings = {"attention_mechanism": "flex", "aspect_bucket_alignment": 128}
LARGE: Settings = {"resolution": 768, "validation_resolution": "1280x768", **NABLA}
assert HunyuanVideoOriginal.tiny.vae is not None
TINY = tiny(HunyuanVideoOriginal.tiny.vae, "kandinsky5_video", shift=5.0, visual_cond=True)
TINY_SPARSE = dataclasses.replace(
    tiny(
        HunyuanVideoOriginal.tiny.vae,
        "kandinsky5_video",
        shift=5.0,
        visual_cond=True,
        attention_type=SPARSE,
        attention_add_sta=True,
        attention_method="topcdf",
        # sparse with two groups already
        attention_P=0.5,
        attention_wT=1,
        attention_wH=1,
        attention_wW=1,
    ),
    defaults={**NABLA, "resolution": 128, "validation_resolution": "128"},
)


class Kandinsky5Video(FirstFrameFamily, Kandinsky5):
    name, title = "kandinsky5_video", "Kandinsky 5 Video"
    pipeline = "Kandinsky5T2VPipeline"
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="scale", temporal=4)
    fps = 24.0
    supports = Family.supports | {"video"}
    component_sizes = {"": {"text_encoder": QWEN25_VL_7B, "text_encoder_2": CLIP_L, "vae": DEFAULT}}
    sizes = {
        name: {"num_text_blocks": 2, "num_visual_blocks": 32}
        for name in (
            "t2v-lite-sft-5s",
            "t2v-lite-pretrain-5s",
            "t2v-lite-sft-10s",
            "t2v-lite-pretrain-10s",
            "i2v-lite-5s",
        )
    }
    default_flavour = "t2v-lite-sft-5s"
    flavours = {
        "t2v-lite-sft-5s": _text_to_video_flavour("Lite-sft-5s"),
        "t2v-lite-pretrain-5s": _text_to_video_flavour("Lite-pretrain-5s"),
        "t2v-lite-sft-10s": _text_to_video_flavour("Lite-sft-10s", 241, **NABLA),
        "t2v-lite-pretrain-10s": _text_to_video_flavour("Lite-pretrain-10s", 241, **NABLA),
        "t2v-pro-sft-5s-hd": _text_to_video_flavour("Pro-sft-5s", **LARGE),
        "t2v-pro-sft-10s-hd": _text_to_video_flavour("Pro-sft-10s", 241, **LARGE),
        "t2v-pro-pretrain-5s-hd": _text_to_video_flavour("Pro-pretrain-5s", **LARGE),
        "t2v-pro-pretrain-10s-hd": _text_to_video_flavour("Pro-pretrain-10s", 241, **LARGE),
        "i2v-lite-5s": _image_to_video_flavour("I2V-Lite-5s"),
        "i2v-pro-sft-5s": _image_to_video_flavour("I2V-Pro-sft-5s", LARGE),
    }
    tinies = {"tiny-i2v": "i2v-lite-5s", "tiny-nabla": "t2v-lite-sft-10s"}
    defaults = {
        "resolution": 512,
        "validation_resolution": "768x512",
        "tokenizer_max_length": 512,
        "aspect_bucket_alignment": 16,
        "flow_schedule_shift": 5.0,
        "validation_guidance": 5.0,
        "validation_num_inference_steps": 50,
        "validation_num_video_frames": 121,
    }
    tiny = TINY

    def limits(self, settings: Settings) -> Limits:
        """Sparse attention wants whole groups of tokens."""
        if settings.get("attention_type") != SPARSE:
            return super().limits(settings)
        step = GROUP * self.latents.patch * self.latents.downscale
        return super().limits(settings)._replace(step=step)

    # -- the first frame -------------------------------------------------------------------------------------------

    def sample_entries(
        self, components: SampleEncoders, pixels: Tensor, latents: Tensor, options: Config
    ) -> dict[str, Tensor]:
        """start (B, 16, 1, H, W): the latent of the first frame by itself."""
        from darkroom.families.shared.latents import encode

        if not self.is_image_to_video:
            return {}
        first = pixels if pixels.ndim == 4 else pixels[:, :, 0]
        return {"start": encode(components.vae(), first, components.latents)}

    def slice_batch(self, batch: Batch, options: Config, generator: Generator) -> Batch:
        """The clips with their first frame as the latent of an image, where they start from it."""
        import torch

        if not self.is_image_to_video:
            return batch
        start = batch.extras["start"].to(batch.latents)
        return dataclasses.replace(batch, latents=torch.cat([start, batch.latents[:, :, 1:]], dim=2))

    # -- the step --------------------------------------------------------------------------------------------------

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> Cond:
        """given (B, 1, F, 1, 1), 1 for frames that are given; noisy, where one is."""
        clean_mask = batch.latents.new_zeros(len(batch.latents), 1, batch.latents.shape[2], 1, 1)
        if not self.is_image_to_video:
            return {"given": clean_mask}
        clean_mask[:, :, 0] = 1
        return {
            "given": clean_mask,
            "noisy": noise_fractions(batch.latents, batch.latents.new_zeros(len(batch.latents))),
        }

    def build_hidden_states(self, x_t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import torch

        mask = cond["given"].to(x_t).expand(-1, -1, -1, *x_t.shape[-2:])
        return self.to_pipeline(torch.cat([x_t, torch.zeros_like(x_t), mask], dim=1))

    def sparse(self, model: Module, hidden_states: Tensor) -> Any:
        """diffusers' pipeline's own, with what it asks of itself."""
        from darkroom.families.modules import nabla
        from darkroom.families.shared.classes import find_class, unwrap

        stock = find_class(self.pipeline)
        pipeline = SimpleNamespace(transformer=unwrap(model), fast_sta_nabla=stock.fast_sta_nabla)
        nabla.use()
        return stock.get_sparse_params(pipeline, hidden_states, hidden_states.device)

    def stretch(self, height: int, width: int) -> tuple[float, ...]:
        return (1, 2, 2) if height in SMALL and width in SMALL else (1, 3.16, 3.16)

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        frames = self.spec.clip_frames(options)
        if self.is_image_to_video and frames < MIN_FRAMES:
            raise ConfigError(
                "validation_num_video_frames",
                options.validation_num_video_frames,
                "",
                f"From a first frame {self.title} draws {MIN_FRAMES} frames or more.",
                f"Set it to {MIN_FRAMES} or more.",
            )
        return {**super().pipeline_kwargs(options), "num_frames": frames}

    def round_size(self, width: int, height: int, options: Config) -> tuple[int, int]:
        """In whole groups of tokens where attention is sparse."""
        step = self.spec.defaults["aspect_bucket_alignment"]
        if step < GROUP * self.latents.patch * self.latents.downscale:
            return width, height
        return max(step, round(width / step) * step), max(step, round(height / step) * step)

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        """Sparse attention needs its kernel, whoever draws."""
        from darkroom.families.modules import nabla

        nabla.use()

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return latents.movedim(1, -1)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        return latents.movedim(-1, 1)


FAMILY = Kandinsky5Video
