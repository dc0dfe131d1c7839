"""What is about to be trained on, in words and as a dict."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from darkroom.data.batches.order import Lengths
from darkroom.data.mask_check import describe_useless_masks
from darkroom.data.planned import PlannedDataset
from darkroom.media.images import INSTALL, READERS, Traits

MAX_BUCKETS = 40
"""More buckets than this are summed up in one line."""

EXAMPLES = 5
"""Files that a warning names."""


def table(datasets: Sequence[PlannedDataset], lengths: Lengths) -> str:
    """Datasets, their buckets, what is left out and why, and how long an epoch is."""
    lines: list[str] = []
    for d in datasets:
        lines += _dataset(d, lengths.by_dataset.get(d.id))
    lines.append(
        f"One epoch: {lengths.batches_per_epoch} batches per process, {lengths.steps_per_epoch} optimizer steps."
    )
    return "\n".join(lines)


def _dataset(d: PlannedDataset, batches: int | None) -> list[str]:
    e = d.entry
    noun = "clips" if e.dataset_type == "video" else "pictures"
    role = (
        "held out"
        if e.dataset_type == "eval"
        else f"repeats {e.repeats}, probability {e.probability:g}, batch {e.train_batch_size}"
    )
    length = f", {batches} batches" if batches is not None else ""
    head = f"{d.id}: {d.buckets.count} {noun} in {len(d.buckets.buckets)} buckets ({role}{length})"
    rows = [f"  {b.key:>8}  {b.target[0]:>5} x {b.target[1]:<5} {len(b):>8}" for b in d.buckets.buckets[:MAX_BUCKETS]]
    hidden_buckets = d.buckets.buckets[MAX_BUCKETS:]
    if hidden_buckets:
        rows.append(f"  and {len(hidden_buckets)} more buckets with {sum(map(len, hidden_buckets))} pictures")
    left = [f"  left out: {count} {reason}" for reason, count in sorted(d.drop_counts.items())]
    lines = [f"  color profiles: {count} {noun}" for noun, count in d.colors.items() if count]
    if animated := len(d.rows_with(Traits.ANIMATED)):
        lines.append(f"  animated: {animated}, of which only the first frame is used")
    if d.index.leaving:
        lines.append(f"  links out of the folder: {len(d.index.leaving)}, for example {d.index.leaving[0]}")
    conditioning = [
        f"  with {c.entry.id}: {c.role}, {c.entry.conditioning_type}, for {int(c.present.sum())} of them"
        for c in d.conditioning
    ]
    return [head, *conditioning, f"  {'aspect':>8}  {'target':>13} {noun:>8}", *rows, *left, *lines]


def as_dict(datasets: Sequence[PlannedDataset], lengths: Lengths, seed: int) -> dict[str, object]:
    """The same facts as the table."""
    return {
        "datasets": [
            {
                "id": d.id,
                "type": d.entry.dataset_type,
                "folder": d.index.store.name,
                "pictures": d.buckets.count,
                "listed": len(d.index),
                "opened": d.index.opened,
                "left_out": d.drop_counts,
                "color_profiles": d.colors,
                "animated": len(d.rows_with(Traits.ANIMATED)),
                "links_out": len(d.index.leaving),
                "repeats": d.entry.repeats,
                "probability": d.entry.probability,
                "batch_size": d.entry.train_batch_size,
                "batches": lengths.by_dataset.get(d.id, 0),
                "companions": [
                    {"id": c.entry.id, "role": c.role, "there": int(c.present.sum())} for c in d.conditioning
                ],
                "buckets": [
                    {"aspect": b.key, "target": list(b.target), "frames": b.frames, "pictures": len(b)}
                    for b in d.buckets.buckets
                ],
            }
            for d in datasets
        ],
        "batches_per_epoch": lengths.batches_per_epoch,
        "steps_per_epoch": lengths.steps_per_epoch,
        "seed": seed,
    }


def describe_unused(d: PlannedDataset) -> Iterator[str]:
    """One sentence about everything that is not used, with some names and what installs a missing reader, if any is."""
    if not d.drop_counts:
        return
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(d.drop_counts.items()))
    names = [f"{path} ({reason})" for path, reason in itertools.islice(d.index.iterate_dropped(), EXAMPLES)]
    lacking = [reader for reader in READERS if reader.missing in d.drop_counts]
    yield (
        f"Dataset '{d.id}': not used: {counts}."
        + (f" For example {'; '.join(names)}." if names else "")
        + (f" Install what is missing with: {INSTALL}" if lacking else "")
    )


def describe_surprises(d: PlannedDataset) -> Iterator[tuple[str, str]]:
    """Dataset and sentence about what is used and may not be what was meant."""
    if len(rows := d.rows_with(Traits.ANIMATED)):
        examples = "; ".join(d.index.path(int(row)) for row in rows[:EXAMPLES])
        yield (
            d.id,
            f"Dataset '{d.id}': {len(rows)} of its images are animated or have several pages; only the first "
            f"frame of each is used. For example {examples}.",
        )
    for about, index in ((d.id, d.index), *((c.entry.id, c.index) for c in d.conditioning)):
        if index.leaving:
            yield (
                about,
                f"Dataset '{about}': {len(index.leaving)} symbolic links lead out of its folder, and what is there "
                f"is used. For example {'; '.join(index.leaving[:EXAMPLES])}.",
            )
    for c in d.conditioning:
        for sentence in describe_useless_masks(d.index, c) if c.role == "mask" else ():
            yield c.entry.id, sentence
