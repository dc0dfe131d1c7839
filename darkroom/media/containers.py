"""Opening video and sound files with PyAV (FFmpeg), and saying in a few countable words why one cannot be used.

Only container formats of clip and sound are opened. Still and animated images, playlists and subtitle files are not
media here, whatever their name ends in: a playlist could make FFmpeg read other files.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from darkroom.core.optional import import_optional
from darkroom.media.images import BadImage

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream

Source = str | Path | BinaryIO | bytes
"""A path, an open seekable file, or the whole file in memory."""

_FORMATS = (
    "mov,mp4,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,mxf,nut,rm,yuv4mpegpipe,dv,"
    "wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,ape,wv,tta,dsf,amr"
)
_SIGNATURES = (
    (4, b"ftyp"),
    (4, b"moov"),
    (4, b"mdat"),
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska and WebM
    (0, b"RIFF"),
    (0, b"FLV\x01"),
    (0, b"OggS"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF: wmv, wma
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"fLaC"),
    (0, b"ID3"),
    (0, b"FORM"),
)
"""Where a container names itself. What starts so and cannot be opened has lost a part."""


@contextlib.contextmanager
def open_container(source: Source, kind: str) -> Iterator[InputContainer]:
    """The open container. Raises BadImage; `kind` is "video" or "sound".

    An open file is read from its start and stays open.
    """
    av = import_optional("av", "video", f"Reading {kind} files")
    try:
        file = _file(source)
        with av.open(file, options={"format_whitelist": _FORMATS}, metadata_errors="replace") as container:
            yield container
    except FileNotFoundError as cause:
        raise BadImage("vanished", str(source)) from cause
    except PermissionError as cause:
        raise BadImage("unreadable", str(cause)) from cause
    except av.FFmpegError as cause:
        raise BadImage(_reason(source, kind), describe_error(cause)) from cause
    except OSError as cause:
        raise BadImage("unreadable", describe_error(cause)) from cause


def _file(source: Source) -> str | BinaryIO:
    """What PyAV opens. Raises BadImage for an empty file, OSError."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    if isinstance(source, (str, Path)):
        if not Path(source).stat().st_size:
            raise BadImage("empty file")
        if not os.access(source, os.R_OK):
            raise PermissionError(f"no permission to read {source}")
        return f"file:{source}"  # so that a colon or a percent sign in a name means nothing
    if source.seek(0, io.SEEK_END) == 0:
        raise BadImage("empty file")
    source.seek(0)
    return source


def _reason(source: Source, kind: str) -> str:
    """Why FFmpeg could not open a file: it is something else, or the beginning is right and the rest is not there."""
    with contextlib.suppress(OSError):
        start = _start(source)
        if any(start[at : at + len(mark)] == mark for at, mark in _SIGNATURES):
            if start[:4] == b"RIFF" and start[8:12] not in (b"AVI ", b"WAVE"):
                return f"not a {kind}"  # a WebP image, for one
            return "truncated"
    return f"not a {kind}"


def _start(source: Source) -> bytes:
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            return file.read(16)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source[:16])
    source.seek(0)
    return source.read(16)


def iterate_packets(container: InputContainer, stream: Stream) -> Iterator[Packet]:
    """The packets of one stream and, last, the empty one that flushes the decoder.

    A damaged end of the file ends them; the packet that a cut went through is left out.
    """
    av = import_optional("av", "video", "Reading video files")
    pending = None
    demuxed = container.demux(stream)
    while True:
        try:
            packet = next(demuxed, None)
        except av.FFmpegError:
            packet = None  # what was there before can be used
        if packet is None or not packet.size:
            if pending is not None and not pending.is_corrupt:
                yield pending
            yield av.Packet() if packet is None else packet
            return
        if pending is not None:
            yield pending
        pending = packet


def describe_error(cause: BaseException) -> str:
    """An exception in one line."""
    return f"{type(cause).__name__}: {cause}"[:200]
