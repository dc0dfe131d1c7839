"""Images: sizes from headers, and bytes to the pixels that are trained on.

Orientation is applied first, once, and the mode is converted afterwards, so that no conversion can lose it. Colors are
brought to sRGB by the file's ICC profile (`color.py`). Alpha is dropped, but for layers: the colors stored under
transparent pixels are used as they are. 16-bit gray is divided by 257 and floats are fractions of white, whatever the
image holds. Of an animated image the first frame is used. Arrays are uint8 (H, W, 3); tensors float32 (3, H, W) in
-1..1.
"""

from __future__ import annotations

import enum
import importlib
import io
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from darkroom.media import color
from darkroom.media.area import resize_by_area

if TYPE_CHECKING:
    from darkroom.media.resize import Size, Sizes

Converted = TypeVar("Converted")

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
        ".avifs",
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
        ".heics",
        ".heifs",
        ".hif",
    ]
)
"""Endings, in lower case, that are listed as images."""

MAX_PIXELS = 178_956_970
"""Larger images (13377 x 13377) are taken for a decompression bomb and skipped; Pillow's own limit."""

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


class BadImage(Exception):
    """An image that cannot be used. `reason` is a short, countable phrase; `detail` what the reader said."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


DECODING = 2
"""Part of the name of whatever is kept of an image's pixels. Counts up when the same bytes give other pixels."""


class Traits(enum.IntFlag):
    """What is worth telling of an image's header."""

    NONE = 0
    PROFILE = 1  # its ICC profile is not that of sRGB
    ODD_PROFILE = 2  # its ICC profile cannot be used
    ANIMATED = 4  # it has several frames or pages


class ImageHeader(NamedTuple):
    """What an image's header says; `size` is (width, height) as seen."""

    size: Size
    has_alpha: bool
    traits: Traits


class ImagePlugin(NamedTuple):
    """A package that teaches Pillow a kind of image, and how such files begin: (offset, bytes)."""

    package: str
    module: str
    marks: tuple[tuple[int, bytes], ...]

    @property
    def missing(self) -> str:
        """The reason why a file is left out without the package."""
        return f"{self.package} is not installed"

    @property
    def failing(self) -> str:
        """The reason why a file is left out that the package cannot read."""
        return f"{self.package} cannot read it"

    def register(self) -> bool:
        """Have Pillow use the package; False if it is not installed."""
        try:
            module = importlib.import_module(self.module)
        except ImportError:
            return False
        if self.module == "pillow_heif":
            module.register_heif_opener()  # the other one registers itself
        return True


_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
READERS = (
    ImagePlugin("pillow-heif", "pillow_heif", tuple((4, b"ftyp" + brand) for brand in _HEIF_BRANDS)),
    ImagePlugin("pillow-jxl-plugin", "pillow_jxl", ((0, b"\xff\x0a"), (0, b"\0\0\0\x0cJXL \r\n\x87\n"))),
)
"""Packages of the extra `images`, by what they read: HEIC and HEIF, and JPEG XL."""

INSTALL = "pip install 'darkroom-trainer[images]'"
"""What makes the readers available."""

UNKNOWN_KIND = "damaged or of an unknown kind"
"""The reason for a file that begins as an image does and that Pillow cannot open, as a TIFF of three floats."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ")
"""How files begin that are images, even where Pillow cannot read them."""


def read_size(source: str | Path | IO[bytes]) -> Size:
    """(width, height) as seen, from the header alone. Raises BadImage."""
    return read_header(source).size


def read_header(source: str | Path | IO[bytes]) -> ImageHeader:
    """Size, alpha and traits, without decoding pixels. Raises BadImage."""
    try:
        with open_image(source) as image:
            return ImageHeader(_upright_size(image), has_alpha(image), _read_traits(image))
    except FileNotFoundError as cause:
        raise BadImage("vanished", str(source)) from cause
    except PermissionError as cause:
        raise BadImage("unreadable", str(cause)) from cause
    except _DECODING as cause:
        raise BadImage("damaged", _describe_error(cause)) from cause


def _read_traits(image: Image.Image) -> Traits:
    traits = Traits.NONE
    if color.changes_colors(image):
        traits |= Traits.PROFILE
    elif not color.is_usable(image):
        traits |= Traits.ODD_PROFILE
    # the further images of a camera's MPO are small copies and depths, no frames
    if image.format != "MPO" and getattr(image, "is_animated", False):
        traits |= Traits.ANIMATED
    return traits


def open_image(source: str | Path | IO[bytes]) -> Image.Image:
    """Pillow's lazy image, by whatever reader it takes, its size within bounds. Raises BadImage, OSError."""
    try:
        image = _identify(source)
    except Image.DecompressionBombError as cause:
        raise BadImage("too many pixels", _describe_error(cause)) from cause
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise BadImage("too many pixels", f"{image.width}x{image.height}")
    if image.width < 1 or image.height < 1:
        raise BadImage("damaged", "no pixels")
    return image


