"""`dataset_report.html`: one file that opens from disk, images first. Nothing in it is alive, nothing is loaded.

Everything that comes from files and captions passes through `_text`; the page itself also forbids scripts, so that a
caption can do no harm in two ways. Without time stamps: the same data gives the same bytes.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from darkroom.core.files import write_text
from darkroom.report.dataset_facts import (
    LEVELS,
    BucketFacts,
    ConditioningFacts,
    DatasetReport,
    Finding,
    Passage,
    Sheet,
    Strip,
    Tile,
    Words,
    many,
    number,
)

TALL, WIDE = 132, 250
"""Pixels on the screen that a thumbnail fits into."""

SHORT = {"fix": "fix", "look": "look", "know": "info"}

NARROW = 3
"""Tiles that fit into a card of half the page's width."""

MAX_CURVE_SHARE = 0.985
"""A crop that keeps more than this share of both edges is not drawn: nobody would see it."""

CHART, BASE = (760, 150), 24
"""Width and height of a chart in pixels, and the room below its bars."""


def write(path: Path, report: DatasetReport) -> Path:
    """Write the page. Returns its path. Raises DiskFullError."""
    write_text(path, render(report))
    return path


def render(report: DatasetReport) -> str:
    """The whole page."""
    template = Template(Path(__file__).with_name("dataset_page.html").read_text(encoding="utf-8"))
    parts = [
        "<header><p class='eyebrow'>Darkroom · a look at your data</p>",
        f"<h1>{_text(report.title)}</h1><p class='lead'>{_text(report.lead)}</p></header>",
        _facts(report.facts),
        _todo(report),
        _across(report.across),
        *(_sheet(i, sheet) for i, sheet in enumerate(report.sheets)),
        _footer(report),
    ]
    return template.substitute(title=_text(report.title), body="\n".join(part for part in parts if part))


def _text(value: object) -> str:
    return html.escape(str(value))


def _facts(facts: Iterable[tuple[str, str]], kind: str = "") -> str:
    cells = "".join(f"<div><span class='dim small'>{_text(k)}</span><b>{_text(v)}</b></div>" for k, v in facts)
    return f"<div class='facts {kind}'>{cells}</div>" if cells else ""


# ---------------------------------------------------------------------- what to do


def _todo(report: DatasetReport) -> str:
    """Every finding in a line, what must be put right first, with links to the images."""
    rows = [("", f"across-{k}", finding) for k, finding in enumerate(report.across)]
    rows += [(s.id, f"d{i}-{k}", finding) for i, s in enumerate(report.sheets) for k, finding in enumerate(s.findings)]
    if not rows:
        return "<div class='todo'><h4>Nothing to do</h4><p>No problem was found. Enjoy the pictures.</p></div>"
    several = len(report.sheets) > 1

    def line(dataset: str, anchor: str, finding: Finding) -> str:
        suffix = f" <span class='dim small'>in {_text(dataset)}</span>" if several and dataset else ""
        return f"<li><a href='#{anchor}'>{_text(finding.title)}</a>{suffix}</li>"

    blocks = ""
    for level, name in LEVELS.items():
        lines = "".join(line(*row) for row in rows if row[2].level == level)
        blocks += f"<div><span class='chip {level}'>{name}</span><ul>{lines}</ul></div>" if lines else ""
    return f"<nav class='todo'>{blocks}</nav>"


