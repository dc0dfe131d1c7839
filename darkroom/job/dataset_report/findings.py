"""What is worth saying about a dataset: one function per kind of finding, in the order in which they are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from darkroom.core.errors import DataError
from darkroom.core.log import redact
from darkroom.core.units import THINNEST
from darkroom.data.index.buckets import validate_feasible
from darkroom.data.index.captions import source_name
from darkroom.data.index.listing import is_clip
from darkroom.data.index.table import DAMAGED, REASONS
from darkroom.data.plan import DatasetPlan
from darkroom.data.planned import PlannedDataset
from darkroom.job.dataset_report.captions import MARKUP, Captions, word_shares
from darkroom.job.dataset_report.examine import Album, DecodedSample, content_of
from darkroom.media import quality
from darkroom.media.images import INSTALL, READERS, Traits
from darkroom.report.dataset_facts import Finding, Level, Passage, Tile, many, number

ENLARGED, SHRUNK, CUT_OFF = 1.1, 2.0, 0.25
"""An image is enlarged by more than a tenth; keeps less than a quarter of its pixels; loses a quarter of its area."""

RATE_OFF = 0.05
"""Frame rates that differ by less are the same: 23.976 and 24, 29.97 and 30."""

NOT_INSTALLED = frozenset(reader.missing for reader in READERS)

MAX_NAMED = 1000
MAX_TILES, MAX_GROUPS, MAX_PASSAGES = 12, 6, 6

CAPTION_REASONS = {
    "missing caption": ("caption_missing", "no caption", "Write a text file of the same name beside each."),
    "empty caption": ("caption_empty", "an empty caption", "Write into the text file what the picture shows."),
    "caption is not UTF-8": (
        "caption_not_utf8",
        "a caption that is not UTF-8",
        "Save the text file as UTF-8; most editors offer it under 'save with encoding'.",
    ),
    "unreadable caption": ("caption_unreadable", "a caption that cannot be read", "Check the file's permissions."),
    "not in the table": (
        "caption_not_in_table",
        "no row in the table of captions",
        "Add the rows, or check filename_column and identifier_includes_extension.",
    ),
}
LIMIT_REASONS = {
    "resolution_filter": ("too_small", "smaller than minimum_image_size", "Lower it, or bring larger pictures."),
    "too thin": (
        "too_thin",
        f"one edge is more than {THINNEST} times the other",
        "Cut them to a shape that shows something.",
    ),
    "below_min_aspect_ratio": (
        "too_narrow",
        "narrower than minimum_aspect_ratio",
        "Lower it, or crop them to a wider shape.",
    ),
    "above_max_aspect_ratio": (
        "too_wide",
        "wider than maximum_aspect_ratio",
        "Raise it, or crop them to a narrower shape.",
    ),
    "too_short": (
        "too_short",
        "too short for the frames asked for",
        "Lower num_frames (or target_frames, min_frames) in the video block, or bring longer clips.",
    ),
    "too_long": ("too_long", "longer than max_frames", "Raise max_frames in the video block, or cut the clips."),
    "missing companion": (
        "missing_companion",
        "without a picture of the same name in a conditioning dataset",
        "Add the missing pictures, or move these out of the folder.",
    ),
}
"""Why a readable sample is left out: kind of finding, words for it, remedy."""


@dataclass(frozen=True)
class Case:
    """One dataset with everything that is known of it."""

    plan: DatasetPlan
    d: PlannedDataset
    samples: Sequence[DecodedSample]
    album: Album
    captions: Captions
    total: int  # samples that could be looked at

    @property
    def noun(self) -> str:
        """What it is made of."""
        return "clip" if self.d.entry.dataset_type == "video" else "picture"

    @property
    def once(self) -> np.ndarray:
        """(n,) rows that are used, a clip with several parts once."""
        rows = self.d.index.usable
        return rows[self.d.index.numbers["part"][rows] == 0]

    def paths(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The files of rows, each once, up to a bound."""
        return list(dict.fromkeys(self.d.index.path(int(row)) for row in rows[:MAX_NAMED]))

    def count_decoded(self) -> str:
        """How many were looked at, if not all."""
        return f" (of {number(len(self.samples))} looked at)" if len(self.samples) < self.total else ""

    def find(
        self,
        category: str,
        level: Level,
        rows: Sequence[int] | np.ndarray,
        title: str,
        remedy: str,
        note: Callable[[int], str] = lambda row: "",
        framed: bool = False,
    ) -> Finding:
        """A finding about rows, the worst first."""
        tiles = [self.album.tile(row, note(int(row)), framed=framed) for row in rows[:MAX_TILES]]
        return Finding(category, level, title, remedy, len(rows), self.paths(rows), [tiles] if tiles else [])

    def group(
        self,
        category: str,
        level: Level,
        groups: Sequence[Sequence[int]],
        title: str,
        remedy: str,
        note: Callable[[int], str],
    ) -> Finding:
        """A finding about rows that belong together; `count` counts the superfluous ones."""
        tiles = [[self.album.tile(row, note(row)) for row in group[:MAX_TILES]] for group in groups[:MAX_GROUPS]]
        rows = [row for group in groups for row in group]
        return Finding(category, level, title, remedy, sum(len(g) - 1 for g in groups), self.paths(rows), tiles)


