"""ICC profiles made byte by byte (ICC.1:2001-04), whose colors are surely not those of sRGB."""

from __future__ import annotations

import struct

WHITE = (0.9642, 1.0, 0.8249)
WIDE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
"""Adobe RGB (1998): X, Y, Z of red, green and blue, adapted to D50."""


def rgb_profile(gamma: float = 2.2) -> bytes:
    """A wide color space by three primaries and one curve."""
    xyz = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, WIDE), strict=True))
    return _profile(b"RGB ", b"XYZ ", {**xyz, **{name: _curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")}})


def gray_profile(gamma: float = 1.0) -> bytes:
    """Gray by a curve; linear light unless said otherwise."""
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """Inks whose lightness falls evenly with each of them and whose color does not matter: 16 corners of a cube."""
    corners = [max(0, 255 - 60 * sum(c) - 75 * k) for *c, k in _corners(4)]
    table = b"".join(bytes((lightness, 128, 128)) for lightness in corners)
    ramp = bytes(range(256))
    identity = b"".join(struct.pack(">i", v << 16) for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramp * 4 + table + ramp * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": lut}, kind=b"prtr")


def _corners(inks: int) -> list[tuple[int, ...]]:
    return [tuple(number >> shift & 1 for shift in reversed(range(inks))) for number in range(2**inks)]


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    text = b"test\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(8) + bytes(3 + 67)
    tags = {b"desc": description, b"wtpt": _xyz(WHITE), b"cprt": b"text" + bytes(4) + text, **tags}
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    size = at + len(body)
    head = struct.pack(">I", size) + bytes(4) + struct.pack(">I", 0x02400000) + kind + space + connection
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(WHITE)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
