"""Pictures: sizes from headers, and bytes to the pixels that are trained on.

Orientation from EXIF is applied first and the mode is converted afterwards, so that no conversion can lose it. Alpha is
dropped, but for layers: the colours stored under transparent pixels are used as they are. 16-bit greyscale keeps its
upper eight bits. Of an animated picture the first frame is used. Arrays are uint8 (H, W, 3); tensors float32 (3, H, W)
in -1..1.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from darkroom.media.resize import Size, Sizes

Made = TypeVar("Made")

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".gif",
        ".avif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".jxl",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tga",
        ".heic",
        ".heif",
    ]
)
"""Endings, in lower case, that are listed as pictures."""

MOST_PIXELS = 178_956_970
"""Larger pictures (13377 x 13377) are taken for a decompression bomb and skipped; Pillow's own limit."""

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DECODING = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    struct.error,
    AttributeError,
    NotImplementedError,
    ZeroDivisionError,
    RuntimeError,
    MemoryError,
    Image.DecompressionBombError,
)
"""What Pillow's readers raise on damaged input, by experience."""

# half of the limit is where Pillow starts to warn; files are read in threads, so this cannot be a context around
# each call
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadPicture(Exception):
    """A picture that cannot be used. `reason` is a short, countable phrase; `detail` what the reader said."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


def read_size(source: str | Path | IO[bytes]) -> Size:
    """(width, height) as seen, from the header alone. Raises BadPicture."""
    return read_header(source)[0]


def read_header(source: str | Path | IO[bytes]) -> tuple[Size, bool]:
    """The same, and whether there is alpha. Raises BadPicture."""
    try:
        with _open(source) as image:
            width, height = image.size
            return (height, width) if orientation(image) in _SIDEWAYS else (width, height), has_alpha(image)
    except FileNotFoundError as cause:
        raise BadPicture("vanished", str(source)) from cause
    except PermissionError as cause:
        raise BadPicture("unreadable", str(cause)) from cause
    except _DECODING as cause:
        raise BadPicture("damaged", _say(cause)) from cause


def _open(source: str | Path | IO[bytes]) -> Image.Image:
    """Pillow's lazy picture, its size within bounds. Raises BadPicture, OSError."""
    try:
        image = Image.open(source)
    except UnidentifiedImageError as cause:
        raise BadPicture("empty file" if _is_empty(source) else "not a picture") from cause
    except Image.DecompressionBombError as cause:
        raise BadPicture("too many pixels", _say(cause)) from cause
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise BadPicture("too many pixels", f"{image.width}x{image.height}")
    if image.width < 1 or image.height < 1:
        raise BadPicture("damaged", "no pixels")
    return image


def _is_empty(source: str | Path | IO[bytes]) -> bool:
    if isinstance(source, (str, Path)):
        return Path(source).stat().st_size == 0
    return source.seek(0, io.SEEK_END) == 0


def _say(cause: BaseException) -> str:
    return f"{type(cause).__name__}: {cause}"[:200]


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 as far as the header tells it; 1 when there is none."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking Pillow would decode the whole file to look behind the pixels
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DECODING:
        return 1  # a damaged EXIF block does not spoil the pixels
    return value if value in _TRANSPOSE else 1


def load_rgb(data: bytes) -> Image.Image:
    """The picture as RGB, upright. Raises BadPicture with one of a few reasons."""
    return _load(data, to_rgb)


def _load(data: bytes, converted: Callable[[Image.Image], Made]) -> Made:
    """What `converted` makes of the picture, upright. Raises BadPicture."""
    if not data:
        raise BadPicture("empty file")
    try:
        with _open(io.BytesIO(data)) as image:
            turn = orientation(image)
            image.load()
            return converted(image.transpose(_TRANSPOSE[turn]) if turn in _TRANSPOSE else image)
    except OSError as cause:
        raise BadPicture("truncated" if "truncated" in str(cause).lower() else "damaged", _say(cause)) from cause
    except _DECODING as cause:
        raise BadPicture("damaged", _say(cause)) from cause


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: palettes resolved, alpha dropped, 16 and 32 bits brought to 8 by range, CMYK by Pillow."""
    if image.mode == "RGB":
        return image.copy()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(to_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    """Whether a picture says how opaque its pixels are."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def to_rgba(image: Image.Image) -> Image.Image:
    """Any mode to RGBA; a picture without alpha is opaque."""
    whole = image if has_alpha(image) and not image.mode.startswith(("I", "F")) else to_rgb(image)
    return whole.convert("RGBA")