def _identify(source: str | Path | IO[bytes]) -> Image.Image:
    """The image, by the reader that its first bytes ask for. Raises BadImage, OSError."""
    try:
        return Image.open(source)
    except UnidentifiedImageError as cause:
        start = _start(source)
        reader = next((r for r in READERS if any(start[at:].startswith(mark) for at, mark in r.marks)), None)
        if reader is None:
            named = start.startswith(_SIGNATURES)
            raise BadImage(UNKNOWN_KIND if named else "not a picture" if start else "empty file") from cause
        if not reader.register():
            raise BadImage(reader.missing, INSTALL) from cause
        try:
            return Image.open(source)
        except UnidentifiedImageError as again:
            raise BadImage(reader.failing) from again


def _start(source: str | Path | IO[bytes]) -> bytes:
    """The first bytes of a file, whose position is put back to them."""
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            return file.read(16)
    source.seek(0)
    start = source.read(16)
    source.seek(0)
    return start


def _describe_error(cause: BaseException) -> str:
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


def _upright_size(image: Image.Image) -> Size:
    """(width, height) as seen, of an image that is not loaded yet."""
    if isinstance(image, TiffImageFile) and _ORIENTATION in image.tag_v2:
        return image.size  # Pillow has taken the tag into account, and turns the pixels when it loads them
    return image.size[::-1] if orientation(image) in _SIDEWAYS else image.size


def make_upright(image: Image.Image) -> Image.Image:
    """The image, loaded and turned as its header asks."""
    turn = orientation(image)
    image.load()
    if turn == 1 or orientation(image) == 1:  # nothing to do, or Pillow has turned it while it was loaded
        return image
    return image.transpose(_TRANSPOSE[turn])


def load_rgb(data: bytes, convert: bool = True) -> Image.Image:
    """The image as RGB, upright; with `convert` in sRGB. Raises BadImage with one of a few reasons."""
    return _load(data, lambda image: to_rgb(image, convert))


def load_rgba(data: bytes, convert: bool = True) -> Image.Image:
    """The same with alpha; an image without is opaque. Raises BadImage."""
    return _load(data, lambda image: to_rgba(image, convert))


def _load(data: bytes, convert_image: Callable[[Image.Image], Converted]) -> Converted:
    """What `converted` makes of the image, upright. Raises BadImage."""
    if not data:
        raise BadImage("empty file")
    try:
        with open_image(io.BytesIO(data)) as image:
            return convert_image(make_upright(image))
    except OSError as cause:
        raise BadImage(
            "truncated" if "truncated" in str(cause).lower() else "damaged", _describe_error(cause)
        ) from cause
    except _DECODING as cause:
        raise BadImage("damaged", _describe_error(cause)) from cause


def to_rgb(image: Image.Image, convert: bool = True) -> Image.Image:
    """Any mode to RGB: palettes resolved, alpha dropped, more than 8 bits brought to 8; with `convert` in sRGB.

    Raises BadImage for pixel values that no 8 bits stand for.
    """
    flat = image
    if image.mode.startswith(("I", "F")):
        flat = Image.fromarray(to_eight_bits(np.asarray(image)))
    elif image.mode in ("P", "PA"):
        flat = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    converted = color.to_srgb(flat, color.profile_of(image) if convert else b"")
    return converted.copy() if converted is image else converted