def size_of(case: Case, row: int) -> str:
    """Width and height of the stored image."""
    at = case.d.index.numbers
    return f"{at['width'][row]} × {at['height'][row]}"


def rows_left_out(case: Case, reason: str) -> np.ndarray:
    """Rows that are not used for one reason."""
    return np.flatnonzero(case.d.index.is_dropped == REASONS.index(reason))


# ---------------------------------------------------------------------- files


def would_not_start(case: Case) -> Iterator[Finding]:
    """Too few samples for a batch, or none at all."""
    d = case.d
    if d.buckets.count == 0:
        left = "; ".join(f"{number(count)} {reason}" for reason, count in sorted(d.drop_counts.items()))
        sentence = f"Left out: {left}." if left else f"Nothing of that kind was found in {redact(d.index.store.name)}."
        yield Finding("nothing_usable", "fix", f"Nothing here can be used: a run would not start. {sentence}",
                      "Put right what is listed below, or point the entry to another folder.", 1)  # fmt: skip
        return
    try:
        validate_feasible(
            d.entry,
            d.buckets,
            ranks=1,
            accumulation=case.plan.config.gradient_accumulation_steps,
            oversubscribe=case.plan.config.allow_dataset_oversubscription,
        )
    except DataError as cause:
        first, *_, last = str(cause).splitlines()
        yield Finding("batch_not_filled", "fix", f"A run would not start. {first}", last.strip(), 1)


def find_deleted(case: Case) -> Iterator[Finding]:
    """What filling the caches would remove from the user's own folder."""
    results = {path: reason for name, path, reason in case.plan.to_delete() if name == case.d.id}
    if case.d.entry.delete_problematic_images and case.d.index.store.writable:
        results |= {case.d.index.path(advice.row): advice.bad for advice in case.samples if advice.bad in DAMAGED}
    if not results:
        return
    rows = [row for row, path in _list_names(case, results)]
    yield case.find(
        "deleted", "fix", rows, f"Training would delete {many(len(rows), 'file')} from this folder",
        "That is what delete_unwanted_images and delete_problematic_images ask for. Copy the files away, or set these "
        "to false: then they are only left out.",
        lambda row: results[case.d.index.path(row)],
    )  # fmt: skip


def _list_names(case: Case, paths: dict[str, str]) -> list[tuple[int, str]]:
    """(row, path) of paths, in order of rows, a clip once."""
    names = {path: row for row, path in reversed(list(enumerate(case.d.index.paths.to_pylist()))) if path in paths}
    return sorted((row, path) for path, row in names.items())


