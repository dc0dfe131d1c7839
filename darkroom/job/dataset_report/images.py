"""What the dataset page shows beside its findings: shapes, the frames of clips, and what goes with each sample."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from darkroom.data.index import generated
from darkroom.data.index.buckets import Bucket, schedule_buckets
from darkroom.data.index.clips import Clipping, frame_numbers
from darkroom.data.index.conditioning import ConditioningDataset
from darkroom.data.index.listing import is_clip
from darkroom.data.mask_check import inspect_masks, kind_of
from darkroom.job.dataset_report.examine import Album, as_trained, evenly, source_of, thumbnail, to_image
from darkroom.job.dataset_report.findings import Case, size_of
from darkroom.media import video
from darkroom.media.images import BadImage
from darkroom.media.masks import loss_mask
from darkroom.report.dataset_facts import BucketFacts, ConditioningFacts, Finding, Moment, Strip, Tile, many, number
from darkroom.storage.base import Missing, Refused

GALLERY, PER_SHAPE, MAX_SHAPES = 10, 4, 24
STRIPS_PER_SHAPE, MAX_STRIPS, MOMENTS = 2, 12, 8
FILMED = (176, 112)
PAIRS = 6

TINT = np.array([214, 60, 60], np.float32)
"""Laid over the parts of an image that its mask leaves out."""


def gallery(case: Case) -> list[Tile]:
    """Some samples, evenly chosen, each over its caption."""
    index = case.d.index
    bad = [row_index.row for row_index in case.samples if row_index.bad]
    rows = evenly(np.setdiff1d(case.once, bad), GALLERY)
    return [case.album.tile(row, shorten(index.captions_of(int(row))), name=index.path(int(row))) for row in rows]


def shorten(captions: Sequence[str], letters: int = 90) -> str:
    """The first caption, cut to a few words."""
    text = next(iter(captions), "")
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"


# ---------------------------------------------------------------------- shapes


def shapes(case: Case) -> tuple[list[BucketFacts], str]:
    """The largest buckets and those that were left out, by aspect; and a sentence about the rest."""
    d = case.d
    effective = case.plan.scanner.effective_batch(d.entry, 1)
    dealt = (
        schedule_buckets(d.buckets, d.entry, effective, case.plan.config.allow_dataset_oversubscription)
        if d.entry.is_training
        else d.buckets.sizes
    )
    size = d.entry.train_batch_size if d.entry.is_training else 1
    rows = [
        (bucket, int(-(-n // size)), int(-(-n // size) * size - n), False)
        for bucket, n in zip(d.buckets.buckets, dealt.tolist(), strict=True)
    ]
    rows += [(bucket, 0, 0, True) for bucket in d.buckets.pruned]
    largest = sorted(sorted(rows, key=lambda row: -len(row[0]))[:MAX_SHAPES], key=lambda row: (row[3], *_order(row[0])))
    remaining = len(rows) - len(largest)
    further = ""
    if remaining:
        counts = sum(len(row[0]) for row in rows) - sum(len(row[0]) for row in largest)
        further = f"and {many(remaining, 'smaller shape')} with {many(counts, case.noun)} in all"
    return [_shape(case, *row) for row in largest], further


def _order(bucket: Bucket) -> tuple[object, ...]:
    return bucket.aspect, bucket.target, bucket.frames, int(bucket.rows[0])


def _shape(case: Case, bucket: Bucket, batches: int, filled: int, is_left_out: bool) -> BucketFacts:
    bad = [shape_row.row for shape_row in case.samples if shape_row.bad]
    rows = evenly(np.setdiff1d(bucket.rows, bad), PER_SHAPE)
    tiles = [case.album.tile(row, size_of(case, int(row)), framed=True) for row in rows]
    return BucketFacts(bucket.key, bucket.target, bucket.frames, len(bucket), batches, filled, is_left_out, tiles)


# ---------------------------------------------------------------------- clips


def strips(case: Case) -> list[Strip]:
    """For some samples of every bucket of clips: which frames of the file they are."""
    d = case.d
    clipping = Clipping(d.entry.video, case.plan.requirements) if d.entry.video is not None else None
    tiles: list[Strip] = []
    for bucket in d.buckets.buckets:
        rows = [int(row) for row in bucket.rows if is_clip(d.index.path(int(row)))]
        for row in evenly(np.array(rows, np.int64), STRIPS_PER_SHAPE).tolist() if rows else []:
            if len(tiles) < MAX_STRIPS and (strip := _strip(case, bucket, row, clipping)) is not None:
                tiles.append(strip)
    return tiles


def _strip(case: Case, bucket: Bucket, row: int, clipping: Clipping | None) -> Strip | None:
    index, at = case.d.index, case.d.index.numbers
    fps = float(at["fps"][row])
    try:
        with source_of(index, row) as source:
            seconds = video.times(source)
        frames = frame_numbers(clipping, seconds, int(at["start"][row]), int(at["count"][row]), fps)
        some = frames[np.unique(np.linspace(0, len(frames) - 1, MOMENTS).round().astype(int))]
        with source_of(index, row) as source:
            images = video.read_frames(source, some)
    except (BadImage, Missing, Refused):
        return None
    sizes, crop = index.sizes(row), index.crop(row)
    moments = []
    for number_, pixels in zip(some.tolist(), images, strict=True):
        small = thumbnail(as_trained(Image.fromarray(pixels), sizes, crop), FILMED)[0]
        moments.append(Moment(number_, round(float(seconds[number_]), 3), case.album.spend(small)))
    note = f"{many(len(frames), 'frame')} of {number(int(at['frames'][row]))}, stored at {fps:.4g} a second"
    if clipping is not None and clipping.block.fps:
        note += f", taken at {clipping.block.fps:.4g}"
    shape = f"{bucket.target[0]} × {bucket.target[1]}, {many(bucket.frames, 'frame')}"
    return Strip(index.path(row), shape, note, runs(frames.tolist()), moments)


def runs(frames: Sequence[int]) -> str:
    """Frame numbers in words: `0 to 32`, `0 to 64, every 2nd`, or all of them where no rule fits."""
    steps = {b - a for a, b in itertools.pairwise(frames)}
    if len(frames) == 1:
        return str(frames[0])
    if len(steps) == 1 and (step := steps.pop()) > 0:
        every = {1: "", 2: ", every 2nd", 3: ", every 3rd"}.get(step, f", every {step}th")
        return f"{frames[0]} to {frames[-1]}{every}"
    return ", ".join(map(str, frames))


# ---------------------------------------------------------------------- beside the samples


def render_conditioning(case: Case) -> tuple[list[ConditioningFacts], list[Finding]]:
    """Conditioning datasets, some pairs of each, and what is wrong with them."""
    sections, pairs = [], []
    for c in case.d.conditioning:
        tiles, problems = _render_one(case, c)
        sections.append(tiles)
        pairs += problems
    return sections, pairs


def _render_one(case: Case, c: ConditioningDataset) -> tuple[ConditioningFacts, list[Finding]]:
    d = case.d
    rows = case.once[c.present[case.once]]
    waiting = set(generated.missing(d.index, c.entry)) if c.entry.generator else set()
    rows = rows[[int(row) not in waiting for row in rows]] if waiting else rows
    missing = np.flatnonzero(~c.present & (d.index.numbers["bad"] == 0) & (d.index.numbers["part"] == 0))
    label = {"mask": "masks for the loss", "control": "control pictures", "reference": "reference pictures"}[c.role]
    note = f"{number(len(waiting))} are still to be generated" if waiting else ""
    pairs = [pair for row in evenly(rows, PAIRS) if (pair := _pair(case, c, int(row)))]
    tiles = ConditioningFacts(
        c.entry.id, f"{label} ({c.entry.conditioning_type})", len(rows), len(case.once), note, pairs
    )
    match = []
    if len(missing) and c.entry.optional:
        match.append(
            case.find(
                "companion_absent", "know", missing, f"{many(len(missing), case.noun)} without one in '{c.entry.id}'",
                "It may be left out, so they are trained on without.",
            )
        )  # fmt: skip
    match += _other_shapes(case, c, rows)
    if c.role == "mask":
        match += _useless_masks(case, c) if not waiting else []
    return tiles, match


def _pair(case: Case, c: ConditioningDataset, row: int) -> list[Tile]:
    """A sample as it is trained on, its companion, and for a mask the sample with the ignored parts tinted."""
    d = case.d
    try:
        sample = as_trained(to_image(d.index, row), d.index.sizes(row), d.index.crop(row))
        other = as_trained(to_image(c.index, row), c.index.sizes(row), c.index.crop(row))
    except (BadImage, Missing, Refused):
        return []
    tiles = [
        _tile(case.album, sample, d.index.path(row), "as trained on"),
        _tile(case.album, other, c.index.path(row), c.role),
    ]
    if c.role == "mask":
        weight = loss_mask(np.asarray(other), kind_of(c), sample.height, sample.width)[..., None]
        pixels = np.asarray(sample, np.float32)
        tinted = pixels * weight + (0.45 * pixels + 0.55 * TINT) * (1 - weight)
        overlaid = Image.fromarray(tinted.round().astype(np.uint8))
        tiles.append(
            _tile(case.album, overlaid, d.index.path(row), f"counts: {100 * float(weight.mean()):.0f} % of it")
        )
    return tiles


def _tile(album: Album, image: Image.Image, name: str, note: str) -> Tile:
    small, size = thumbnail(image)
    return Tile(name, note, album.spend(small), size)


def _other_shapes(case: Case, c: ConditioningDataset, rows: np.ndarray) -> list[Finding]:
    """Aligned companions that have to be stretched."""
    if not c.entry.is_aligned or not len(rows):
        return []
    sample_shapes, other = case.d.index.numbers, c.index.numbers
    aspect = sample_shapes["width"][rows] / np.maximum(sample_shapes["height"][rows], 1)
    other_shapes = other["width"][rows] / np.maximum(other["height"][rows], 1)
    off = rows[np.abs(other_shapes / aspect - 1) > 0.03]
    if not len(off):
        return []
    return [
        case.find(
            "companion_shape", "look", off,
            f"{many(len(off), case.noun)} whose picture in '{c.entry.id}' has another shape",
            "It is stretched to fit, so the two no longer lie on top of each other. Make it again at the same size.",
            lambda row: f"{size_of(case, row)}, and {other['width'][row]} × {other['height'][row]}",
        )
    ]  # fmt: skip


def _useless_masks(case: Case, c: ConditioningDataset) -> list[Finding]:
    """Masks that leave nothing to learn, or nothing out."""
    check = inspect_masks(case.d.index, c)
    masks = []
    for flaw, rows in check.rows.items():
        problem, remedy = check.words(c, flaw)
        title = f"{many(len(rows), 'mask')} of {number(check.looked_at)} looked at in '{c.entry.id}' {problem}"
        masks.append(case.find(f"mask_{flaw}", "fix", rows, title, remedy))
    return masks
