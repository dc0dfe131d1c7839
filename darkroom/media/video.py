"""Clips: counting their frames without decoding them, and reading chosen ones, upright and in square pixels.

Frame k is the k-th image that a player shows. A clip is a video file (PyAV reads it), the same as bytes or an open
file, or a folder of images, whose names say the order. Animated images (GIF, WebP) are no clips.

Rotation and mirroring that the file asks for are applied; pixels that are not square are stretched along the edge that
is too short, so no line is lost. More than 8 bits are rounded, alpha is dropped, and wide-gamut or HDR colors are
taken as they are. Arrays are uint8 (F, H, W, 3).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image

from darkroom.core.files import write_atomically
from darkroom.core.optional import import_optional
from darkroom.media import images
from darkroom.media.containers import Source, describe_error, iterate_packets, open_container
from darkroom.media.images import MAX_PIXELS, BadImage

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.sidedata.sidedata import SideData
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from darkroom.media.resize import Size, Sizes

VIDEO_ENDINGS = frozenset(
    ".mp4 .m4v .mov .avi .mkv .webm .flv .wmv .mpg .mpeg .3gp .3g2 .ogv .m2ts".split()  # noqa: SIM905
)
"""Endings, in lower case, that are listed as videos."""

FAR = 24
"""A cut that starts at this frame or later is looked up by time stamp, so that decoding can start near it."""

_REORDER = 32
"""Packets are stored at most 16 places away from where their frames are shown (H.264, HEVC); twice that is safe."""

_BY_DISPLAY_TIME, _BY_DECODE_TIME = ("mov", "matroska"), ("avi", "flv", "asf")
"""Formats in which every packet has a time stamp of its own, by the time that their tables of key frames hold. In MPEG
streams only some packets have one, and those in between are guesses that turn out otherwise after a jump."""


@dataclass(frozen=True)
class Clip:
    """What is known of a clip without decoding it: upright size in square pixels, frames, rate, seconds.

    A folder of images has no times: `fps` and `duration` are 0.
    """

    width: int
    height: int
    frames: int
    fps: float
    duration: float


@dataclass(frozen=True)
class _Row:
    """One packet: when it is shown and when decoded, in units of the stream's time base."""

    pts: int | None
    dts: int | None
    key: bool


