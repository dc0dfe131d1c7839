"""`report.html`: one file that opens from disk, with images and curves inside it."""

from __future__ import annotations

import base64
import html
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from darkroom.core.files import write_text
from darkroom.core.log import redact
from darkroom.core.units import show_duration, show_size
from darkroom.report.eventlog import EventRow, read

BANDS = ((0.0, 0.25, "nearly clean"), (0.25, 0.5, "lightly noisy"), (0.5, 0.75, "noisy"), (0.75, 1.01, "nearly noise"))
COLORS = ("#2f6f4f", "#3d7ea6", "#c07c2c", "#a33f52", "#222222")
WIDTH, HEIGHT, LEFT, BOTTOM = 860, 300, 56, 28
MAX_POINTS = 400

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem}
body{color:#1d1d1f;background:#fafaf8}
h1{font-weight:650}h2{margin-top:2.2rem;border-bottom:1px solid #ddd;padding-bottom:.2rem}
table{border-collapse:collapse;width:100%}td,th{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #e6e6e2}
th{font-weight:600}code{background:#efefe9;padding:.05rem .3rem;border-radius:3px}.dim{color:#777}
figure{display:inline-block;margin:.4rem .6rem .4rem 0;vertical-align:top}figcaption{font-size:.85rem;color:#555}
img{max-width:100%;image-rendering:pixelated;border:1px solid #ddd}
.warn{background:#fff6df;padding:.5rem .8rem;margin:.3rem 0}
.facts{display:flex;gap:2rem;flex-wrap:wrap}.facts b{display:block;font-size:1.4rem}
@media (prefers-color-scheme:dark){body{background:#1b1b1d;color:#eee}code{background:#333}td,th{border-color:#333}
.warn{background:#4a3b12}figcaption,.dim{color:#aaa}svg text{fill:#ccc}}
"""


def write(output: Path, options: dict[str, object], sources: dict[str, str], notes: Sequence[str] = ()) -> Path:
    """Make the page from a run's event log. Returns its path."""
    rows = read(output / "events.jsonl")
    steps = [row for row in rows if row["event"] == "step"]
    end = next((row for row in reversed(rows) if row["event"] == "run_end"), None)
    title = str(options.get("tracker_run_name") or output.name)
    sections = [
        f"<h1>{_text(title)}</h1>",
        _facts(rows, steps, end),
        _section("Loss", _losses(steps)),
        _section("Samples", _samples(rows, output)),
        _section("Warnings", _warnings(rows, notes)),
        _section("Settings that differ from the defaults", _settings(options, sources)),
        _section("Time and memory", _phases(rows, steps)),
    ]
    page = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{_text(title)}</title><style>{STYLE}</style>"
    path = output / "report.html"
    write_text(path, redact(page + "".join(sections)) + "</html>\n")
    return path


def _text(value: object) -> str:
    return html.escape(str(value))


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body}" if body else ""


def _facts(rows: list[EventRow], steps: list[EventRow], end: EventRow | None) -> str:
    empty: EventRow = {"summary": {}}
    start = next((row for row in rows if row["event"] == "run_start"), empty)
    facts = {
        "status": end["status"] if end else "running or stopped without a word",
        "steps": f"{steps[-1]['step']} of {steps[-1]['total']}" if steps else "0",
        "time per step": show_duration(sum(s["metrics"]["seconds"] for s in steps) / len(steps)) if steps else "",
        **start["summary"],
    }
    cells = "".join(f"<div><span class='dim'>{_text(k)}</span><b>{_text(v)}</b></div>" for k, v in facts.items() if v)
    return f"<div class='facts'>{cells}</div>"


# -- curves -----------------------------------------------------------------------------------------------------------


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values at each point."""
    total, out = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        out.append(total / min(i + 1, window))
    return out


def _losses(steps: list[EventRow]) -> str:
    if not steps:
        return ""
    numbers = [row["step"] for row in steps]
    loss = [sum(row["terms"].values()) for row in steps]
    window = max(10, len(steps) // 40)
    curves = [("each step", "#c9c9c2", list(zip(numbers, loss, strict=True)))]
    curves.append((f"mean of {window}", COLORS[4], list(zip(numbers, smooth(loss, window), strict=True))))
    chart = _chart(curves)
    bands: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for row in steps:
        for level, error in row["bands"]:
            bands[next(i for i, (low, high, _) in enumerate(BANDS) if low <= level < high)].append((row["step"], error))
    by_band = []
    for i, points in sorted(bands.items()):
        means = smooth([e for _, e in points], max(10, len(points) // 20))
        by_band.append((BANDS[i][2], COLORS[i], [(s, m) for (s, _), m in zip(points, means, strict=True)]))
    note = "<p class='dim'>The same by noise level. A band that rises while the others fall is worth a look.</p>"
    return chart + note + _chart(by_band)


def _thin(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = -(-len(points) // MAX_POINTS)
    return points[::stride] if stride > 1 else points


def _chart(curves: list[tuple[str, str, list[tuple[int, float]]]]) -> str:
    values = [v for _, _, points in curves for _, v in points if math.isfinite(v)]
    if not values:
        return ""
    last = max(points[-1][0] for _, _, points in curves if points)
    ordered = sorted(values)
    low, high = 0.0, ordered[min(len(ordered) - 1, int(len(ordered) * 0.995))] * 1.05 or 1.0

    def locate(step: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 10) * step / max(1, last)
        y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 10) * (min(value, high) - low) / (high - low)
        return f"{x:.1f},{y:.1f}"

    lines = "".join(
        f"<polyline fill='none' stroke='{color}' stroke-width='1.6' points='{path}'/>"
        for _, color, points in curves
        if (path := " ".join(locate(*point) for point in _thin(points)))
    )
    ticks = "".join(
        f"<text x='{LEFT - 8}' y='{locate(0, v).split(',')[1]}' text-anchor='end' font-size='12'>{v:.3g}</text>"
        for v in (low, (low + high) / 2, high)
    )
    ends = f"<text x='{WIDTH - 10}' y='{HEIGHT - 8}' text-anchor='end' font-size='12'>step {last}</text>"
    names = "".join(
        f"<text x='{WIDTH - 150}' y='{20 + 16 * i}' font-size='12' style='fill:{color}'>{_text(name)}</text>"
        for i, (name, color, _) in enumerate(curves)
    )
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>{lines}{ticks}{ends}{names}</svg>"


# -- images and tables ----------------------------------------------------------------------------------------------


def _samples(rows: list[EventRow], output: Path) -> str:
    by_prompt: dict[str, dict[int, dict]] = defaultdict(dict)
    for row in rows:
        if row["event"] == "validation":
            for image_row in row["pictures"]:
                by_prompt[f"{image_row['name']} {image_row['resolution']} {image_row['path'][-12:-4]}"][row["step"]] = (
                    image_row
                )
    grouped: dict[str, list[tuple[int, dict]]] = defaultdict(list)
    for image_rows in by_prompt.values():
        for step, image_row in image_rows.items():
            grouped[f"{image_row['prompt'] or '(no prompt)'} · {image_row['resolution']}"].append((step, image_row))
    parts = []
    for title, images in grouped.items():
        figures = "".join(
            f"<figure>{_image(output / p['path'])}<figcaption>step {step}</figcaption></figure>"
            for step, p in sorted(images, key=lambda pair: pair[0])
        )
        parts.append(f"<h3>{_text(title)}</h3>{figures}")
    return "".join(parts)


def _image(path: Path) -> str:
    if not path.exists():
        return "<span class='dim'>(removed)</span>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<img alt='{_text(path.stem)}' src='data:image/png;base64,{data}'>"


def _warnings(rows: list[EventRow], notes: Iterable[str]) -> str:
    messages = [
        f"{row['about']}: {row['message']}" if row["about"] else row["message"]
        for row in rows
        if row["event"] == "warning"
    ]
    unique = dict.fromkeys([*messages, *notes])
    return "".join(f"<div class='warn'>{_text(text)}</div>" for text in unique)


def _settings(options: dict[str, object], sources: dict[str, str]) -> str:
    changed = {k: v for k, v in options.items() if sources.get(k, "default") != "default"}
    rows = "".join(
        f"<tr><td><code>{_text(k)}</code></td><td>{_text(json.dumps(v, default=str))}</td>"
        f"<td class='dim'>{_text(sources[k])}</td></tr>"
        for k, v in sorted(changed.items())
    )
    return f"<table><tr><th>option</th><th>value</th><th>from</th></tr>{rows}</table>"


def _phases(rows: list[EventRow], steps: list[EventRow]) -> str:
    phases = [row for row in rows if row["event"] == "phase"]
    on_gpu = any(row["device_memory"] for row in phases)
    lines = ""
    for row in phases:
        device = f"<td>{show_size(row['device_memory'])}</td>" if on_gpu else ""
        numbers = f"<td>{show_duration(row['seconds'])}</td><td>{show_size(row['host_memory'])}</td>{device}"
        lines += f"<tr><td>{_text(row['phase'])}</td>{numbers}</tr>"
    head = f"<tr><th>phase</th><th>time</th><th>most memory</th>{'<th>on the GPU</th>' if on_gpu else ''}</tr>"
    return f"<table>{head}{lines}</table>" if lines else ""
