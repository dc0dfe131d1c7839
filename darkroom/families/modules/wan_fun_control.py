"""Wan 2.1 Fun-Control from a control clip, with or without the image that it starts from.

diffusers' pipeline of image to video, whose network sees other channels behind the noised latents: see
`families.wan_control`. Source: aigc-apps/VideoX-Fun, pipeline_wan_fun_control.py, whose `ref_image` and `clip_image`
are one image here.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from torch import Tensor

from darkroom.families.shared.wan_control import append_first_frame, empty_image_features


class WanFunControlPipeline(WanImageToVideoPipeline):
    """Clips that follow `control_video`, a list of PIL frames, and may start from `image`, a PIL image."""

    _control: Tensor
    _starts = False

    @torch.no_grad()
    def __call__(
        self, control_video: Any, image: Any = None, *, height: int = 480, width: int = 832, num_frames: int = 81,
        **call: Any,
    ) -> Any:  # fmt: skip
        """As diffusers' pipeline's."""
        pixels = self.video_processor.preprocess_video(control_video, height=height, width=width)  # (1, 3, F, H, W)
        if pixels.shape[2] != num_frames:
            raise ValueError(f"control_video has {pixels.shape[2]} frames, and num_frames is {num_frames}")
        self._control, self._starts = self._encode_clip(pixels), image is not None
        first_frame = image if self._starts else torch.zeros(1, 3, height, width)
        return super().__call__(image=first_frame, height=height, width=width, num_frames=num_frames, **call)

    def _encode_clip(self, pixels: Tensor) -> Tensor:
        """A clip as latents (1, 16, F, h, w), float32: the mean of what the VAE knows of it."""
        z = self.vae.encode(pixels.to(self._execution_device, self.vae.dtype)).latent_dist.mode().float()
        config = self.vae.config
        mean, spread = (z.new_tensor(n).view(1, -1, 1, 1, 1) for n in (config.latents_mean, config.latents_std))
        return (z - mean) / spread

    def encode_image(self, image: Any, device: Any = None) -> Tensor:
        """CLIP's answer; zeros without an image."""
        if self._starts:
            return super().encode_image(image, device)
        return empty_image_features(1, self.transformer.config.image_dim).to(device or self._execution_device)

    def prepare_latents(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Noise (B, 16, F, h, w), and what the network sees behind it, (B, 32, F, h, w)."""
        # the stock condition is a mask of 4 channels and a clip that is gray but for its first frame
        noise, condition = super().prepare_latents(*args, **kwargs)
        first = condition[:, 4:, :1] if self._starts else None
        return noise, append_first_frame(self._control.to(noise).expand(len(noise), -1, -1, -1, -1), first)
