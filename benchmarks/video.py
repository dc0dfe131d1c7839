"""How fast clips are read: ours (probe and chosen frames) against a bare PyAV loop over the same frames, in one run.

    python benchmarks/video.py                        # clips written for the purpose, 640x360
    python benchmarks/video.py --size 1920x1080 --frames 49 --json result.json

Both hold the same uint8 frames in the end, which is checked. Rounds of the two take turns, and the fastest of each
counts: what else the machine does touches both and costs the fastest least. Peak memory is the highest resident size
so far, libraries included.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from darkroom.core.units import show_size
from darkroom.media.resize import Sizes
from darkroom.media.video import prepare_clip, probe, read_frames

KINDS = {
    "h264.mp4": ("libx264", {"preset": "veryfast", "bf": "3", "g": "48"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "48"}),
    "mpeg4.avi": ("mpeg4", {"g": "48", "q": "4"}),
}
LENGTH = 96
"""Frames of each clip, two groups of pictures."""


def peak() -> int:
    """Highest resident bytes so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_clips(folder: Path, width: int, height: int) -> list[Path]:
    """One clip of each kind: a view that moves over a picture of soft noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    whole = np.asarray(Image.fromarray(coarse).resize((width + LENGTH, height + LENGTH), Image.Resampling.BICUBIC))
    made = []
    for name, (codec, options) in KINDS.items():
        with av.open(str(folder / name), "w") as file:
            stream: Any = file.add_stream(codec, rate=24, options=dict(options))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for i in range(LENGTH):
                view = np.ascontiguousarray(whole[i : i + height, i : i + width])
                frame = av.VideoFrame.from_ndarray(view, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 24)
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        made.append(folder / name)
    return made


def bare(path: Path, start: int, count: int) -> np.ndarray:
    """What a person would write in a few lines: uint8 (F, H, W, 3)."""
    frames = []
    with av.open(str(path)) as file:
        for i, frame in enumerate(file.decode(video=0)):
            if i >= start:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == count:
                break
    return np.stack(frames)


def ours(path: Path, start: int, count: int) -> np.ndarray:
    """The same frames by our way, counted first."""
    assert probe(path).frames == LENGTH
    return read_frames(path, range(start, start + count))


def rounds(calls: list[Callable[[], object]], count: int) -> list[float]:
    """Fewest seconds of each call; they take turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(count):
        for call, noted in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            noted.append(time.perf_counter() - start)
    return [min(noted) for noted in seconds]


def measure(path: Path, frames: int, repeats: int) -> list[dict[str, Any]]:
    """Rows for the start of a clip and for a cut near its end."""
    rows = []
    for where, start in (("start", 0), ("end", LENGTH - frames)):
        assert np.array_equal(ours(path, start, frames), bare(path, start, frames))
        mine, theirs = rounds([lambda s=start: ours(path, s, frames), lambda s=start: bare(path, s, frames)], repeats)  # type: ignore[misc]
        rows.append({"clip": path.name, "where": where, "frames": frames, "ours": mine, "bare": theirs})
        print(
            f"{path.name:<10} {where:<6} {frames} frames: ours {mine:.3f} s, bare {theirs:.3f} s: {mine / theirs:.2f}"
        )
    probed = rounds([lambda: probe(path)], repeats)[0]
    clip = probe(path)
    small = Sizes((clip.width, clip.height), (320, 176), (320, 180), 1.82)
    prepared = rounds([lambda: prepare_clip(path, range(frames), small, (2, 0))], repeats)[0]
    rows.append({"clip": path.name, "probe": probed, "prepare": prepared})
    print(f"{path.name:<10} probe {probed * 1000:.1f} ms; {frames} frames to 320x176: {prepared:.3f} s")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="640x360", help="width x height of the clips, both even")
    parser.add_argument("--frames", type=int, default=25, help=f"frames read at a time, at most {LENGTH}")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        rows = [
            row
            for path in write_clips(Path(temporary), width, height)
            for row in measure(path, options.frames, options.repeats)
        ]
    timed = [row for row in rows if "ours" in row]
    mine, theirs = sum(row["ours"] for row in timed), sum(row["bare"] for row in timed)
    print(
        f"all: ours {mine:.3f} s, bare {theirs:.3f} s: {mine / theirs:.2f} times the bare loop; "
        f"peak {show_size(peak())}"
    )
    if options.json:
        result = {"size": options.size, "rows": rows, "ratio": mine / theirs, "peak": peak()}
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
