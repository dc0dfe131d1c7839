"""Sound: how long it is, and any stretch of it as numbers, from sound files and from the audio tracks of videos.

Second 0 is where the clip starts if there is one, else where the sound starts. Channels are mixed by weights that
cannot clip: one channel is the mean of left and right, and surround sound is first brought to left and right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from darkroom.core.optional import import_optional
from darkroom.media.containers import Source, describe_error, iterate_packets, open_container
from darkroom.media.images import BadImage

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

AUDIO_ENDINGS = frozenset(
    [".wav", ".wave", ".flac", ".mp3", ".m4a", ".mp4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".aiff", ".aif"]
)
"""Endings, in lower case, that are listed as sounds."""

SHORT = 0.1
"""Seconds that may be missing at the end and become silence: headers count whole blocks of a codec."""

_EXACT = ("pcm_", "flac", "alac")
"""Codecs whose blocks do not depend on earlier ones, so that decoding may start anywhere and give the same numbers."""

_PREROLL = 0.5
"""Seconds before the wanted start at which a jump aims; the resampler's filter has settled by then."""

_ROOT = 0.5**0.5
_LEFT_RIGHT = {
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (_ROOT, _ROOT),
    "FLC": (1.0, 0.0),
    "FRC": (0.0, 1.0),
    "BL": (_ROOT, 0.0),
    "BR": (0.0, _ROOT),
    "SL": (_ROOT, 0.0),
    "SR": (0.0, _ROOT),
    "BC": (0.5, 0.5),
    "DL": (1.0, 0.0),
    "DR": (0.0, 1.0),
}
"""What each loudspeaker gives to left and right (ITU-R BS.775); those not named here, such as LFE, give nothing."""


@dataclass(frozen=True)
class AudioFacts:
    """What is known of a sound without decoding it. `samples` are per channel at `rate`, and agree with `seconds`.

    For codecs that store blocks (MP3, AAC, Opus, Vorbis) the length may be off by a few blocks, less than `SHORT`.
    """

    seconds: float
    rate: int
    channels: int
    samples: int


def probe(source: Source) -> AudioFacts:
    """Length, rate and channels of the first audio track. Raises BadImage.

    Reasons: "empty file", "not a sound", "no audio stream", "truncated", "damaged", "vanished", "unreadable".
    """
    with open_container(source, "sound") as container:
        stream = _track(container)
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.layout.nb_channels
        if rate < 1 or channels < 1:
            raise BadImage("damaged", f"{channels} channels of {rate} samples a second")
        seconds = _seconds(container, stream)
        samples = round(seconds * rate)
        if samples < 1:
            raise BadImage("truncated", "no sound follows the header")
        return AudioFacts(samples / rate, rate, channels, samples)


def read_audio(
    source: Source, rate: int, channels: int, start: float, seconds: float, shorter: bool = False
) -> np.ndarray:
    """`seconds` of sound from second `start` on: float32 (channels, round(seconds * rate)) in -1..1. Raises BadImage.

    `channels` is 1, 2 or the number the file has; `rate` is in samples a second. Before a track that starts later than
    the clip there is silence. A stretch that ends after the sound does is "truncated", unless by less than `SHORT` or
    with `shorter`: then silence follows.
    """
    count, first = round(seconds * rate), round(start * rate)
    if rate < 1 or channels < 1 or count < 1 or first < 0:
        raise ValueError(
            f"sound is read at 1 or more samples a second, in 1 or more channels, from second 0 or later and for at "
            f"least one sample; not {rate}, {channels}, {start}, {seconds}"
        )
    with open_container(source, "sound") as container:
        stream = _track(container)
        out = np.zeros((channels, count), np.float32)
        reached, problem = 0, ""
        for at, block in _decode_blocks(container, stream, rate, channels, start):
            if isinstance(block, str):
                problem = problem or block
                continue
            begin, end = at - first, at - first + block.shape[1]
            if begin >= count:
                break
            if end > 0:
                out[:, max(0, begin) : end] = block[:, max(0, -begin) : count - begin]
                if problem:
                    raise BadImage("damaged", problem)
            reached = max(reached, min(end, count))
            if reached == count:
                break
        if reached < count - SHORT * rate:
            if problem:
                raise BadImage("damaged", problem)
            if not shorter:
                raise BadImage("truncated", f"it ends after {max(0, first + reached) / rate:.2f} s")
        return np.clip(out, -1.0, 1.0)


