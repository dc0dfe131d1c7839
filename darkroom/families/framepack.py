"""FramePack: HunyuanVideo that draws a clip section by section, each seeing the start and what was drawn before it.

Paper 2504.12626; upstream: lllyasviel/FramePack. Text, guidance and times as HunyuanVideo's; the start is also read by
SigLIP. Shapes: latents (B, 16, 1 + S * W, h, w), the start and S sections of W frames; a step trains one section, (B,
16, W, h, w). What it sees besides, and its place on the time line: the start and the nearest drawn frame (B, 16, 2, h,
w), two frames beyond it at half size, sixteen more at a quarter; zeros where nothing is drawn yet.
`i2v` draws the last section first, so that what it has seen is what follows; `f1` draws the first one first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from darkroom.core.errors import DataError
from darkroom.families.hunyuanvideo_original import HunyuanVideoOriginal
from darkroom.families.shared.spec import ComponentSpec, Flavour
from darkroom.families.sizes import CLIP_L, DEFAULT, LLAVA_LLAMA3_8B, SIGLIP_384
from darkroom.families.tiny.components import siglip

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.families.shared.types import Kwargs
    from darkroom.options.config import Config

FORWARD = "f1"
# frames that a section sees: whole, at half and at a quarter of their size
FULL, HALF, QUARTER = 1, 2, 16
HISTORY = FULL + HALF + QUARTER
# beyond four sections the time between a section and the start is cut short
MAX_SECTIONS = 4
BASE = "hunyuanvideo-community/HunyuanVideo"
IMAGE_ENCODER = "lllyasviel/flux_redux_bfl"


def _flavour(transformer: str, note: str) -> Flavour:
    return Flavour(BASE, {"pretrained_transformer_model_name_or_path": transformer}, note=note, image_input="needed")


class FramePackNetwork(HunyuanVideoOriginal):
    """What whole clips and single frames share: the network, its parts and how it is asked."""

    denoiser = "HunyuanVideoFramepackTransformer3DModel"
    component_repositories = {"image_encoder": IMAGE_ENCODER, "feature_extractor": IMAGE_ENCODER}
    pipeline_decodes = True
    component_sizes = {
        "": {
            "text_encoder": LLAVA_LLAMA3_8B,
            "text_encoder_2": CLIP_L,
            "image_encoder": SIGLIP_384,
            "vae": DEFAULT,
        }
    }
    shift_line = (256, 4096, 0.5, 1.15)
    sizes = {"": {"has_image_proj": True, "image_proj_dim": 1152, "has_clean_x_embedder": True}}
    default_flavour = "i2v"
    tinies: ClassVar[Mapping[str, str]] = {}
    defaults = {
        **HunyuanVideoOriginal.defaults,
        "resolution": 640,
        "validation_resolution": "640x640",
        "flow_schedule_shift": 3.0,
        "flux_guidance_value": 10.0,
        "validation_guidance": 10.0,
        "validation_num_inference_steps": 25,
    }
    tiny = dataclasses.replace(
        HunyuanVideoOriginal.tiny,
        denoiser=ComponentSpec(
            "HunyuanVideoFramepackTransformer3DModel",
            {
                **HunyuanVideoOriginal.tiny.denoiser.config,
                "has_image_proj": True,
                "image_proj_dim": 32,
                "has_clean_x_embedder": True,
            },
        ),
        extras=siglip(),
        scheduler=ComponentSpec(
            "FlowMatchEulerDiscreteScheduler",
            {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256},
        ),
        defaults={"pretrained_transformer_model_name_or_path": None, "framepack_latent_window_size": 2},
    )

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, W, h, w)."""
        inputs = {name: cond[name] for name in cond if name.startswith("indices_")}
        inputs |= {name: cond[name].to(x_t) for name in cond if name.startswith("latents_")}
        return model(
            hidden_states=x_t,
            timestep=t.float() * 1000,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"].to(x_t.dtype),
            pooled_projections=cond["pooled"],
            image_embeds=cond["image"].to(x_t),
            guidance=cond["guidance"].to(x_t) * 1000,
            **inputs,
            return_dict=False,
        )[0]

    def from_pipeline(self, latents: Any, height: int, width: int) -> Tensor:
        """The pipeline hands over what there was after every section."""
        return latents[-1] if isinstance(latents, list) else latents


