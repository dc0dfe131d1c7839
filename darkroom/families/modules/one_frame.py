"""Drawing one frame at a place on FramePack's time line, from pictures at other places.

The network sees the pictures as frames that are drawn already, where they stand; all other history is blank. With one
picture at place 0, a window of 1 and the frame at place 1 this is the stock pipeline's only section.
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


def placed(pictures: Sequence[Tensor], places: Sequence[int], target: int, window: int, post: bool) -> dict[str, Any]:
    """What the network sees beside the frame at `target`: latents (B, 16, 1, h, w) at their places.

    With `post` a blank frame stands behind the window, as behind a clip that is drawn from its end.
    """
    blank, device = torch.zeros_like(pictures[0]), pictures[0].device
    behind = 1 + window

    def at(*places: int) -> Tensor:
        return to_device(torch.tensor(places), device)

    return {
        "indices_latents": at(target),
        "latents_clean": torch.cat([*pictures, *[blank] * post], dim=2),
        "indices_latents_clean": at(*places, *[behind] * post),
        "latents_history_2x": blank.repeat(1, 1, HALF, 1, 1),
        "indices_latents_history_2x": at(*range(behind + 1, behind + 1 + HALF)),
        "latents_history_4x": blank.repeat(1, 1, QUARTER, 1, 1),
        "indices_latents_history_4x": at(*range(behind + 1 + HALF, behind + 1 + HALF + QUARTER)),
    }


class OneFramePipeline(HunyuanVideoFramepackPipeline):
    """FramePack's stock pipeline, drawing one section of one frame, which is shown what `placed` says."""

    def __call__(
        self, image: Any, places: Sequence[int], target: int, window: int, post: bool, height: int, width: int,
        output_type: str = "pil", return_dict: bool = False, **call: Any,
    ) -> Any:  # fmt: skip
        """image: one PIL picture, or one for each of `places`. The frame, as `output_type` says, in a tuple."""
        pictures = image if isinstance(image, list) else [image]
        if len(pictures) != len(places):
            raise ValueError(f"{len(pictures)} pictures for {len(places)} places")
        latents = [self._encoded(self.video_processor.preprocess(picture, height, width)) for picture in pictures]
        with self._showing(placed(latents, places, target, window, post)):
            drawn = super().__call__(
                image=pictures[0], height=height, width=width, num_frames=1, latent_window_size=1,
                sampling_type="inverted_anti_drifting", output_type="latent", return_dict=False, **call,
            )[0][-1][:, :, -1:]  # fmt: skip
        if output_type == "latent":
            return (drawn,)
        with torch.no_grad():
            pixels = self.vae.decode(drawn.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
        return (self.video_processor.postprocess_video(pixels, output_type=output_type),)

    @torch.no_grad()
    def _encoded(self, pixels: Tensor) -> Tensor:
        """A picture (1, 3, H, W) as a frame (1, 16, 1, h, w): the mean of what the VAE knows of it, as in training."""
        z = self.vae.encode(pixels.unsqueeze(2).to(self.vae.device, self.vae.dtype)).latent_dist.mode()
        return z.float() * self.vae.config.scaling_factor

    @contextlib.contextmanager
    def _showing(self, seen: dict[str, Any]) -> Iterator[None]:
        """Inside, the network is shown this in place of what the section would see."""

        def before(_: Any, args: Any, inputs: dict[str, Any]) -> Any:
            own = {k: v.to(inputs["latents_clean"]) if k.startswith("latents_") else v for k, v in seen.items()}
            return args, {**inputs, **own}

        hook = self.transformer.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