def find_broken(case: Case) -> Iterator[Finding]:
    """Files that cannot be read, by the scan or by the closer look."""
    index = case.d.index
    bad = {int(row): REASONS[index.numbers["bad"][row]] for row in np.flatnonzero(index.numbers["bad"])}
    bad |= {advice.row: advice.bad for advice in case.samples if advice.bad}
    lacking = {row: reason for row, reason in bad.items() if reason in NOT_INSTALLED}
    bad = {row: reason for row, reason in bad.items() if row not in lacking}
    if lacking:
        yield case.find(
            "reader_missing", "fix", sorted(lacking),
            f"{many(len(lacking), 'file')} cannot be read here: {', '.join(sorted(set(lacking.values())))}",
            f"Install what is missing with: {INSTALL}",
        )  # fmt: skip
    rows = sorted(row for row in bad if index.numbers["part"][row] == 0)
    if rows:
        categories = ", ".join(f"{number(n)} {reason}" for reason, n in sorted(Counter(bad[r] for r in rows).items()))
        yield case.find(
            "broken", "fix", rows, f"{many(len(rows), 'file')} cannot be read: {categories}",
            "Export or download them again, or take them away. Training leaves them out and goes on.",
            lambda row: bad[row],
        )  # fmt: skip
    if index.problems:
        description = ", ".join(f"{number(count)} {problem}" for problem, count in sorted(index.problems.items()))
        yield Finding("not_listed", "fix", f"Some of the folder could not be listed: {description}",
                      "Check permissions and links.", sum(index.problems.values()))  # fmt: skip
    if index.other_files:
        total = index.other_files.total()
        description = ", ".join(f"{number(count)} {reason}" for reason, count in sorted(index.other_files.items()))
        yield Finding("other_files", "look", f"{many(total, 'file')} {_is(total)} no "
                      f"sample: {description}", "Convert what you want to train on; the rest does no harm.",
                      total)  # fmt: skip
    if index.leaving:
        yield Finding("links_out", "look", f"{many(len(index.leaving), 'symbolic link')} "
                      f"{'leads' if len(index.leaving) == 1 else 'lead'} out of the folder",
                      "What is there is trained on. Take the links out if that is not meant.",
                      len(index.leaving), index.leaving[:MAX_NAMED])  # fmt: skip


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def headers(case: Case) -> Iterator[Finding]:
    """What headers say of images that are used: several frames, color profiles."""
    d = case.d
    if len(rows := d.rows_with(Traits.ANIMATED)):
        yield case.find(
            "animated", "look", rows,
            f"{many(len(rows), 'image')} {_is(len(rows))} animated or {'has' if len(rows) == 1 else 'have'} several "
            "pages",
            "Only the first frame of each is used. To train on movement, save them as clips.",
        )  # fmt: skip
    if len(rows := d.rows_with(Traits.PROFILE)):
        sentence = "converted to sRGB" if d.index.convert else "not converted to sRGB, as color_profiles says"
        yield case.find(
            "color_profile", "know", rows,
            f"{many(len(rows), 'image')} with a color profile {_is(len(rows))} {sentence}",
            "color_profiles decides: convert shows the model what a viewer shows, ignore takes the stored values.",
        )  # fmt: skip
    if len(rows := d.rows_with(Traits.ODD_PROFILE)):
        yield case.find(
            "color_profile_odd", "look", rows,
            f"{many(len(rows), 'image')} with a color profile that cannot be used",
            "It is damaged or made for other pixels, so the stored values are taken. Save these again as sRGB.",
        )  # fmt: skip


def without_caption(case: Case) -> Iterator[Finding]:
    """Samples that are left out for their caption."""
    for reason, (category, words, remedy) in CAPTION_REASONS.items():
        rows = rows_left_out(case, reason)
        if len(rows):
            title = f"{many(len(rows), case.noun)} with {words}: left out"
            yield case.find(category, "fix", rows, title, remedy)


