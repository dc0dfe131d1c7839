"""Small video and sound files, written by PyAV, whose every frame is unlike the others."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av")


def pattern(count: int, width: int = 64, height: int = 48) -> np.ndarray:
    """uint8 (F, H, W, 3): a still ramp, a level that rises, and a bar that moves."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = np.arange(width) * 255 // width
    for i, frame in enumerate(frames):
        frame[..., 1] = i * 255 // count
        frame[:, i * 3 % width :][:, :8, 2] = 255
    return frames


def write(
    path: Path,
    codec: str = "libx264",
    frames: np.ndarray | None = None,
    *,
    fps: int = 24,
    pixels: str = "yuv420p",
    options: Mapping[str, str] = {},
    container: Mapping[str, str] = {},
    aspect: Fraction | None = None,
    rotation: int | None = None,
    matrix: Iterable[int] | None = None,
    stamps: Iterable[int] | None = None,
    source: str = "rgb24",
) -> Path:
    """A video file of `frames`, shown at `stamps` (in 1/1000 s; default: evenly, by `fps`)."""
    frames = pattern(50) if frames is None else frames
    with av.open(str(path), "w", options=dict(container)) as file:
        stream = file.add_stream(codec, rate=fps, options=dict(options))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if matrix is not None:
            stream.set_display_matrix(list(matrix))
        unit = Fraction(1, fps) if stamps is None else Fraction(1, 1000)
        stream.codec_context.time_base = unit
        for stamp, picture in zip(range(len(frames)) if stamps is None else stamps, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format=source)
            frame.pts, frame.time_base = stamp, unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def write_sound(
    path: Path,
    samples: np.ndarray,
    rate: int,
    codec: str = "pcm_s16le",
    layout: str | None = None,
    cover: bytes | None = None,
    options: Mapping[str, str] = {},
) -> Path:
    """A sound file of float32 (channels, samples) in -1..1; `cover` is a JPEG picture put on it."""
    layout = layout or ("mono" if len(samples) == 1 else "stereo")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout=layout, options=dict(options))
        art = None
        if cover is not None:
            art = file.add_stream_from_template(av.open(io.BytesIO(cover)).streams.video[0])
            art.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        if art is not None:
            packet = av.Packet(cover)
            packet.stream, packet.pts, packet.dts, packet.time_base = art, 0, 0, Fraction(1, 1000)
            file.mux(packet)
        for part in av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate).resample(frame):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path


@functools.lru_cache(maxsize=4)
def decoded(path: Path) -> np.ndarray:
    """Every frame by the shortest loop: uint8 (F, H, W, 3) as stored, without rotation or stretching."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def encoded(image: Any, kind: str = "png", **options: Any) -> bytes:
    """A Pillow picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
