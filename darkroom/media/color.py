"""ICC profiles: from the colors that a file means to sRGB, which is what models are trained on and viewers show.

Little CMS does the arithmetic, through Pillow, with the perceptual intent. sRGB under its many names is recognized by
what it does: a profile that moves no color by more than two levels of 255 is left alone, so that rounding changes
nothing. A profile that cannot be used (damaged, or of another kind of pixels than the image's) is as good as none.
"""

from __future__ import annotations

import io
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageCms

SAME = 2
"""Levels of 255 within which a profile counts as sRGB."""

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
"""Color space of a profile to Pillow's mode of the pixels that it describes."""

_GRAY = ("1", "L", "LA", "La", "I", "F")


def profile_of(image: Image.Image) -> bytes:
    """The ICC profile that the header brought; empty without one."""
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) else b""


def is_usable(image: Image.Image) -> bool:
    """Whether the image's profile can be applied to its pixels; True also without one."""
    profile = profile_of(image)
    return not profile or _find_fitting_mode(profile, image.mode) is not None


def changes_colors(image: Image.Image) -> bool:
    """Whether the image has a profile by which its colors are not those of sRGB."""
    profile = profile_of(image)
    mode = _find_fitting_mode(profile, image.mode) if profile else None
    return mode is not None and _transform(profile, mode) is not None


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image of eight bits (not a palette's) as RGB in sRGB; by Pillow's own conversion where no profile fits.

    Lab pixels have a meaning of their own, and are converted by it when the file brings no profile for them.
    """
    mode = _find_fitting_mode(profile, image.mode) if profile else None
    if mode is not None:
        transform = _transform(profile, mode)
    elif image.mode == "LAB":
        mode, transform = "LAB", _lab()
    else:
        transform = None
    if mode is None or transform is None:
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform)
    assert converted is not None
    return converted


@lru_cache(maxsize=256)
def _find_fitting_mode(profile: bytes, mode: str) -> str | None:
    """The mode to which pixels of `mode` are brought before the profile is applied; None if it does not fit them."""
    try:
        described = _MODES.get(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space)
        if described is None or not _describes(described, mode):
            return None
        _transform(profile, described)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    return described


def _describes(described: str, mode: str) -> bool:
    """Whether a profile of pixels of the mode `described` says something about an image of `mode`."""
    if mode in ("CMYK", "LAB") or described in ("CMYK", "LAB"):
        return mode == described
    return described == "RGB" or mode.startswith(_GRAY)


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings pixels of `mode` to sRGB; None for a profile that leaves them as they are. Raises PyCMSError."""
    transform = ImageCms.buildTransform(ImageCms.ImageCmsProfile(io.BytesIO(profile)), _srgb(), mode, "RGB")
    if mode in ("CMYK", "LAB"):
        return transform
    probe = _grid(mode)
    after = ImageCms.applyTransform(probe, transform)
    moved = np.asarray(after, np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    return None if int(np.abs(moved).max()) <= SAME else transform


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@cache
def _lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")


@cache
def _grid(mode: str) -> Image.Image:
    """All grays, or colors at nine levels of each channel."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1)
    return Image.fromarray(colors.reshape(9, 81, 3))