def outside_limits(case: Case) -> Iterator[Finding]:
    """Samples that can be read and are left out all the same."""
    at = case.d.index.numbers
    for reason, (category, words, remedy) in LIMIT_REASONS.items():
        rows = rows_left_out(case, reason)
        if not len(rows):
            continue
        level: Level = "fix" if category == "missing_companion" else "look"
        sentence = (
            (lambda row: f"{at['frames'][row]} frames, {at['duration'][row]:.1f} s")
            if reason in ("too_short", "too_long")
            else (lambda row: size_of(case, row))
        )
        title = f"{many(len(rows), case.noun)} left out: {words}"
        yield case.find(category, level, rows, title, remedy, sentence)


def find_single_samples(case: Case) -> Iterator[Finding]:
    """Samples whose shape is too rare for a batch."""
    d = case.d
    rows = np.concatenate([b.rows for b in d.buckets.pruned]) if d.buckets.pruned else np.zeros(0, np.int64)
    if len(rows):
        title = (
            f"{many(len(rows), case.noun)} left out: {'its shape is' if len(rows) == 1 else 'their shapes are'} "
            f"too rare to fill a batch of {d.entry.train_batch_size}"
        )
        shapes = {int(row): f"{b.target[0]} × {b.target[1]}" for b in d.buckets.pruned for row in b.rows}
        yield case.find(
            "alone", "look", rows, title,
            "Lower train_batch_size, raise repeats, crop to a few shapes (crop_aspect square or closest), "
            "or bring more like them.",
            lambda row: f"{size_of(case, row)}, shape {shapes[row]}",
        )  # fmt: skip


# ---------------------------------------------------------------------- what the images show


def duplicates(case: Case) -> Iterator[Finding]:
    """The same bytes more than once, wherever in the dataset, and images that only look the same."""
    exact, is_all = same_bytes(case)
    if exact:
        extra = sum(len(group) - 1 for group in exact)
        yield case.group(
            "duplicate", "fix", exact,
            f"{'' if is_all else 'At least '}{many(extra, case.noun)} "
            f"{'is an exact copy' if extra == 1 else 'are exact copies'} of others",
            "Keep one of each. What should count more is better served by repeats than by copies.",
            lambda row: size_of(case, row),
        )  # fmt: skip
    copies = {row for group in exact for row in group[1:]}
    sharp = [noun for noun in case.samples if not noun.bad and noun.row not in copies and noun.contrast >= quality.FLAT]
    outlines = np.array([noun.outline for noun in sharp], np.uint64)
    near = quality.group_similar(
        outlines, np.array([noun.miniature for noun in sharp], np.uint8).reshape(-1, 16, 16, 3)
    )
    if near:
        extra = sum(len(group) - 1 for group in near)
        yield case.group(
            "near_duplicate", "look", [[sharp[i].row for i in group] for group in near],
            f"{many(extra, case.noun)} {'looks' if extra == 1 else 'look'} the same as another{case.count_decoded()}",
            "Saved twice, resized, or a burst of one moment? Keep the best: the model learns repeated ones by heart.",
            lambda row: size_of(case, row),
        )  # fmt: skip


def same_bytes(case: Case) -> tuple[list[list[int]], bool]:
    """Groups of rows of equal content, and whether those are all. Beyond the rows looked at only files of one size in
    bytes and pixels are read, no more of them than were looked at."""
    index = case.d.index
    at = index.numbers
    content = {noun.row: noun.content for noun in case.samples if noun.content}
    rows = np.flatnonzero((at["bad"] == 0) & (at["part"] == 0) & (at["size"] > 0))
    is_all = True
    if len(rows):
        facts = np.stack([at[name][rows].astype(np.int64) for name in ("size", "width", "height")], 1)
        _, which, counts = np.unique(facts, axis=0, return_inverse=True, return_counts=True)
        same_size_rows = [int(row) for row in rows[counts[which.reshape(-1)] > 1] if int(row) not in content]
        maximum = max(100, len(case.samples))
        is_all = len(same_size_rows) <= maximum
        for row in same_size_rows[:maximum]:
            content[row] = content_of(index, row)
    groups: dict[str, list[int]] = {}
    for row in sorted(content):
        if content[row]:
            groups.setdefault(content[row], []).append(row)
    return [group for group in groups.values() if len(group) > 1], is_all