class FramePack(FramePackNetwork):
    name, title = "framepack", "FramePack"
    pipeline = "HunyuanVideoFramepackPipeline"
    fps: ClassVar[float | None] = 30.0
    supports = HunyuanVideoOriginal.supports - {"images"}
    flavours = {
        "i2v": _flavour("lllyasviel/FramePackI2V_HY", "draws the last section first"),
        FORWARD: _flavour("lllyasviel/FramePack_F1_I2V_HY_20250503", "draws the first section first"),
    }
    tinies = {"tiny-f1": FORWARD}
    section_option = "framepack_latent_window_size"

    # -- what a sample brings --------------------------------------------------------------------------------------

    def sample_entries(
        self, components: SampleEncoders, pixels: Tensor, latents: Tensor, options: Config
    ) -> dict[str, Tensor]:
        """image (B, N, D): what SigLIP sees of the first frame; start (B, 16, 1, h, w): its latent by itself.

        Inside a clip that latent is another one, as the VAE's norms look at all frames.
        """
        import torch

        from darkroom.families.shared.latents import encode

        encoder = components.extra("image_encoder")
        inputs = components.extra("feature_extractor")(
            images=(pixels[:, :, 0] + 1) / 2, return_tensors="pt", do_rescale=False
        ).to(device=encoder.device, dtype=encoder.dtype)
        with torch.no_grad():
            image = encoder(**inputs).last_hidden_state
        return {"image": image, "start": encode(components.vae(), pixels[:, :, :1], components.latents)}

    def sample_identity(self, options: Config) -> dict[str, object]:
        return {"starts_from": "first frame"}

    def slice_batch(self, batch: Batch, options: Config, generator: Generator) -> Batch:
        """One section of the clips, and in `extras` what it sees and where it is: see `section`."""
        import torch

        window = options.framepack_latent_window_size
        count = (batch.latents.shape[2] - 1) // window
        if count < 1:
            raise DataError(
                f"A clip of dataset '{batch.dataset}' has {batch.latents.shape[2]} latent frames, and a section of "
                f"{self.title} takes {1 + window}.\n  Ask for clips of {self.spec.min_frames(options)} frames or more, "
                "or set framepack_latent_window_size."
            )
        number = int(torch.randint(count, (), generator=generator))
        section = slice(1 + number * window, 1 + (number + 1) * window)
        frames = torch.cat([batch.extras["start"].to(batch.latents), batch.latents[:, :, 1:]], dim=2)
        is_forward = self.spec.published == FORWARD
        inputs = (forward if is_forward else backward)(frames, number, count, window)
        mask = batch.mask if batch.mask is None or batch.mask.shape[2] == 1 else batch.mask[:, :, section]
        extras = {"image": batch.extras["image"], **inputs}
        return dataclasses.replace(batch, latents=batch.latents[:, :, section], extras=extras, mask=mask)

    # -- the step --------------------------------------------------------------------------------------------------

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> dict[str, Tensor]:
        """guidance, and everything that `slice_batch` found."""
        return {**super().model_inputs(batch, options, generator), **batch.extras}

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        is_forward = self.spec.published == FORWARD
        return {
            **super().pipeline_kwargs(options),
            "latent_window_size": options.framepack_latent_window_size,
            "sampling_type": "vanilla" if is_forward else "inverted_anti_drifting",
        }


def backward(latents: Tensor, number: int, count: int, window: int) -> dict[str, Tensor]:
    """What section `number` of `count` sees when the last one is drawn first: the start, and the frames behind it."""
    import torch

    end = 1 + (number + 1) * window
    behind = torch.cat([latents[:, :, end : end + HISTORY], latents.new_zeros(_blank(latents, end))], dim=2)
    near, half, quarter = behind.split([FULL, HALF, QUARTER], dim=2)
    gap = number * window
    if count > MAX_SECTIONS:
        gap = window * [0, 1, *[2] * (count - 3), 3][number]
    places = torch.arange(1 + gap + window + HISTORY, device=latents.device)
    start, _, section, full, halves, quarters = places.split([1, gap, window, FULL, HALF, QUARTER])
    return _network_inputs(
        torch.cat([latents[:, :, :1], near], dim=2), half, quarter, section, start, full, halves, quarters
    )


def forward(latents: Tensor, number: int, count: int, window: int) -> dict[str, Tensor]:
    """What section `number` sees when the first one is drawn first: the start, and the frames before it."""
    import torch

    begin = 1 + number * window
    before = latents[:, :, max(0, begin - HISTORY) : begin]
    missing = list(latents.shape)
    missing[2] = HISTORY - before.shape[2]
    quarter, half, near = torch.cat([latents.new_zeros(missing), before], dim=2).split([QUARTER, HALF, FULL], dim=2)
    places = torch.arange(1 + HISTORY + window, device=latents.device)
    start, quarters, halves, full, section = places.split([1, QUARTER, HALF, FULL, window])
    return _network_inputs(
        torch.cat([latents[:, :, :1], near], dim=2), half, quarter, section, start, full, halves, quarters
    )


def _blank(latents: Tensor, end: int) -> list[int]:
    """The shape of what is not drawn yet behind frame `end`."""
    shape = list(latents.shape)
    shape[2] = max(0, HISTORY - (shape[2] - end))
    return shape


def _network_inputs(
    clean: Tensor, half: Tensor, quarter: Tensor, section: Tensor, start: Tensor, full: Tensor, halves: Tensor,
    quarters: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """As arguments of the network."""
    import torch

    return {
        "indices_latents": section,
        "latents_clean": clean,
        "indices_latents_clean": torch.cat([start, full]),
        "latents_history_2x": half,
        "indices_latents_history_2x": halves,
        "latents_history_4x": quarter,
        "indices_latents_history_4x": quarters,
    }


FAMILY = FramePack
