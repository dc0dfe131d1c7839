"""Sizes, durations and image resolutions as people write them."""

from __future__ import annotations

import re

THINNEST = 32
"""An image whose longer edge is more times its shorter one has no sensible size: it would be enlarged to a strip of
hundreds of megapixels, or cut down to next to nothing of it."""

# more digits than these are no size of anything
_SIZE = re.compile(r"^(\d{1,15}(?:\.\d+)?)\s*([KMGT]?)B?$", re.IGNORECASE)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """`"100G"` to bytes, powers of 1024. Raises ValueError with examples."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a size; write for example 500M, 100G or 1.5T")
    return int(float(match[1]) * 1024 ** _POWER[match[2].upper()])


def show_size(count: float) -> str:
    """Bytes as a person reads them: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show_duration(seconds: float) -> str:
    """Seconds as `45 s`, `3 min 20 s` or `2 h 05 min`."""
    total = round(seconds)
    if total < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def parse_resolutions(text: str, multiple: int = 1) -> list[tuple[int, int]]:
    """`"512,768x512"` to [(512, 512), (768, 512)] as (width, height), each rounded to `multiple` pixels."""
    sizes = []
    for part in str(text).replace(" ", "").split(","):
        match = re.match(r"^(\d{1,6})(?:\.0+)?(?:x(\d{1,6}))?$", part, re.IGNORECASE)
        if match is None:
            raise ValueError(f"'{part}' is not a resolution; write 512, 768x512 or a comma-separated list of them")
        width, height = int(match[1]), int(match[2] or match[1])
        sizes.append(
            (max(multiple, round(width / multiple) * multiple), max(multiple, round(height / multiple) * multiple))
        )
    return sizes