def find_bad_quality(case: Case) -> Iterator[Finding]:
    """Blurred, empty and transparent images."""
    fine = [noun for noun in case.samples if not noun.bad]
    flat = [noun.row for noun in fine if noun.contrast < quality.FLAT]
    shows = [noun for noun in fine if noun.contrast >= quality.FLAT]
    scores = np.array([noun.sharpness for noun in shows])
    blurred = [shows[i] for i in np.flatnonzero(quality.soft(scores))]
    blurred.sort(key=lambda noun: (noun.sharpness, noun.row))
    if blurred:
        middle = float(np.median(scores))
        by = {noun.row: noun.sharpness for noun in blurred}
        yield case.find(
            "blurred", "look", [noun.row for noun in blurred],
            f"{many(len(blurred), case.noun)} {'is' if len(blurred) == 1 else 'are'} blurred{case.count_decoded()}",
            "Take them out unless the blur is what you want to teach: the model learns it as part of the subject.",
            lambda row: f"sharpness {by[row]:.0f}; the middle one has {number(round(middle))}",
        )  # fmt: skip
    if flat:
        yield case.find(
            "flat", "look", flat, f"{many(len(flat), case.noun)} of a single colour{case.count_decoded()}",
            "There is nothing to see; take them out unless that is what you want to teach.",
        )  # fmt: skip
    through = [noun.row for noun in fine if noun.is_transparent]
    if through:
        yield case.find(
            "transparent", "look", through,
            f"{many(len(through), case.noun)} with transparent parts{case.count_decoded()}",
            "Transparency is dropped, so the colours stored under it are trained on, often black or noise; they are "
            "shown here. Put the subject on a background of your choice.",
        )  # fmt: skip


def resolution(case: Case) -> Iterator[Finding]:
    """Enlarged images, and detail that is thrown away."""
    at, rows = case.d.index.numbers, case.once
    if not len(rows):
        return
    wide, high = (at[f"inter_{edge}"][rows] / np.maximum(at[edge][rows], 1) for edge in ("width", "height"))
    scale = np.maximum(wide, high)
    order = rows[np.lexsort((rows, -scale))]
    factor = dict(zip(rows.tolist(), scale.tolist(), strict=True))
    enlarged = [int(row) for row in order if factor[int(row)] > ENLARGED]

    def describe(row: int) -> str:
        return f"{size_of(case, row)} → {at['inter_width'][row]} × {at['inter_height'][row]}"

    if enlarged:
        yield case.find(
            "enlarged", "look", enlarged,
            f"{many(len(enlarged), case.noun)} {'is' if len(enlarged) == 1 else 'are'} enlarged, "
            f"{'' if len(enlarged) == 1 else 'the worst '}{factor[enlarged[0]]:.1f} times",
            "Enlarging adds no detail and teaches softness. Bring larger ones, lower resolution, or set "
            "minimum_image_size to leave them out.",
            lambda row: f"{describe(row)}, {factor[row]:.1f} times",
        )  # fmt: skip
    shrunk = [int(row) for row in order[::-1] if factor[int(row)] < 1 / SHRUNK]
    if shrunk:
        yield case.find(
            "shrunk", "know", shrunk,
            f"{many(len(shrunk), case.noun)} {'has' if len(shrunk) == 1 else 'have'} more detail than is trained on",
            "Nothing is wrong with that. If the detail matters, raise resolution, or crop to the subject beforehand.",
            lambda row: f"{describe(row)}, {100 * factor[row] ** 2:.0f} % of the pixels",
        )  # fmt: skip


