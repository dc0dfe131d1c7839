"""What a pipeline made, as frames of bytes with their audio; an image is one frame. Frames side by side.

Layers are frames with alpha, (F, H, W, 4): the channels tell them from a clip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from darkroom.core.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


Frames = NDArray[np.uint8]
MAX_FRAMES = 16


@dataclasses.dataclass(frozen=True)
class Rendered:
    """Frames (F, H, W, 3), or layers (F, H, W, 4), and the audio, (channels, N) in -1..1 and its samples a second, of
    clips that have some."""

    frames: Frames
    audio: tuple[NDArray[np.float32], int] | None = None

    @property
    def image(self) -> PILImage:
        """The image, or the clip's frames or the layers side by side."""
        return tile_frames(self.frames)

    @property
    def is_clip(self) -> bool:
        """Is there anything to play?"""
        return len(self.frames) > 1 and not self.is_layered

    @property
    def is_layered(self) -> bool:
        """Are these layers?"""
        return self.frames.shape[-1] == 4

    def write_extra_files(self, image_path: Path, fps: float) -> list[Path]:
        """What an image of it cannot hold, written beside that: a clip as MP4, layers in a folder, each as PNG."""
        from darkroom.media.video import write_mp4

        if self.is_clip:
            path = image_path.with_suffix(".mp4")
            write_mp4(path, self.frames, fps, audio=self.audio)
            return [path]
        paths = [image_path.with_suffix("") / f"layer_{number}.png" for number in range(len(self.frames))]
        for path, layer in zip(paths, self.frames, strict=True) if self.is_layered else ():
            with write_atomically(path) as temporary:
                tile_frames(layer[None]).save(temporary, format="PNG")
        return paths if self.is_layered else []


def from_pixels(pixels: Tensor) -> Frames:
    """The first of a batch of pixels (B, 3, H, W) or (B, 3, F, H, W), about -1..1, as frames (F, H, W, 3)."""
    clip = pixels[0] if pixels.ndim == 5 else pixels[0].unsqueeze(1)  # (3, F, H, W)
    return _bytes((clip / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).float().cpu().numpy())


def from_output(output: Sequence[NDArray[np.float32] | PILImage | list[PILImage]]) -> Frames:
    """The first of what a pipeline returns, as frames (F, H, W, 3), with alpha (F, H, W, 4): PIL images, lists of
    them, or arrays in 0..1."""
    first = output[0]
    if isinstance(first, np.ndarray):
        return _bytes(first if first.ndim == 4 else first[None])
    images = first if isinstance(first, list) else [first]
    mode = "RGBA" if images[0].mode == "RGBA" else "RGB"
    return np.stack([np.asarray(image.convert(mode)) for image in images])


def _bytes(values: NDArray[np.float32]) -> Frames:
    """0..1 to 0..255, rounded as the diffusers pipelines round."""
    return (values * 255).round().astype(np.uint8)


def tile_frames(frames: Frames, maximum: int = MAX_FRAMES) -> PILImage:
    """Frames as one PIL image without gaps, row by row: all of them, or `maximum` evenly spaced ones with both ends.

    Nothing is scaled, so two videos are equal where these frames are. One frame is a video of its own.
    """
    from PIL import Image

    selected = frames[np.linspace(0, len(frames) - 1, min(len(frames), maximum)).round().astype(int)]
    columns = int(np.ceil(len(selected) ** 0.5))
    rows = -(-len(selected) // columns)
    _, height, width, channels = frames.shape
    sheet = np.full((rows * height, columns * width, channels), 255, np.uint8)
    for i, frame in enumerate(selected):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = frame
    return Image.fromarray(sheet)