def _track(container: InputContainer) -> AudioStream:
    """The audio track marked as default, else the first. Raises BadImage."""
    av = import_optional("av", "video", "Reading sound files")
    streams = container.streams.audio
    if not streams:
        raise BadImage("no audio stream")
    stream = next((s for s in streams if s.disposition & av.stream.Disposition.default), streams[0])
    if stream.codec_context is None:
        raise BadImage("unreadable", "the installed FFmpeg has no decoder for it")
    return stream


def _seconds(container: InputContainer, stream: AudioStream) -> float:
    """Length of a track by its packets, which are read and not decoded. Where the header agrees, it is more exact."""
    spans: list[tuple[int | None, int]] = []
    for packet in iterate_packets(container, stream):
        if packet.size and not packet.is_discard:
            spans.append((packet.pts, packet.duration or 0))
    if not spans:
        raise BadImage("truncated", "no sound follows the header")
    unit, ticks = float(stream.time_base or 0), sum(duration for _, duration in spans)
    timed_spans = [(pts, pts + duration) for pts, duration in spans if pts is not None]
    if timed_spans:
        first = min(begin for begin, _ in timed_spans)
        length = max(end for _, end in timed_spans) - first
        if abs(length - ticks) <= 0.05 * ticks:  # else time stamps leap; the sound is read as unbroken all the same
            ticks = length
        # what comes before the start is the encoder's run-up and is not played
        ticks -= max(0, (stream.start_time or 0) - first)
    stated_length = float(stream.duration or 0) * unit
    return stated_length if ticks <= 0 or abs(stated_length - ticks * unit) < SHORT else ticks * unit


def _origin(container: InputContainer, stream: AudioStream) -> float:
    """Second 0: the start of the clip, or else of the sound."""
    av = import_optional("av", "video", "Reading sound files")
    video_streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    for track in (*video_streams[:1], stream):
        if track.start_time is not None and track.time_base:
            return max(0.0, float(track.start_time * track.time_base))
    return 0.0


def _decode_blocks(
    container: InputContainer, stream: AudioStream, rate: int, channels: int, start: float
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Pieces of the track: number of the first sample (second 0 is 0), and float32 (channels, n) or what is wrong.

    Only the first piece's time stamp counts; from there on the sound is taken as unbroken, as a player does.
    """
    av = import_optional("av", "video", "Reading sound files")
    origin = _origin(container, stream)
    jump = origin + start - _PREROLL
    if jump > _PREROLL and (stream.codec_context.name or "").startswith(_EXACT) and stream.time_base:
        container.seek(int(jump / stream.time_base), stream=stream, backward=True)
    resampler, matrix, at = None, None, 0
    names: tuple[str, ...] | None = None
    for packet in iterate_packets(container, stream):
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as cause:
            yield at, describe_error(cause)
            continue
        for frame in [*frames, *([] if packet.size else [None])]:
            if frame is not None and resampler is None:
                resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
                names = tuple(c.name for c in frame.layout.channels)
                matrix = mixing_matrix(names, channels)
                at = round((float(frame.time or 0.0) - origin) * rate) if frame.pts is not None else 0
            if resampler is None or matrix is None:
                continue
            if frame is not None and tuple(c.name for c in frame.layout.channels) != names:
                yield at, "the number of channels changes midway"
                return
            for resampled in resampler.resample(frame):
                block = matrix @ resampled.to_ndarray()
                yield at, block
                at += block.shape[1]


def mixing_matrix(names: Sequence[str], channels: int) -> np.ndarray:
    """Weights float32 (channels, len(names)) that mix loudspeakers `names` to `channels`. Raises BadImage.

    Rows sum to 1 at most, so what was within -1..1 stays there.
    """
    count = len(names)
    if channels == count:
        return np.eye(count, dtype=np.float32)
    if count == 1:
        return np.ones((channels, 1), np.float32)
    if channels > 2:
        raise BadImage("wrong channels", f"the sound has {count} and {channels} are asked for; 1 and 2 always work")
    weights = np.array([_LEFT_RIGHT.get(name, (0.0, 0.0)) for name in names], np.float64).T
    if not weights.any():
        weights = np.ones((2, count))
    weights /= weights.sum(1).max()
    return (weights if channels == 2 else weights.mean(0, keepdims=True)).astype(np.float32)
