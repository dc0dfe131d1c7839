"""What the dataset page shows, as plain values: the same for the page and for `--json`.

Report                  everything
└── Sheet               one dataset
    ├── Finding         something to fix, to look at or to know, with its files, images and remedy
    ├── Shape           a bucket, or one that was left out
    ├── Words           its captions
    ├── Strip           the frames of a clip that one sample sees
    └── Beside          a conditioning dataset, shown next to what it belongs to
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Level = Literal["fix", "look", "know"]
LEVELS: dict[Level, str] = {"fix": "Fix this first", "look": "Worth a look", "know": "Good to know"}

Frame = tuple[float, float, float, float]
"""What a crop keeps, as shares of the image: left, top, width, height."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """A small image with words under it. Without `jpeg` (JPEG) its place is taken by `instead`."""

    name: str
    note: str = ""
    jpeg: bytes = b""
    size: tuple[int, int] = (1, 1)  # of `jpeg`
    frame: Frame | None = None
    instead: str = "not shown"


@dataclasses.dataclass(frozen=True)
class Passage:
    """A caption, or the part of it that matters. From character `cut` on it is marked."""

    name: str
    text: str
    cut: int | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """`count` things of one `kind`; `files` names them, up to a bound; `groups` shows some, those alike together."""

    kind: str
    level: Level
    title: str
    remedy: str
    count: int
    files: list[str] = dataclasses.field(default_factory=list)
    groups: list[list[Tile]] = dataclasses.field(default_factory=list)
    passages: list[Passage] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class BucketFacts:
    """A bucket: its target, samples, batches an epoch, and how many samples are dealt again to fill batches."""

    name: str
    size: tuple[int, int]
    frames: int
    samples: int
    batches: int
    filled: int
    is_left_out: bool
    tiles: list[Tile]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """How long captions are for one text encoder, in tokens with its own marks. `limit` is None without one."""

    name: str
    limit: int | None
    longest: int
    middle: int
    cut: int


@dataclasses.dataclass(frozen=True)
class Words:
    """Captions: where they come from, their lengths in `unit`, and the words that most of them share."""

    source: str
    captions: int
    distinct: int
    unit: str
    bars: list[tuple[int, int]]  # (longest of this bar, captions)
    limit: int | None
    encoders: list[Encoder]
    frequent: list[tuple[str, int, float]]  # word, captions that hold it, their share
    note: str


@dataclasses.dataclass(frozen=True)
class Moment:
    """One frame of a strip: its number in the file, seconds from the start (None: unknown), JPEG."""

    frame: int
    seconds: float | None
    jpeg: bytes


@dataclasses.dataclass(frozen=True)
class Strip:
    """One sample of a clip: `frames` says all frame numbers, `moments` shows some of them."""

    name: str
    shape: str
    note: str
    frames: str
    moments: list[Moment]


@dataclasses.dataclass(frozen=True)
class ConditioningFacts:
    """A conditioning dataset: what it is to the model, for how many samples it is there, some pairs."""

    id: str
    what: str
    there: int
    needed: int
    note: str
    pairs: list[list[Tile]]


@dataclasses.dataclass(frozen=True)
class Sheet:
    """One dataset."""

    id: str
    role: str
    headline: str
    place: str
    facts: list[tuple[str, str]]
    samples: int
    left_out: dict[str, int]
    batches: int
    gallery: list[Tile]
    findings: list[Finding]
    shapes: list[BucketFacts]
    more_shapes: str
    words: Words | None
    strips: list[Strip]
    beside: list[ConditioningFacts]
    examined: str


@dataclasses.dataclass(frozen=True)
class DatasetReport:
    """All datasets of a run, and what is between them."""

    title: str
    lead: str
    facts: list[tuple[str, str]]
    sheets: list[Sheet]
    across: list[Finding]
    notes: list[str]


def as_dict(value: object) -> object:
    """The facts as JSON-able data, without images."""
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: as_dict(item) for name, item in pairs if not isinstance(item, bytes)}
    if isinstance(value, dict):
        return {name: as_dict(item) for name, item in value.items()}
    return [as_dict(item) for item in value] if isinstance(value, (list, tuple)) else value


def number(count: int) -> str:
    """1240 as `1 240`, with a narrow space that does not break."""
    return f"{count:,}".replace(",", "\u202f")


def many(count: int, noun: str) -> str:
    """`1 picture`, `1 240 pictures`, `2 batches`."""
    plural = (
        f"{noun}es" if noun.endswith(("ch", "s", "x")) else f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    )
    return f"{number(count)} {noun if count == 1 else plural}"