def find_cropped(case: Case) -> Iterator[Finding]:
    """What the crop cuts off."""
    at, rows = case.d.index.numbers, case.once
    area = at["inter_width"][rows].astype(np.int64) * at["inter_height"][rows]
    share = 1 - at["target_width"][rows].astype(np.int64) * at["target_height"][rows] / np.maximum(area, 1)
    order = np.lexsort((rows, -share))
    worst = [int(rows[i]) for i in order if share[i] > CUT_OFF]
    if worst:
        by = dict(zip(rows.tolist(), share.tolist(), strict=True))
        yield case.find(
            "cropped", "look", worst,
            f"The crop cuts {100 * CUT_OFF:.0f} % or more off {many(len(worst), case.noun)}",
            "The frame is what the model sees. crop_aspect preserve or closest keeps more, crop_style moves the frame.",
            lambda row: f"{100 * by[row]:.0f} % cut off",
            framed=True,
        )  # fmt: skip


# ---------------------------------------------------------------------- captions


def cut_captions(case: Case) -> Iterator[Finding]:
    """Captions that are longer than what encoders read."""
    captions = case.captions
    over = np.flatnonzero(captions.cut_by_all)
    if len(over):
        longest = np.max([lengths[over] for lengths in captions.lengths], axis=0)
        over = over[np.lexsort((over, -longest))]
        passages = [passage(case, int(i)) for i in over[:MAX_PASSAGES]]
        limits = max(reader.limit or 0 for reader in captions.readers)
        rows = _rows(case, over)
        yield Finding(
            "caption_cut", "fix",
            f"{many(len(over), 'caption')} {'is' if len(over) == 1 else 'are'} longer than the encoder reads "
            f"({number(limits)} tokens)",
            "The marked words are never seen. Shorten them, put what matters first, or raise tokenizer_max_length if "
            "the family allows it.",
            len(over), case.paths(rows), [], passages,
        )  # fmt: skip
    for i, reader in enumerate(captions.readers):
        some = np.flatnonzero(captions.over(i) & ~captions.cut_by_all)
        if len(some):
            yield Finding(
                f"caption_cut_by_{reader.name.split(' ')[0].lower()}", "know",
                f"{reader.name} reads only the first {reader.limit} tokens of {many(len(some), 'caption')}",
                "Another encoder reads all of them, so little is lost. Put what matters most first.",
                len(some), case.paths(_rows(case, some)),
            )  # fmt: skip


def _rows(case: Case, places: np.ndarray) -> np.ndarray:
    rows = case.captions.rows[places]
    return np.array(list(dict.fromkeys(rows.tolist())), np.int64)


def passage(case: Case, i: int) -> Passage:
    """Caption `i` around the place where it is cut off."""
    text, cut = case.captions.texts[i], case.captions.end(i)
    start = max(0, (cut or 0) - 240)
    excerpt = ("…" if start else "") + text[start : (cut or 0) + 400] + ("…" if len(text) > (cut or 0) + 400 else "")
    return Passage(
        case.d.index.path(int(case.captions.rows[i])), excerpt, None if cut is None else cut - start + bool(start)
    )


def find_caption_claims(case: Case) -> Iterator[Finding]:
    """Markup, one caption on many images, a trigger word that is missing."""
    captions = case.captions
    marked = np.array([i for i, text in enumerate(captions.texts) if MARKUP.search(text)], np.int64)
    if len(marked):
        passages = [
            Passage(case.d.index.path(int(captions.rows[i])), captions.texts[i][:300]) for i in marked[:MAX_PASSAGES]
        ]
        yield Finding(
            "caption_markup", "look",
            f"{many(len(marked), 'caption')} {'holds' if len(marked) == 1 else 'hold'} markup or links",
            "The encoder reads tags, links and (weights:1.2) letter by letter. Write plain words; caption_filter_list "
            "can remove a pattern from all captions.",
            len(marked), case.paths(_rows(case, marked)), [], passages,
        )  # fmt: skip
    if case.d.index.captions is not None:
        yield from _same_caption(case)
        yield from _trigger(case)