def has_alpha(image: Image.Image) -> bool:
    """Whether an image says how opaque its pixels are."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def to_rgba(image: Image.Image, convert: bool = True) -> Image.Image:
    """Any mode to RGBA; an image without alpha is opaque."""
    rgb = to_rgb(image, convert)
    if has_alpha(image) and not image.mode.startswith(("I", "F")):
        rgb.putalpha(image.convert("RGBA").getchannel("A"))
        return rgb
    return rgb.convert("RGBA")


def to_eight_bits(gray: np.ndarray) -> np.ndarray:
    """Grayscale (H, W) of wide integers or floats to uint8, on a scale that does not depend on what the image holds.

    Integers run to 65535, floats to 1; highlights above are cut off. Raises BadImage where another scale was meant:
    integers below 0 or beyond 16 bits, and floats of which most lie above 1.
    """
    if np.issubdtype(gray.dtype, np.floating):
        values = np.nan_to_num(gray.astype(np.float64))
        if float(np.median(values)) > 1:
            raise BadImage("pixel values out of range", "most floats are above 1, which is white")
        return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
    if gray.size and (int(gray.min()) < 0 or int(gray.max()) > 65535):
        raise BadImage("pixel values out of range", f"integers from {gray.min()} to {gray.max()}, not 0 to 65535")
    return np.rint(gray / 257).astype(np.uint8)


def prepare_image(data: bytes, sizes: Sizes, crop: tuple[int, int], convert: bool = True) -> np.ndarray:
    """Bytes to uint8 (H, W, 3) of the target size: upright, RGB, resized, cropped at (top, left).

    `convert` brings colors to sRGB. Raises BadImage, also when the image is not of the size that was planned for.
    """
    image = load_rgb(data, convert)
    if image.size != tuple(sizes.original):
        raise BadImage(
            "size differs",
            f"the file is {image.width}x{image.height}, the index says {sizes.original[0]}x{sizes.original[1]}",
        )
    return resize_and_crop(image, sizes, crop)


def prepare_layers(
    composite: bytes, layers: Sequence[bytes], sizes: Sizes, crop: tuple[int, int], convert: bool = True
) -> np.ndarray:
    """An image and its layers to uint8 (1 + layers, H, W, 4), each as `prepare` does it, and with alpha.

    Resizing weighs colors by their alpha. The image may lack alpha and is opaque then. Raises BadImage, of a layer
    with the reasons of `layer_problem`.
    """
    image = load_rgba(composite, convert)
    if image.size != tuple(sizes.original):
        raise BadImage("size differs", f"the file is {image.size}, the index says {sizes.original}")
    images = [image, *(_load_layer(data, image.size, convert) for data in layers)]
    return np.stack([resize_and_crop(image, sizes, crop) for image in images])


def _load_layer(data: bytes, composite_size: Size, convert: bool) -> Image.Image:
    try:
        image, alpha = _load(data, lambda image: (to_rgba(image, convert), has_alpha(image)))
    except BadImage as bad:
        raise BadImage("damaged layer", str(bad)) from bad
    if problem := layer_problem(composite_size, image.size, alpha):
        raise BadImage(problem)
    return image


def layer_problem(composite_size: Size, layer: Size, alpha: bool) -> str:
    """The reason why a layer of this size, with or without alpha, is none of an image; empty if it is one."""
    if tuple(layer) != tuple(composite_size):
        return "layer of another size"
    return "" if alpha else "layer without alpha"


def resize_and_crop(image: Image.Image, sizes: Sizes, crop: tuple[int, int]) -> np.ndarray:
    """An RGB image to uint8 (H, W, 3) of the target size; one with alpha to (H, W, 4)."""
    if image.size != tuple(sizes.intermediary):
        image = resize(image, sizes.intermediary, sizes.area_down)
    top, left = crop
    width, height = sizes.target
    return np.asarray(image)[top : top + height, left : left + width].copy()


def resize(image: Image.Image, size: Size, area_down: bool) -> Image.Image:
    """An RGB or RGBA image at another size, by Lanczos; with `area_down` one that shrinks by exact areas."""
    if not (area_down and size[0] <= image.width and size[1] <= image.height):
        return image.resize(size, Image.Resampling.LANCZOS)
    if image.mode == "RGBA":  # as Pillow's own resizing does: a color counts as much as it shows
        premultiplied = resize_by_area(np.asarray(image.convert("RGBa")), size)
        return Image.frombytes("RGBa", size, premultiplied.tobytes()).convert("RGBA")
    return Image.fromarray(resize_by_area(np.asarray(image), size))
