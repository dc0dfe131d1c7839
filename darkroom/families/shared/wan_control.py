"""Inputs of the Wan networks with control clips.

VACE (2503.07598) has blocks of its own for it: latents of what is kept, here nothing, latents of what is followed,
(B, 16 + 16, F, h, w), and which pixels those are, here all, (B, 64, F, h, w).
Fun-Control (aigc-apps/VideoX-Fun) is Wan 2.1 with more channels behind the noised latents: the clip's latents, and
those of the first frame, (B, 16 + 16, F, h, w). There is no mask: missing frames are zeros in latents, and so is a
missing clip. Without an image CLIP's features are zeros as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom.core.errors import DataError
from darkroom.families.shared.control_methods import ControlInput
from darkroom.families.shared.spec import Flavour, SeparateDenoiser

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.spec import ComponentSpecs

FUN_CONTROL = "WanFunControlPipeline"
# tokens of CLIP's features for an image
IMAGE_TOKENS = 257


def vace(size: str, tiny: ComponentSpecs) -> Flavour:
    """Wan 2.1 that follows control clips through blocks of their own."""
    return Flavour(
        f"Wan-AI/Wan2.1-VACE-{size}-diffusers",
        note="follows control clips, which every sample needs",
        pipeline="WanVACEPipeline",
        tiny=tiny,
        control=ControlInput("WanVACEPipeline", "video"),
    )


def fun_control(
    base: str, size: str, width: int, tiny: ComponentSpecs, starts: frozenset[str] = frozenset()
) -> Flavour:
    """Wan 2.1 that has control clips as further channels; `starts`: its capabilities if it starts from an image.

    `base` has the other parts in diffusers' layout; `width` is that of the denoiser.
    """
    task = f"{'i2v' if starts else 't2v'}-{size}-FC"
    return Flavour(
        base,
        {"flow_schedule_shift": 5.0} if starts else {},
        note=f"follows control clips{' from a first frame' if starts else ''} (musubi-tuner's {task}); give the "
        f"denoiser's file from alibaba-pai/Wan2.1-Fun-{size}-Control as pretrained_transformer_model_name_or_path",
        pipeline=FUN_CONTROL,
        tiny=tiny,
        supports=starts,
        image_input="needed" if starts else "none",
        control=ControlInput(FUN_CONTROL, "control_video"),
        separate_denoiser=SeparateDenoiser(
            f"diffusion_pytorch_model.safetensors of alibaba-pai/Wan2.1-Fun-{size}-Control",
            {"in_channels": 48, "image_dim": 1280, "added_kv_proj_dim": width},
        ),
    )


def read_control_latents(batch: Batch) -> Tensor:
    """The latents of the control clips, (B, 16, F, h, w). Raises DataError if they are not as long as the samples."""
    clips = batch.controls[0].to(batch.latents)
    if clips.shape != batch.latents.shape:
        frames, sample_frames = clips.shape[2], batch.latents.shape[2]
        raise DataError(
            f"A control clip of dataset '{batch.dataset}' has {frames} latent frames, and its sample has "
            f"{sample_frames}.\n"
            "  Give every clip a control clip of its length, and every image a control image."
        )
    return clips


def build_vace_inputs(batch: Batch, downscale: int) -> Tensor:
    """What VACE sees of the control clips, (B, 96, F, h, w): gray ones where they are left out."""
    import torch

    gray = batch.extras["grey"].to(batch.latents)
    control = read_control_latents(batch)
    if batch.unconditioned is not None:
        control = torch.where(batch.unconditioned.view(-1, 1, 1, 1, 1), gray, control)
    mask = torch.ones_like(gray[:, :1]).expand(-1, downscale**2, -1, -1, -1)
    return torch.cat([gray, control, mask], dim=1)


def build_fun_control_inputs(batch: Batch) -> Tensor:
    """What Fun-Control has behind the noised latents, (B, 32, F, h, w); clips that are left out are zeros already."""
    return append_first_frame(read_control_latents(batch), batch.extras.get("first_frame"))


def append_first_frame(control: Tensor, first: Tensor | None) -> Tensor:
    """Latents of control clips (B, 16, F, h, w), then those of first frames (B, 16, 1, h, w) and nothing after them."""
    import torch

    start = torch.zeros_like(control)
    if first is not None:
        start[:, :, :1] = first
    return torch.cat([control, start], dim=1)


def empty_image_features(count: int, width: int, device: torch.device | None = None) -> Tensor:
    """What stands for CLIP's answers where it was shown no images, (count, 257, width)."""
    import torch

    return torch.zeros(count, IMAGE_TOKENS, width, device=device)
