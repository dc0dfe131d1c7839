"""A page about the datasets of a run: read some samples closely, say what is worth saying, show it in images.

    report = gather(resolved, bus, limit=2000)
    dataset_page.write(path, report)

Nothing is changed on disk but the index files that a scan keeps. No weights are loaded; torch only by the tokenizers.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from darkroom import families
from darkroom.core.errors import DataError
from darkroom.core.events import Bus, Progress
from darkroom.core.log import redact
from darkroom.data.index.listing import is_clip
from darkroom.data.plan import DatasetPlan, scan_datasets
from darkroom.data.planned import PlannedDataset
from darkroom.families.base import Family
from darkroom.job.dataset_report import images as shown
from darkroom.job.dataset_report.captions import Reader, read_captions, readers, summary
from darkroom.job.dataset_report.examine import Album, candidates, choose, examine
from darkroom.job.dataset_report.findings import Case, between, findings
from darkroom.job.needs import build_data_requirements
from darkroom.options.datasets import SampleDataset, read_datasets
from darkroom.options.sources import Resolved
from darkroom.report.dataset_facts import DatasetReport, Sheet, many, number

if TYPE_CHECKING:
    from darkroom.options.config import Config

LIMIT = 2000
"""Images that are looked at closely, if nobody says otherwise: a minute or two."""

ROOM = 5 * 2**20
"""Bytes of thumbnails on the whole page; base64 makes a third more of it."""

ROLES = {
    "held": "measuring the loss, never trained on",
    "regularisation": "keeping what the model knows",
    "slider": "one end of a slider",
}
"""What a dataset is for, where that is not simply to be learned, by the first word of its role."""


def gather(resolved: Resolved, bus: Bus, limit: int = LIMIT) -> DatasetReport:
    """Everything the page shows. Raises UserError for settings, a dataset file or a storage that cannot be read."""
    config = resolved.config
    family = families.get(config.model_family, config.model_flavour)
    file = read_datasets(config.data_backend_config, config, os.environ, family.spec.fps)
    plan = scan_datasets(config, file, bus, build_data_requirements(family, config), lenient=True)
    tokenizers, error = readers(family, config)
    cases = [_examine_datasets(plan, d, tokenizers, bus, limit) for d in plan.datasets]
    across = between(cases)  # what is between datasets matters most, so it may take room for its images first
    sheets = [_sheet(case, error) for case in cases]
    lead, facts = _summary(plan, family, config, sheets)
    notes = [redact(text) for text in file.warnings]
    notes += [f"{name} is switched off in the dataset file and not looked at." for name in file.disabled]
    return DatasetReport(_title(sheets), lead, facts, sheets, across, notes)


def _examine_datasets(plan: DatasetPlan, d: PlannedDataset, tokenizers: list[Reader], bus: Bus, limit: int) -> Case:
    """One dataset, looked at closely."""

    def say(done: int, total: int) -> None:
        bus.emit(Progress(phase=f"look at {d.id}", done=done, total=total, unit=_noun(d) + "s"))

    total = len(candidates(d.index))
    samples = examine(d.index, choose(d.index, limit), say)
    album = Album(d.index, samples, ROOM // len(plan.datasets))
    return Case(plan, d, samples, album, read_captions(d, tokenizers), total)


def _noun(d: PlannedDataset) -> str:
    return "clip" if d.entry.dataset_type == "video" else "picture"


def _sheet(case: Case, error: str) -> Sheet:
    """One dataset of the page. Findings come first when room for images is short."""
    d = case.d
    findings_list = findings(case)
    pairs, further = shown.render_conditioning(case)
    gallery = shown.gallery(case)
    boxes, remaining = shown.shapes(case)
    batches = _batches(case)
    return Sheet(
        d.id,
        _role(d.entry),
        _headline(case, batches),
        redact(d.index.store.name),
        _facts(case, sum(box.filled for box in boxes)),
        _samples(case),
        _count_left_out(case),
        batches,
        gallery,
        sorted([*findings_list, *further], key=lambda noun: ("fix", "look", "know").index(noun.level)),
        boxes,
        remaining,
        summary(d, case.captions, error),
        shown.strips(case),
        pairs,
        _how_examined(case),
    )


def _unreadable(case: Case) -> list[str]:
    """Why samples that the scan took for good, since their headers are, cannot be used."""
    dropped = case.d.index.is_dropped
    return [noun.bad for noun in case.samples if noun.bad and dropped[noun.row] == 0]


def _samples(case: Case) -> int:
    return case.d.buckets.count - len(_unreadable(case))


def _count_left_out(case: Case) -> dict[str, int]:
    counts = Counter(case.d.drop_counts)
    counts.update(_unreadable(case))
    return dict(sorted(counts.items()))


def _batches(case: Case) -> int:
    with suppress(DataError):  # no dataset that can be drawn from
        return case.plan.lengths.by_dataset.get(case.d.id, 0)
    return 0


def _role(entry: SampleDataset) -> str:
    """What it is for, in a word or two."""
    if entry.dataset_type == "eval":
        return "held out"
    if entry.is_regularisation_data:
        return "regularisation"
    if entry.slider_strength:
        return f"slider {entry.slider_strength:+g}"
    return "training"


def _headline(case: Case, batches: int) -> str:
    """`412 pictures, 9 left out, 6 shapes, 1 240 batches per epoch`."""
    d = case.d
    parts = [many(_samples(case), "sample" if _has_parts(d) else case.noun)]
    if _has_parts(d):
        parts[0] += f" from {many(len(candidates(d.index)), 'clip')}"
    left = sum(_count_left_out(case).values())
    parts += [f"{number(left)} left out"] if left else []
    parts.append(many(len(d.buckets.buckets), "shape"))
    parts.append(f"{many(batches, 'batch')} per epoch" if d.entry.is_training else "held out, read one by one")
    return ", ".join(parts)


def _has_parts(d: PlannedDataset) -> bool:
    return bool((d.index.numbers["part"] > 0).any())


def _facts(case: Case, filled: int) -> list[tuple[str, str]]:
    """What a person wants to check of the entry."""
    e = case.d.entry
    unit = {"pixel": "shorter edge", "area": "megapixels", "pixel_area": "area of a square"}[e.resolution_type]
    crop = f"{e.crop_aspect}, {e.crop_style}" if e.crop else "only to whole steps of the model"
    rows = [("For", facts)] if (facts := ROLES.get(_role(e).split()[0], "")) else []
    rows += [("Resolution", f"{e.resolution:g} ({unit})"), ("Crop", crop)]
    if e.is_training:
        rows += [
            ("Batch", number(e.train_batch_size)),
            ("Seen per epoch", "once" if e.repeats == 0 else f"{number(e.repeats + 1)} times"),
        ]
        rows += [("Weight in the mixture", f"{e.probability:g}")] if e.probability != 1 else []
    rows += [("Repeated to fill last batches", number(filled))] if filled else []
    rates = sorted({f"{fps:.4g}" for fps in case.d.index.numbers["fps"][case.once].tolist() if fps}, key=float)
    if e.video is not None and rates:
        stored = rates[0] if len(rates) == 1 else f"{rates[0]} to {rates[-1]}"
        rows.append(("Frames a second", f"{stored} → {e.video.fps:g}" if e.video.fps else stored))
    return rows


def _how_examined(case: Case) -> str:
    """How much was looked at."""
    if not case.total:
        return ""
    noun = "clip" if is_clip(case.d.index.path(int(candidates(case.d.index)[0]))) else case.noun
    if len(case.samples) == case.total:
        return f"All {many(case.total, noun)} were opened and looked at closely."
    return (
        f"{number(len(case.samples))} of {many(case.total, noun)} were opened and looked at closely, evenly chosen; "
        "sizes, shapes and left-out files are about all of them. --limit looks at more."
    )


def _title(sheets: list[Sheet]) -> str:
    samples = sum(sheet.samples for sheet in sheets)
    nouns = {noun for sheet in sheets for noun in ("picture", "clip", "sample") if f" {noun}" in sheet.headline[:24]}
    return f"{many(samples, nouns.pop() if len(nouns) == 1 else 'sample')} in {many(len(sheets), 'dataset')}"


def _summary(
    plan: DatasetPlan, family: Family, config: Config, sheets: list[Sheet]
) -> tuple[str, list[tuple[str, str]]]:
    """A sentence about the run, and a few numbers."""
    flavour = f" {config.model_flavour}" if config.model_flavour else ""
    batches = steps = 0
    with suppress(DataError):
        batches, steps = plan.lengths.batches_per_epoch, plan.lengths.steps_per_epoch
    facts = [
        ("samples", number(sum(sheet.samples for sheet in sheets))),
        ("left out", number(sum(sum(sheet.left_out.values()) for sheet in sheets))),
        ("batches per epoch", number(batches)),
    ]
    facts += [("optimizer steps per epoch", number(steps))] if steps != batches else []
    return f"What {family.title}{flavour} would be taught, as it would see it.", facts
