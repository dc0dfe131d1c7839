"""Drawing one frame at a place on FramePack's time line, from images at other places.

The network sees the images as frames that are drawn already, where they stand; all other history is blank. With one
image at place 0, a window of 1 and the frame at place 1 this is diffusers' pipeline's only section.
Source: kohya-ss/musubi-tuner, whose one-frame mode it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_framepack import HunyuanVideoFramepackPipeline
from torch import Tensor

from darkroom.core.transfer import to_device
from darkroom.families.framepack import HALF, QUARTER


def build_network_inputs(
    images: Sequence[Tensor], places: Sequence[int], target: int, window: int, post: bool
) -> dict[str, Any]:
    """What the network sees beside the frame at `target`: latents (B, 16, 1, h, w) at their places.

    With `post` a blank frame stands behind the window, as behind a clip that is drawn from its end.
    """
    blank, device = torch.zeros_like(images[0]), images[0].device
    behind = 1 + window

    def at(*places: int) -> Tensor:
        return to_device(torch.tensor(places), device)

    return {
        "indices_latents": at(target),
        "latents_clean": torch.cat([*images, *[blank] * post], dim=2),
        "indices_latents_clean": at(*places, *[behind] * post),
        "latents_history_2x": blank.repeat(1, 1, HALF, 1, 1),
        "indices_latents_history_2x": at(*range(behind + 1, behind + 1 + HALF)),
        "latents_history_4x": blank.repeat(1, 1, QUARTER, 1, 1),
        "indices_latents_history_4x": at(*range(behind + 1 + HALF, behind + 1 + HALF + QUARTER)),
    }


class OneFramePipeline(HunyuanVideoFramepackPipeline):
    """FramePack's pipeline for one section of one frame, with the inputs of `build_network_inputs`."""

    def __call__(
        self, image: Any, places: Sequence[int], target: int, window: int, post: bool, height: int, width: int,
        output_type: str = "pil", return_dict: bool = False, **call: Any,
    ) -> Any:  # fmt: skip
        """image: one PIL image, or one for each of `places`. The frame, as `output_type` says, in a tuple."""
        images = image if isinstance(image, list) else [image]
        if len(images) != len(places):
            raise ValueError(f"{len(images)} images for {len(places)} places")
        latents = [
            self._encode_frame(self.video_processor.preprocess(preprocessed, height, width)) for preprocessed in images
        ]
        with self._override_inputs(build_network_inputs(latents, places, target, window, post)):
            frame = super().__call__(
                image=images[0], height=height, width=width, num_frames=1, latent_window_size=1,
                sampling_type="inverted_anti_drifting", output_type="latent", return_dict=False, **call,
            )[0][-1][:, :, -1:]  # fmt: skip
        if output_type == "latent":
            return (frame,)
        with torch.no_grad():
            pixels = self.vae.decode(frame.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
        return (self.video_processor.postprocess_video(pixels, output_type=output_type),)

    @torch.no_grad()
    def _encode_frame(self, pixels: Tensor) -> Tensor:
        """An image (1, 3, H, W) as a frame (1, 16, 1, h, w): the mean of what the VAE knows of it, as in training."""
        z = self.vae.encode(pixels.unsqueeze(2).to(self.vae.device, self.vae.dtype)).latent_dist.mode()
        return z.float() * self.vae.config.scaling_factor

    @contextlib.contextmanager
    def _override_inputs(self, overrides: dict[str, Any]) -> Iterator[None]:
        """Inside, the network is shown this in place of what the section would see."""

        def before(_: Any, args: Any, inputs: dict[str, Any]) -> Any:
            converted = {
                k: v.to(inputs["latents_clean"]) if k.startswith("latents_") else v for k, v in overrides.items()
            }
            return args, {**inputs, **converted}

        hook = self.transformer.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