def to_eight_bits(grey: np.ndarray) -> np.ndarray:
    """Greyscale (H, W) of wide integers or floats to uint8. Floats up to 1 are fractions, integers up to 65535."""
    grey = np.nan_to_num(grey.astype(np.float64))
    top = float(grey.max(initial=0.0))
    scale = 1.0 if 1.0 < top <= 255.0 else 255.0 if top <= 1.0 else 1 / 257.0
    return np.clip(np.rint(grey * scale), 0, 255).astype(np.uint8)


def frames_of(data: bytes) -> int:
    """How many frames the picture has; more than one means that only the first is used."""
    try:
        with _open(io.BytesIO(data)) as image:
            return int(getattr(image, "n_frames", 1))
    except (BadPicture, *_DECODING):
        return 1


def prepare(data: bytes, sizes: Sizes, crop: tuple[int, int]) -> np.ndarray:
    """Bytes to uint8 (H, W, 3) of the target size: upright, RGB, resized (Lanczos), cropped at (top, left).

    Raises BadPicture, also when the picture is not of the size that was planned for.
    """
    image = load_rgb(data)
    if image.size != tuple(sizes.original):
        raise BadPicture(
            "size differs",
            f"the file is {image.width}x{image.height}, the index says {sizes.original[0]}x{sizes.original[1]}",
        )
    return resize_and_crop(image, sizes, crop)


def prepare_layers(whole: bytes, layers: Sequence[bytes], sizes: Sizes, crop: tuple[int, int]) -> np.ndarray:
    """A picture and its layers to uint8 (1 + layers, H, W, 4), each as `prepare` does it, and with alpha.

    Resizing weighs colours by their alpha. The picture may lack alpha and is opaque then. Raises BadPicture, of a layer
    with the reasons of `layer_problem`.
    """
    image = _load(whole, to_rgba)
    if image.size != tuple(sizes.original):
        raise BadPicture("size differs", f"the file is {image.size}, the index says {sizes.original}")
    images = [image, *(_load_layer(data, image.size) for data in layers)]
    return np.stack([resize_and_crop(image, sizes, crop) for image in images])


def _load_layer(data: bytes, whole: Size) -> Image.Image:
    try:
        image, alpha = _load(data, lambda image: (to_rgba(image), has_alpha(image)))
    except BadPicture as bad:
        raise BadPicture("damaged layer", str(bad)) from bad
    if problem := layer_problem(whole, image.size, alpha):
        raise BadPicture(problem)
    return image


def layer_problem(whole: Size, layer: Size, alpha: bool) -> str:
    """The reason why a layer of this size, with or without alpha, is none of a picture; empty if it is one."""
    if tuple(layer) != tuple(whole):
        return "layer of another size"
    return "" if alpha else "layer without alpha"


def resampling(size: Size, sizes: Sizes) -> Image.Resampling:
    """The filter that brings a picture of `size` to its intermediary size."""
    shrinks = sizes.intermediary[0] <= size[0] and sizes.intermediary[1] <= size[1]
    return Image.Resampling.BOX if sizes.area_down and shrinks else Image.Resampling.LANCZOS


def resize_and_crop(image: Image.Image, sizes: Sizes, crop: tuple[int, int]) -> np.ndarray:
    """An RGB picture to uint8 (H, W, 3) of the target size; one with alpha to (H, W, 4)."""
    if image.size != tuple(sizes.intermediary):
        image = image.resize(sizes.intermediary, resampling(image.size, sizes))
    top, left = crop
    width, height = sizes.target
    return np.asarray(image)[top : top + height, left : left + width].copy()