def _across(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    cards = "".join(_finding(f"across-{k}", finding) for k, finding in enumerate(findings))
    return f"<section class='sheet'><h2>Between datasets</h2><div class='findings'>{cards}</div></section>"


def _finding(anchor: str, finding: Finding) -> str:
    head = f"<header><h4>{_text(finding.title)}</h4><span class='chip level'>{SHORT[finding.level]}</span></header>"
    body = f"<p>{_text(finding.remedy)}</p>" + "".join(_passage(p) for p in finding.passages) + _groups(finding)
    tile_names = {tile.name for group in finding.groups for tile in group}
    hidden_names = [name for name in finding.files if name not in tile_names]
    is_wide = sum(map(len, finding.groups)) > NARROW or finding.passages
    kind = f"{finding.level}{' wide' if is_wide else ''}"
    return f"<article class='finding {kind}' id='{anchor}'>{head}{body}{_names(finding, hidden_names)}</article>"


def _groups(finding: Finding) -> str:
    if len(finding.groups) == 1:
        return f"<div class='tiles'>{''.join(map(_tile, finding.groups[0]))}</div>"
    groups = "".join(f"<div class='tiles group'>{''.join(map(_tile, group))}</div>" for group in finding.groups)
    return f"<div class='groups'>{groups}</div>" if groups else ""


def _names(finding: Finding, names: Sequence[str]) -> str:
    """The files that are not shown, folded away."""
    if not names or {p.name for p in finding.passages} >= set(names):
        return ""
    first_names = names[:200]
    listed = "".join(f"<li>{_text(name)}</li>" for name in first_names)
    note = "" if len(names) == len(first_names) else "<p class='dim'>The list goes on; --json names more of them.</p>"
    first = "" if not finding.groups else "more "
    label = f"{first}{many(len(names), 'file')}" if len(names) < 1000 else f"the first {number(1000)} files"
    return f"<details><summary>{label}</summary><ul>{listed}</ul>{note}</details>"


def _passage(p: Passage) -> str:
    words = _text(p.text) if p.cut is None else f"{_text(p.text[: p.cut])}<mark>{_text(p.text[p.cut :])}</mark>"
    return f"<blockquote><b>{_text(p.name)}</b>{words}</blockquote>"


# ---------------------------------------------------------------------- images


def _tile(tile: Tile, tall: int = TALL, wide: int = WIDE) -> str:
    width, height = _fit_size(tile.size, tall, wide)
    is_noted = not tile.jpeg and tile.note == tile.instead
    note = f"<b>{_text(tile.name)}</b>{'' if is_noted else _text(tile.note)}"
    column = max(width, 118)
    return f"<figure style='width:{column}px'>{_photo(tile, width, height)}<figcaption>{note}</figcaption></figure>"


def _photo(tile: Tile, width: int, height: int) -> str:
    style = f"style='width:{width}px;height:{height}px'"
    if not tile.jpeg:
        return f"<span class='photo none' {style}>{_text(tile.instead)}</span>"
    frame = ""
    if tile.frame and min(tile.frame[2:]) < MAX_CURVE_SHARE:
        left, top, wide, high = (f"{100 * share:.2f}%" for share in tile.frame)
        frame = f"<i style='left:{left};top:{top};width:{wide};height:{high}'></i>"
    return f"<span class='photo' {style}><img alt='{_text(tile.name)}' src='{_data(tile.jpeg)}'>{frame}</span>"


def _fit_size(size: tuple[int, int], tall: int, wide: int) -> tuple[int, int]:
    """A size brought to `tall`, or to `wide` where it would be wider."""
    scale = min(tall / size[1], wide / size[0])
    return max(8, round(size[0] * scale)), max(8, round(size[1] * scale))


def _data(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


# ---------------------------------------------------------------------- a dataset


def _sheet(i: int, sheet: Sheet) -> str:
    cards = "".join(_finding(f"d{i}-{k}", finding) for k, finding in enumerate(sheet.findings))
    parts = [
        f"<h2>{_text(sheet.id)} <span class='chip'>{_text(sheet.role)}</span></h2>",
        f"<p class='headline'>{_text(sheet.headline)}</p><p class='dim small'>{_text(sheet.place)}</p>",
        _facts(sheet.facts, "less"),
        f"<div class='tiles'>{''.join(map(_tile, sheet.gallery))}</div>" if sheet.gallery else "",
        _section("What was found", f"<div class='findings'>{cards}</div>" if cards else ""),
        _section("Shapes", _shapes(sheet)),
        _section("Captions", _words(sheet.words)),
        _section("What each sample of a clip sees", "".join(map(_strip, sheet.strips))),
        *(_section(f"Beside each: {b.id}", _render_conditioning(b)) for b in sheet.beside),
        f"<p class='dim small'>{_text(sheet.examined)}</p>",
    ]
    return f"<section class='sheet' id='d{i}'>{''.join(parts)}</section>"


def _section(title: str, body: str) -> str:
    return f"<h3>{_text(title)}</h3>{body}" if body else ""


def _shapes(sheet: Sheet) -> str:
    if not sheet.shapes:
        return ""
    max_samples = max(shape.samples for shape in sheet.shapes)
    longest = max(max(shape.size) for shape in sheet.shapes)
    cards = "".join(_shape(shape, max_samples, longest) for shape in sheet.shapes)
    more = f"<p class='dim'>{_text(sheet.more_shapes)}</p>" if sheet.more_shapes else ""
    note = (
        "<p class='dim small'>One batch holds samples of one shape. The frame on a picture is what the crop keeps.</p>"
    )
    return f"{note}<div class='shapes'>{cards}</div>{more}"


def _shape(shape: BucketFacts, max_samples: int, longest: int) -> str:
    width, height = (max(4, round(56 * edge / longest)) for edge in shape.size)
    count = many(shape.samples, "sample")
    text = "left out: too few for a batch" if shape.is_left_out else many(shape.batches, "batch")
    if shape.filled:
        text += f", {number(shape.filled)} repeated to fill the last"
    frames = f" · {many(shape.frames, 'frame')}" if shape.frames > 1 else ""
    tiles = "".join(_tile(Tile("", "", t.jpeg, t.size, t.frame, t.instead), 64, 110) for t in shape.tiles)
    small = tiles.replace("<figcaption><b></b></figcaption>", "").replace("width:118px", "")
    return (
        f"<article class='shape{' out' if shape.is_left_out else ''}'><div class='who'>"
        f"<span class='box' style='width:{width}px;height:{height}px'></span>"
        f"<div><h4>{shape.size[0]} × {shape.size[1]}{frames}</h4>"
        f"<p class='dim small'>aspect {_text(shape.name)} · {count}<br>{text}</p></div></div>"
        f"<div class='bar'><i style='width:{max(1, round(100 * shape.samples / max_samples))}%'></i></div>"
        f"<div class='tiles' style='gap:.35rem'>{small}</div></article>"
    )


# ---------------------------------------------------------------------- captions


def _words(words: Words | None) -> str:
    if words is None:
        return ""
    summary = (
        f"<p>From {_text(words.source)}: {many(words.captions, 'caption')}, {number(words.distinct)} different.</p>"
    )
    encoders = "".join(
        f"<p>{_text(e.name)} reads {'any length' if e.limit is None else f'up to {number(e.limit)} tokens'}. "
        f"Half of the captions have {number(e.middle)} or fewer, the longest has {number(e.longest)}"
        f"{f'; {number(e.cut)} {_is(e.cut)} cut off' if e.cut else ''}.</p>"
        for e in words.encoders
    )
    common = "".join(
        f"<span>{_text(word)}<small>{round(100 * share)} %</small></span>" for word, _, share in words.frequent
    )
    cloud = f"<p class='dim small'>Words that captions share</p><div class='words'>{common}</div>" if common else ""
    note = f"<p class='dim small'>{_text(words.note)}</p>" if words.note else ""
    return summary + encoders + note + (_bars(words) if words.distinct > 1 else "") + cloud


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _bars(words: Words) -> str:
    """How many captions are how long; those beyond the limit in another color."""
    (width, height), highest = CHART, max(count for _, count in words.bars)
    step = width / len(words.bars)
    columns, labels = [], []
    for i, (end, count) in enumerate(words.bars):
        tall = (height - BASE - 16) * count / highest
        is_over = words.limit is not None and end > words.limit
        position = f"x='{i * step + 1:.1f}' y='{height - BASE - tall:.1f}' width='{step - 2:.1f}' height='{tall:.1f}'"
        color = "var(--fix)" if is_over else "var(--green)"
        columns.append(f"<rect {position} rx='2' fill='{color}'><title>{many(count, 'caption')}</title></rect>")
        if len(words.bars) <= 12 or i % 2 == 1:
            labels.append(f"<text x='{(i + 1) * step:.1f}' y='{height - 8}' text-anchor='end'>{number(end)}</text>")
    top = f"<text x='0' y='12'>most: {many(highest, 'caption')}</text>"
    line = ""
    if words.limit is not None and words.limit in [end for end, _ in words.bars]:
        x = ([end for end, _ in words.bars].index(words.limit) + 1) * step
        line = (
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1='4' y2='{height - BASE}' stroke='var(--fix)' stroke-dasharray='4 3'/>"
            f"<text x='{x - 6:.1f}' y='12' text-anchor='end'>limit {number(words.limit)}</text>"
        )
    caption = f"<p class='dim small'>Length of captions in {words.unit}</p>"
    base = f"<line x1='0' x2='{width}' y1='{height - BASE}' y2='{height - BASE}' stroke='var(--line)'/>"
    shape = f"viewBox='0 0 {width} {height}' width='{width}' role='img'"
    return f"{caption}<svg {shape}>{''.join(columns)}{base}{line}{top if not line else ''}{''.join(labels)}</svg>"


# ---------------------------------------------------------------------- clips and companions


def _strip(strip: Strip) -> str:
    frames = "".join(
        f"<figure><img alt='frame {m.frame}' src='{_data(m.jpeg)}'>"
        f"<figcaption>{m.frame}{'' if m.seconds is None else f'<br>{m.seconds:.2f} s'}</figcaption></figure>"
        for m in strip.moments
        if m.jpeg
    )
    caption = f"{_text(strip.note)} · frames {_text(strip.frames)}"
    return (
        f"<h4>{_text(strip.name)} <span class='chip'>{_text(strip.shape)}</span></h4>"
        f"<p class='dim small'>{caption}</p><div class='film'>{frames}</div>"
    )


def _render_conditioning(b: ConditioningFacts) -> str:
    note = f" {_text(b.note)}." if b.note else ""
    summary = f"<p>{_text(b.what)}, there for {number(b.there)} of {many(b.needed, 'sample')}.{note}</p>"
    pairs = "".join(f"<div class='tiles group'>{''.join(map(_tile, pair))}</div>" for pair in b.pairs)
    return summary + (f"<div class='pairs'>{pairs}</div>" if pairs else "")


def _footer(report: DatasetReport) -> str:
    notes = "".join(f"<p>{_text(note)}</p>" for note in report.notes)
    return (
        f"<footer>{notes}<p>Blur is the variance of a Laplacian, seen beside the other pictures; pictures that look "
        "the same share the signs of their lowest frequencies and their colours. Both can be wrong: you decide.</p>"
        "<p>Made by <code>darkroom dataset report</code>. Nothing was changed on disk.</p></footer>"
    )
