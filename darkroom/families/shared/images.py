"""Images as pipelines take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


def crop_to_shape(image: PILImage, width: int, height: int) -> PILImage:
    """An image of any size as RGB of this one, cropped and not stretched."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