@dataclass(frozen=True)
class _FrameFormat:
    """How decoded images become upright ones: swap the axes, mirror them, and then their size in square pixels."""

    coded: Size
    swapped: bool
    mirrored: tuple[bool, bool]
    display_size: Size

    def upright(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (H, W, 3), not stretched yet. An image of another size is brought to that of the first."""
        width, height = self.coded
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
        if self.swapped:
            pixels = pixels.transpose(1, 0, 2)
        across, down = self.mirrored
        return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])


class _Trouble(Exception):
    """This way of reading the frames does not work for this file."""

    def __init__(self, reason: str, detail: str):
        self.reason, self.detail = reason, detail
        super().__init__(detail)


# --- what a clip is ---------------------------------------------------------------------------------------------------


def probe(source: Source) -> Clip:
    """Size, frames and rate of a clip. Raises BadImage.

    Only the first frame is decoded: where rotation is noted and whether anything can be decoded show there. Frames are
    taken from the container's own table where it has one (MP4, MOV, AVI) and its entries lie within the file; otherwise
    the packets are counted.
    """
    if _is_folder(source):
        return _probe_folder(Path(source))  # type: ignore[arg-type]
    with open_container(source, "video") as container:
        stream = _video(container)
        count = _count_listed(container, stream)
        rate = float(stream.average_rate or 0)
        if count is not None and rate > 0:
            return Clip(*_scan(container, stream, to_end=False)[0].display_size, count, rate, count / rate)
        frame_format, rows = _scan(container, stream, to_end=True)
        fps, duration = _pace(rows, float(stream.time_base or 0), rate or float(stream.guessed_rate or 0))
        return Clip(*frame_format.display_size, len(rows), fps, duration)


def times(source: Source) -> np.ndarray:
    """When each frame is shown, in seconds after the first: float64 (F,), ascending. Raises BadImage. No decoding.

    A folder of images has no times and is refused with the reason "no frame times".
    """
    if _is_folder(source):
        raise BadImage("no frame times", "the clip is a folder of pictures; take its frames by number")
    with open_container(source, "video") as container:
        stream = _video(container)
        rows = _rows(container, stream)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        return _display_times(rows, float(stream.time_base or 0), rate)


def _video(container: InputContainer) -> VideoStream:
    """The clip of a file: the stream marked as default, else the first; cover art is none. Raises BadImage."""
    av = import_optional("av", "video", "Reading video files")
    still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & still]
    if not streams:
        raise BadImage("no video stream")
    stream = next((s for s in streams if s.disposition & av.stream.Disposition.default), streams[0])
    context = stream.codec_context
    if context is None:
        raise BadImage("unreadable", "the installed FFmpeg has no decoder for it")
    _validate_bounds(context.width, context.height)
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def _validate_bounds(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage("too many pixels", f"{width}x{height}")


def _count_listed(container: InputContainer, stream: VideoStream) -> int | None:
    """Frames by the container's table of them, as far as they lie within the file; None if there is no full table."""
    name = container.format.name
    if not stream.frames or not (name.startswith("mov,") or name == "avi"):
        return None
    entries = list(stream.index_entries)  # read once: the table is not safe to keep
    size = container.size
    complete = list(itertools.takewhile(lambda e: size <= 0 or e.pos + e.size <= size, entries))
    if len(entries) < stream.frames or (name == "avi" and len(complete) != stream.frames):
        return None
    usable = [(e.is_keyframe, e.is_discard) for e in complete if e.size > 0]
    first = next((i for i, (key, _) in enumerate(usable) if key), 0)
    return sum(not discarded for _, discarded in usable[first:]) or None


def _scan(container: InputContainer, stream: VideoStream, to_end: bool) -> tuple[_FrameFormat, list[_Row]]:
    """Decode up to the first frame, and list the packets: all of them or those up to there. Raises BadImage."""
    av = import_optional("av", "video", "Reading video files")
    frame_format: _FrameFormat | None = None
    rows: list[_Row] = []
    problem = ""
    for packet in iterate_packets(container, stream):
        _note(packet, rows)
        if frame_format is None:
            try:
                frame_format = next((_detect_format(frame, stream) for frame in _soonest(stream, packet)), None)
            except av.FFmpegError as cause:
                problem = describe_error(cause)
        if frame_format is not None and not to_end:
            break
    if frame_format is None:
        raise BadImage("truncated", problem or "no frame can be decoded")
    return frame_format, rows


def _soonest(stream: VideoStream, packet: Packet) -> list[VideoFrame]:
    """Frames of a packet. A key frame is asked for at once: decoders wait for later packets to put frames in order."""
    frames = stream.decode(packet)
    if frames or not packet.is_keyframe:
        return frames
    try:
        frames = stream.decode(None)
    finally:
        stream.codec_context.flush_buffers()  # else it takes no further packets
    return frames or stream.decode(packet)


def _rows(container: InputContainer, stream: VideoStream, limit: int | None = None) -> list[_Row]:
    """The packets from the start of the file on, about `most`. The container must not have been read yet."""
    rows: list[_Row] = []
    for packet in iterate_packets(container, stream):
        _note(packet, rows)
        if limit is not None and len(rows) >= limit:
            break
    return rows


def _note(packet: Packet, rows: list[_Row]) -> None:
    """List a packet that becomes a frame. What stands before the first key frame cannot be decoded and is none."""
    if not packet.size or packet.is_discard:
        return
    if packet.is_keyframe and rows and not rows[0].key:
        rows.clear()
    rows.append(_Row(packet.pts, packet.dts, packet.is_keyframe))


def _stamps(rows: Sequence[_Row]) -> list[int] | None:
    """Presentation times in the order they are shown, or None where they are not certain."""
    stamps = sorted(row.pts for row in rows if row.pts is not None)
    return stamps if len(stamps) == len(rows) == len(set(stamps)) else None


def _display_times(rows: Sequence[_Row], time_base: float, rate: float) -> np.ndarray:
    """Seconds after the first frame; by decoding times or by the rate where presentation times are missing."""
    for stamps in ([row.pts for row in rows], [row.dts for row in rows]):
        timed = [stamp for stamp in stamps if stamp is not None]
        if len(timed) == len(rows) and time_base > 0:
            seconds = np.sort(np.asarray(timed, np.float64)) * time_base
            return seconds - seconds[:1].sum()
    return np.arange(len(rows)) / rate


def _pace(rows: Sequence[_Row], time_base: float, nominal: float) -> tuple[float, float]:
    """Frames a second and seconds, from time stamps; the container's rate where it agrees within half a percent."""
    display_times = _display_times(rows, time_base, nominal or 25.0)
    if len(display_times) < 2 or display_times[-1] <= 0:
        fps = nominal or 25.0
        return fps, len(display_times) / fps
    measured = (len(display_times) - 1) / float(display_times[-1])
    fps = nominal if nominal and abs(measured / nominal - 1) < 0.005 else measured
    return fps, float(display_times[-1]) + 1 / fps


def _detect_format(frame: VideoFrame, stream: VideoStream) -> _FrameFormat:
    """From a decoded frame and what the stream says of its pixels. Raises BadImage."""
    across, down, swapped = False, False, False
    side_data = cast("Iterable[SideData]", frame.side_data)  # whose stub is that of a mapping by name
    matrix = next((d for d in side_data if d.type.name == "DISPLAYMATRIX"), None)
    if matrix is not None:
        # x' = a x + c y, y' = b x + d y in 16.16 fixed point, stored row by row as a b u, c d v, x y w
        a, b, _, c, d = np.frombuffer(bytes(matrix), "<i4")[:5].tolist()
        swapped = abs(b) + abs(c) > abs(a) + abs(d)
        across, down = (c < 0, b < 0) if swapped else (a < 0, d < 0)
    width, height = _square(frame.width, frame.height, stream.sample_aspect_ratio)
    display_size = (height, width) if swapped else (width, height)
    _validate_bounds(*display_size)
    return _FrameFormat((frame.width, frame.height), swapped, (across, down), display_size)


def _square(width: int, height: int, aspect: Fraction | None) -> Size:
    """The size in square pixels for pixels of `aspect` (width over height). Absurd aspects count as 1."""
    if not aspect or not 1 / 16 <= aspect <= 16:
        return width, height
    return (round(width * aspect), height) if aspect >= 1 else (width, round(height / aspect))


# --- its frames -------------------------------------------------------------------------------------------------------


def read_frames(source: Source, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """The frames with these numbers (ascending, may repeat): uint8 (F, H, W, 3), upright, RGB. Raises BadImage.

    Damaged parts of a file are no problem as long as the wanted frames do not depend on them.
    """

    def fit(pixels: np.ndarray, display_size: Size) -> np.ndarray:
        if pixels.shape[1::-1] == display_size:
            return pixels
        return np.asarray(Image.fromarray(pixels).resize(display_size, Image.Resampling.LANCZOS))

    return _gather(source, indices, fit)


def prepare_clip(
    source: Source, indices: Sequence[int] | np.ndarray, sizes: Sizes, crop: tuple[int, int]
) -> np.ndarray:
    """The frames with these numbers at the target size: uint8 (F, H, W, 3), resized (Lanczos), cropped at (top, left).

    Each frame is resized as soon as it is decoded, so besides the result only one frame is held at full size. Raises
    BadImage, also when the clip is not of the size that was planned for.
    """

    def fit(pixels: np.ndarray, display_size: Size) -> np.ndarray:
        if display_size != tuple(sizes.original):
            raise BadImage(
                "size differs",
                f"the clip is {display_size[0]}x{display_size[1]}, the index says "
                f"{sizes.original[0]}x{sizes.original[1]}",
            )
        return images.resize_and_crop(Image.fromarray(pixels), sizes, crop)

    return _gather(source, indices, fit)


def _gather(
    source: Source, indices: Sequence[int] | np.ndarray, fit: Callable[[np.ndarray, Size], np.ndarray]
) -> np.ndarray:
    """Every wanted frame, made by `fit` from the decoded image and the size it has to be seen at."""
    numbers = np.asarray(indices, np.int64)
    if not len(numbers) or numbers[0] < 0 or (np.diff(numbers) < 0).any():
        raise ValueError("frame numbers must be one or more, 0 or above and ascending")
    out: np.ndarray | None = None
    read = _folder_frames if _is_folder(source) else _frames
    for number, pixels, display_size in read(source, np.unique(numbers).tolist()):
        fitted = fit(pixels, display_size)
        if out is None:
            out = np.empty((len(numbers), *fitted.shape), np.uint8)
        out[numbers == number] = fitted
    assert out is not None
    return out


_Frames = Iterator[tuple[int, np.ndarray, "Size"]]
"""Frame number, the image upright but not stretched yet, and the size in square pixels that it has to be seen at."""


def _frames(source: Source, numbers: list[int]) -> _Frames:
    """Wanted frames in order, by the cheapest way that works; a frame may come twice when a way fails midway."""
    ways = [_by_number, _by_stamp] if numbers[0] < FAR else [_from_key_frame, _by_number, _by_stamp]
    trouble: _Trouble | None = None
    for decode in ways:
        try:
            yield from decode(source, numbers)
            return
        except _Trouble as cause:
            trouble = trouble if cause.reason == "unknown" else cause
            if cause.reason == "truncated":
                break
    assert trouble is not None
    raise BadImage(trouble.reason, trouble.detail)


def _by_number(source: Source, numbers: list[int]) -> _Frames:
    """Decode from the start and count."""
    with open_container(source, "video") as container:
        stream = _video(container)
        left, frame_format = iter(numbers), None
        target = next(left)
        for number, (frame, clean) in enumerate(_decode(container, stream)):
            frame_format = frame_format or _detect_format(frame, stream)
            if not clean:  # frames may be missing, and counting is no longer certain
                raise _Trouble("damaged", f"frame {number} or one before it")
            if number == target:
                yield number, frame_format.upright(frame), frame_format.display_size
                following = next(left, None)
                if following is None:
                    return
                target = following
    count = 0 if frame_format is None else number + 1
    raise _Trouble("truncated", f"frame {target} is wanted and the clip ends after {count}")


def _by_stamp(source: Source, numbers: list[int], near: bool = False) -> _Frames:
    """Look up the time stamps of the wanted frames and decode until all have been seen; `near`: from a key frame on."""
    with open_container(source, "video") as container:
        rows = _rows(container, _video(container), numbers[-1] + 1 + _REORDER)
    stamps = _stamps(rows)
    if stamps is None or len(stamps) <= numbers[-1]:
        raise _Trouble("unknown", "its frames have no certain time stamps")
    number_at = {stamps[number]: number for number in numbers}
    first, last = stamps[numbers[0]], stamps[numbers[-1]]
    with open_container(source, "video") as container:
        stream = _video(container)
        if near:
            _seek(container, stream, rows, first)
        frame_format = None
        for frame, clean in _decode(container, stream, latest=first if near else None):
            frame_format = frame_format or _detect_format(frame, stream)
            if frame.pts in number_at:
                number = number_at.pop(frame.pts)
                if not clean:
                    raise _Trouble("damaged", f"frame {number}, or one that it is made from, cannot be decoded")
                yield number, frame_format.upright(frame), frame_format.display_size
            if not number_at or (frame.pts is not None and frame.pts > last):
                break
    if number_at:
        raise _Trouble("damaged", f"frame {min(number_at.values())} cannot be decoded")


def _from_key_frame(source: Source, numbers: list[int]) -> _Frames:
    """Decode from the last key frame at or before the first wanted frame."""
    return _by_stamp(source, numbers, near=True)


def _seek(container: InputContainer, stream: VideoStream, rows: Sequence[_Row], first: int) -> None:
    """Go to a key frame from which the frame with stamp `first` can be decoded, or where there is none, stay."""
    av = import_optional("av", "video", "Reading video files")
    family = container.format.name.split(",")[0]
    if family not in (*_BY_DISPLAY_TIME, *_BY_DECODE_TIME):
        raise _Trouble("unknown", f"time stamps of {family} files are not certain after a jump")
    before = [row for row in rows if row.key and row.pts is not None and row.pts <= first]
    key = max(before, key=lambda row: row.pts or 0, default=None)
    if key is None or key is rows[0]:
        return
    stamp = key.pts if family in _BY_DISPLAY_TIME or key.dts is None else key.dts
    try:
        container.seek(stamp or 0, stream=stream, backward=True)
    except av.FFmpegError as cause:
        raise _Trouble("unknown", describe_error(cause)) from cause


def _decode(
    container: InputContainer, stream: VideoStream, latest: int | None = None
) -> Iterator[tuple[VideoFrame, bool]]:
    """Frames in the order they are shown, and whether each is whole: undamaged, as are those it may be made from.

    The first packet must be shown at `latest` or before: after a jump too far, frames would be made from missing ones.
    """
    av = import_optional("av", "video", "Reading video files")
    clean = True
    for packet in iterate_packets(container, stream):
        if latest is not None and packet.size:
            if packet.pts is None or packet.pts > latest:
                raise _Trouble("unknown", "the file cannot be entered where it says")
            latest = None
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            clean = False
            continue
        for frame in frames:
            clean = not frame.is_corrupt and (clean or bool(frame.key_frame))
            yield frame, clean


# --- folders of images ----------------------------------------------------------------------------------------------


def _is_folder(source: Source) -> bool:
    return isinstance(source, (str, Path)) and Path(source).is_dir()


def _list_images(folder: Path) -> list[Path]:
    """The images of a folder; numbers in their names count as numbers, so 10 comes after 9. Raises BadImage."""

    def key(path: Path) -> list[tuple[int, int, str]]:
        parts = re.split(r"([0-9]+)", path.name)
        return [(1, int(part), part) if i % 2 else (0, 0, part) for i, part in enumerate(parts)]

    try:
        paths = [p for p in folder.iterdir() if p.suffix.lower() in images.EXTENSIONS and not p.name.startswith(".")]
    except PermissionError as cause:
        raise BadImage("unreadable", str(cause)) from cause
    if not paths:
        raise BadImage("not a video", f"the folder {folder.name} holds no pictures")
    return sorted(paths, key=key)


def _probe_folder(folder: Path) -> Clip:
    files = _list_images(folder)
    size = images.read_size(files[0])
    for path in files[1:]:
        _validate_same_size(images.read_size(path), size, path)
    return Clip(*size, len(files), 0.0, 0.0)


def _validate_same_size(size: Size, first: Size, path: Path) -> None:
    if size != first:
        raise BadImage(
            "size differs", f"{path.name} is {size[0]}x{size[1]}, the folder's first picture {first[0]}x{first[1]}"
        )


def _folder_frames(source: Source, numbers: list[int]) -> _Frames:
    files = _list_images(Path(source))  # type: ignore[arg-type]
    if numbers[-1] >= len(files):
        raise BadImage("truncated", f"frame {numbers[-1]} is wanted and the folder holds {len(files)} pictures")
    first: Size | None = None
    for number in numbers:
        try:
            data = files[number].read_bytes()
        except FileNotFoundError as cause:
            raise BadImage("vanished", files[number].name) from cause
        except OSError as cause:
            raise BadImage("unreadable", describe_error(cause)) from cause
        image = images.load_rgb(data)
        first = first or image.size
        _validate_same_size(image.size, first, files[number])
        yield number, np.asarray(image), image.size


# --- writing ----------------------------------------------------------------------------------------------------------


def write_mp4(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    *,
    audio: tuple[np.ndarray, int] | None = None,
    quality: int = 18,
) -> None:
    """Write uint8 (F, H, W, 3) as H.264 with 4:2:0 colors (BT.709), which every browser plays; atomically.

    `audio` is (float32 (channels, samples) in -1..1, samples a second), with one or two channels, stored as AAC.
    `quality` is x264's rate factor: 0 best, 51 worst. Raises ValueError for odd edges, which 4:2:0 cannot hold.
    """
    av = import_optional("av", "video", "Writing video files")
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"a video is written from uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    if width % 2 or height % 2:
        raise ValueError(
            f"a video of {width}x{height} pixels cannot be written: H.264 with 4:2:0 colours needs even edges; "
            f"crop it to {width - width % 2}x{height - height % 2}"
        )
    with write_atomically(Path(path)) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(quality)}
        bt709 = av.video.reformatter.Colorspace.ITU709
        for name in ("colorspace", "color_primaries", "color_trc"):
            setattr(stream.codec_context, name, int(bt709))
        sound = None if audio is None else _add_audio(av, container, *audio)
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=bt709)))
        container.mux(stream.encode(None))
        if sound is not None:
            container.mux(itertools.chain.from_iterable(sound))


def _add_audio(av: ModuleType, container: OutputContainer, samples: np.ndarray, rate: int) -> Iterator[list[Packet]]:
    """A audio track; the packets follow when they are asked for."""
    if samples.ndim != 2 or samples.shape[0] not in (1, 2):
        raise ValueError(f"a sound track is written from float32 (1 or 2, samples), not {samples.shape}")
    layout = "mono" if samples.shape[0] == 1 else "stereo"
    stream = container.add_stream("aac", rate=rate, layout=layout)

    def encode() -> Iterator[list[Packet]]:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        yield stream.encode(frame)
        yield stream.encode(None)

    return encode()
