"""Images side by side with labels, and the prompt below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from PIL.ImageFont import FreeTypeFont, ImageFont

GAP = 5
SEPARATOR = (211, 211, 211)
SMALL = 160
SQUARE = 8


def stitch(panels: Sequence[tuple[str, PILImage]], prompt: str = "") -> PILImage:
    """One PIL image of labelled panels, left to right, centred on white; the prompt stands in a margin below.

    Panels narrower than 160 pixels are shown larger, by a whole factor without smoothing, so that a person sees them.
    """
    from PIL import Image

    scaled = [(label, _enlarge(_on_squares(image))) for label, image in panels]
    height = max(image.height for _, image in scaled)
    width = sum(image.width for _, image in scaled) + GAP * (len(scaled) - 1)
    sheet = Image.new("RGB", (width, height), "white")
    left = 0
    for label, image in scaled:
        sheet.paste(image, (left, (height - image.height) // 2))
        if label and len(scaled) > 1:
            _label(sheet, label, left)
        left += image.width
        if left < width:
            sheet.paste(SEPARATOR, (left, 0, left + GAP, height))
            left += GAP
    return _with_caption(sheet, prompt) if prompt else sheet


def grid(rows: Sequence[Sequence[PILImage]], row_labels: Sequence[str] = (), scale: int = 1) -> PILImage:
    """Rows of equal-sized PIL images as one, each enlarged by a whole factor, with optional labels above the rows."""
    from PIL import Image, ImageDraw

    width, height = (rows[0][0].width * scale, rows[0][0].height * scale)
    line = 22 if row_labels else 0
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, len(rows) * (height + GAP + line) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        top = GAP + r * (height + GAP + line)
        if row_labels:
            pen.text((GAP, top + 3), row_labels[r], fill="black", font=_font(14))
        for c, image in enumerate(row):
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (GAP + c * (width + GAP), top + line))
    return sheet


def _on_squares(image: PILImage) -> PILImage:
    """An image with alpha on gray and white squares, so that a person sees what is transparent."""
    from PIL import Image

    if image.mode != "RGBA":
        return image
    small = Image.new("RGB", (-(-image.width // SQUARE), -(-image.height // SQUARE)), "white")
    for x in range(small.width):
        for y in range(x % 2, small.height, 2):
            small.putpixel((x, y), SEPARATOR)
    size = small.width * SQUARE, small.height * SQUARE
    squares = small.resize(size, Image.Resampling.NEAREST).crop((0, 0, *image.size))
    squares.paste(image, (0, 0), image)
    return squares


def _enlarge(image: PILImage) -> PILImage:
    from PIL import Image

    factor = -(-SMALL // min(image.size)) if min(image.size) < SMALL else 1
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _label(sheet: PILImage, label: str, left: int) -> None:
    from PIL import ImageDraw

    ImageDraw.Draw(sheet).text((left + 8, 8), label, fill="white", font=_font(13), stroke_width=2, stroke_fill="black")


def _with_caption(sheet: PILImage, prompt: str) -> PILImage:
    import textwrap

    from PIL import Image, ImageDraw

    lines = textwrap.wrap(f"Prompt: {prompt}", max(20, sheet.width // 7))[:4]
    tall = Image.new("RGB", (sheet.width, sheet.height + 18 * len(lines) + 10), "white")
    tall.paste(sheet, (0, 0))
    pen = ImageDraw.Draw(tall)
    for i, line in enumerate(lines):
        x = (tall.width - pen.textlength(line, font=_font(13))) / 2
        pen.text((max(4, x), sheet.height + 5 + 18 * i), line, fill="black", font=_font(13))
    return tall


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