def _same_caption(case: Case) -> Iterator[Finding]:
    captions = case.captions
    holders: dict[str, dict[int, None]] = {}
    for row, text in zip(captions.rows.tolist(), captions.texts, strict=True):
        holders.setdefault(text, {})[row] = None
    minimum = max(3, round(0.02 * len(set(captions.rows.tolist()))))
    same = [(text, list(rows)) for text, rows in holders.items() if len(rows) >= minimum]
    same.sort(key=lambda pair: (-len(pair[1]), pair[0]))
    if not same:
        return
    groups = [[case.album.tile(row) for row in rows[:6]] for _, rows in same[:MAX_GROUPS]]
    passages = [Passage(f"on {many(len(rows), case.noun)}", text[:300]) for text, rows in same[:MAX_PASSAGES]]
    rows = [row for _, rows in same for row in rows]
    title = f"One caption stands on {many(len(rows), case.noun)}" if len(same) == 1 else (
        f"{number(len(same))} captions stand on {many(len(rows), case.noun)}"
    )  # fmt: skip
    yield Finding(
        "caption_same", "look", title,
        "What differs between these pictures is not said, so the model cannot tell it apart. Describe it.",
        len(rows), case.paths(rows), groups, passages,
    )  # fmt: skip


def _trigger(case: Case) -> Iterator[Finding]:
    """The instance prompt, or a made-up word that stands in most captions."""
    entry, captions = case.d.entry, case.captions
    if source_name(entry) == "instanceprompt" or not captions.texts:
        return
    if entry.prompts and not entry.prepend_instance_prompt:
        threshold = [prompt.lower() for prompt in entry.prompts]
        examples = " or ".join(f"'{prompt}'" for prompt in entry.prompts[:3])
    else:
        invented = [w for w, n, share in word_shares(captions) if 0.8 <= share < 1 and n >= 8 and _is_invented_word(w)]
        if not invented:
            return
        threshold, examples = invented[:1], f"'{invented[0]}'"
    lacking = np.array(
        [i for i, t in enumerate(captions.texts) if not any(w in t.lower() for w in threshold)], np.int64
    )
    if not len(lacking):
        return
    if len(lacking) == len(captions.texts):
        title = f"instance_prompt {examples} stands in no caption"
        remedy = (
            "It is only used when there is no other caption. Set prepend_instance_prompt to put it in front of each."
        )
    else:
        lack = "lacks" if len(lacking) == 1 else "lack"
        title = f"{many(len(lacking), 'caption')} {lack} {examples}, which the others have"
        remedy = "Add it, or set instance_prompt to it and prepend_instance_prompt to true."
    passages = [
        Passage(case.d.index.path(int(captions.rows[i])), captions.texts[i][:300]) for i in lacking[:MAX_PASSAGES]
    ]
    yield Finding(
        "trigger_missing", "look", title, remedy, len(lacking), case.paths(_rows(case, lacking)), [], passages
    )


def _is_invented_word(word: str) -> bool:
    """Does it look like a trigger word: digits among letters, or letters without a vowel?"""
    has_digit, has_letter = any(c.isdigit() for c in word), any(c.isalpha() for c in word)
    return has_letter and (has_digit or (len(word) >= 3 and word.isascii() and not set(word) & set("aeiouy")))


# ---------------------------------------------------------------------- clips


def frame_rates(case: Case) -> Iterator[Finding]:
    """Clips that are shown faster or slower than they are, and frames that are shown twice."""
    index, block, needs = case.d.index, case.d.entry.video, case.plan.requirements
    at = index.numbers
    rows = case.once[at["fps"][case.once] > 0] if block is not None else []
    rows = np.array([row for row in rows if is_clip(index.path(int(row)))], np.int64)
    if block is None or not len(rows):
        return

    def describe(row: int) -> str:
        return f"{at['fps'][row]:.4g} frames a second"

    if block.fps:
        slow = rows[at["fps"][rows] < block.fps * (1 - RATE_OFF)]
        if len(slow):
            yield case.find(
                "frames_repeated", "look", slow,
                f"{many(len(slow), 'clip')} with fewer than {block.fps:.4g} frames a second",
                "Frames are repeated to reach that rate, and the model learns the stutter. Lower fps in the video "
                "block, or leave these out.",
                describe,
            )  # fmt: skip
        return
    believed = block.source_fps if block.source_fps and needs.fps else needs.fps
    if not believed:
        return
    off = rows[np.abs(at["fps"][rows] / believed - 1) > RATE_OFF]
    if len(off):
        sentence = (
            f"source_fps says {believed:.4g}"
            if block.source_fps
            else f"{needs.display_name} takes them for {believed:.4g} frames a second"
        )
        yield case.find(
            "rate", "look", off, f"{many(len(off), 'clip')} would be taught at the wrong speed: {sentence}",
            f"Set fps to {needs.fps:.4g} in the video block: frames are then taken by their time stamps.",
            describe,
        )  # fmt: skip


# ---------------------------------------------------------------------- what happens later


def later(case: Case) -> Iterator[Finding]:
    """What is still to be made, and batches that are filled up."""
    for c in case.d.conditioning:
        count = case.plan.count_missing_generated().get(c.entry.id, 0)
        if count and c.entry.generator:
            yield Finding(
                "to_generate", "know",
                f"{many(count, 'conditioning picture')} will be made by {c.entry.generator.type} for '{c.entry.id}'",
                "They are made before the first step and kept beside the dataset.", count,
            )  # fmt: skip


FINDERS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    would_not_start,
    find_deleted,
    find_broken,
    headers,
    without_caption,
    outside_limits,
    duplicates,
    cut_captions,
    find_single_samples,
    find_bad_quality,
    resolution,
    find_cropped,
    find_caption_claims,
    frame_rates,
    later,
)


def findings(case: Case) -> list[Finding]:
    """Everything worth saying about a dataset, what must be put right first."""
    results = [single_case for finder in FINDERS for single_case in finder(case)]
    order = ("fix", "look", "know")
    return sorted(results, key=lambda single_case: order.index(single_case.level))


# ---------------------------------------------------------------------- between datasets


def between(cases: Sequence[Case]) -> list[Finding]:
    """Images that are both trained on and held out."""
    trained = [
        (case, sample) for case in cases if case.d.entry.is_training for sample in case.samples if _shows(sample)
    ]
    held_out = [
        (case, sample) for case in cases if not case.d.entry.is_training for sample in case.samples if _shows(sample)
    ]
    if not trained or not held_out:
        return []
    both = [*held_out, *trained]
    images = np.array([sample.miniature for _, sample in both], np.uint8)
    groups = quality.group_similar(np.array([sample.outline for _, sample in both], np.uint64), images)
    pairs = [
        [i for i in group if i < len(held_out)][:1] + [i for i in group if i >= len(held_out)][:5]
        for group in groups
        if any(i < len(held_out) for i in group) and any(i >= len(held_out) for i in group)
    ]
    if not pairs:
        return []

    def tile(i: int) -> Tile:
        case, sample = both[i]
        name = f"{case.d.id}: {case.d.index.path(sample.row)}"
        return case.album.tile(sample.row, "held out" if i < len(held_out) else "trained on", name=name)

    files = [f"{both[i][0].d.id}: {both[i][0].d.index.path(both[i][1].row)}" for group in pairs for i in group]
    return [
        Finding(
            "held_out_seen", "fix",
            f"{many(len(pairs), 'held-out picture')} {'is' if len(pairs) == 1 else 'are'} also trained on",
            "The loss on held-out pictures then says nothing about new ones. Take them out of one of the two.",
            len(pairs), files[:MAX_NAMED], [[tile(i) for i in group] for group in pairs[:MAX_GROUPS]],
        )
    ]  # fmt: skip


def _shows(sample: DecodedSample) -> bool:
    return not sample.bad and sample.contrast >= quality.FLAT
