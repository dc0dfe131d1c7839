"""Write `docs/options/*.md` and the help text from the declarations.

python -m darkroom.options.pages           # write the pages
python -m darkroom.options.pages --check   # say which are out of date; exit status 1 if any is
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable
from pathlib import Path

from darkroom.core.files import write_text
from darkroom.options.config import SECTIONS, every_option
from darkroom.options.field import OptionInfo, Section
from darkroom.options.imports.musubi.page import page_text as musubi_page_text

FOLDER = Path(__file__).parents[2] / "docs" / "options"
_KINDS = {
    "bool": "true or false",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "choice": "choice",
    "json": "JSON, or the path of a JSON file",
}
_RESUME = {"refuse": "another value is refused", "warn": "another value is used, with a warning"}
_CACHES = {"text": "caption embeddings"}
_INTRODUCTION = """\
# Options

Everything that can be set, section by section. These pages are written from the declarations in `darkroom/options`
by `python -m darkroom.options.pages`; change an option there and not here.

An option has the same name everywhere. This sets `snr_gamma`, the later lines winning over the earlier:

```text
DARKROOM_SNR_GAMMA=5                        environment
"snr_gamma": 5   or   "--snr_gamma": 5      config.json
snr_gamma = 5                               config.toml, in any section
SNR_GAMMA=5                                 config.env
--snr_gamma 5   --snr_gamma=5   snr_gamma=5 command line
```

`darkroom options NAME` describes an option, `darkroom options --search WORD` finds one, and
`darkroom options --explain CONFIG` shows where each value of a config comes from.
An option that is marked *not offered yet* is refused unless it has its default.
"""


def render() -> dict[str, str]:
    """File name to text, for every page and the table of contents."""
    pages = {f"{section.page}.md": page_text(section) for section in SECTIONS}
    return {"README.md": contents_text(), **pages, "musubi_tuner.md": musubi_page_text()}


def contents_text() -> str:
    """The first page: how options are given, the sections, and an index."""
    lines = [_INTRODUCTION, "## Sections", "", "| Page | About | Options |", "|---|---|---|"]
    for section in SECTIONS:
        about = " ".join((section.__doc__ or "").split())
        lines.append(f"| [{section.title}]({section.page}.md) | {about} | {len(options_of(section))} |")
    lines += ["", "## All options", "", "| Option | Page | What it does |", "|---|---|---|"]
    for info in sorted(every_option(), key=lambda i: i.name):
        waiting = " *(not offered yet)*" if info.pending else ""
        lines.append(f"| [`{info.name}`]({info.page}.md#{info.name}) | {info.section} | {_cell(info.help)}{waiting} |")
    return "\n".join(lines) + "\n"


def page_text(section: type[Section]) -> str:
    """One page: the section's introduction and each of its options."""
    about = " ".join((section.__doc__ or "").split())
    parts = [f"# {section.title}", about, "[All options](README.md)"]
    parts += [option_text(info) for info in options_of(section)]
    return "\n\n".join(parts) + "\n"


def option_text(info: OptionInfo) -> str:
    """An option as Markdown: its sentence and the facts about it."""
    facts = "\n".join(f"- {name}: {words}" for name, words in facts_of(info, code=True))
    return f"## `{info.name}`\n\n{info.help}\n\n{facts}"


def facts_of(info: OptionInfo, code: bool = False) -> list[tuple[str, str]]:
    """What is to be said of an option beside its sentence, as (heading, words)."""

    def quote(words: Iterable[object]) -> str:
        return ", ".join(f"`{word}`" if code else str(word) for word in words)

    facts = [("Type", _kind_words(info))]
    if info.computed:
        facts.append(("Choices", f"those that {quote(['darkroom families'])} lists"))
    elif info.choices:
        also = f"; or {info.also_words}" if info.also_words else ""
        facts.append(("Choices", quote(info.choices) + also))
    facts.append(("Default", "none; it must be given" if info.required else _default_words(info, code)))
    if info.off:
        facts.append(("Off", f"{quote([0, -1] if info.range.startswith(('1', 'above')) else [-1])}, as if left out"))
    if info.aliases:
        facts.append(("Also called", quote(info.aliases)))
    if info.families:
        facts.append(("Families", quote(info.families)))
    if info.when:
        facts.append(("Acts when", " and ".join(f"{quote([n])} is {w}" for n, w in info.conditions())))
    if info.level != "basic":
        facts.append(("Level", info.level))
    if info.resume != "free":
        facts.append(("At resume", _RESUME[info.resume]))
    if info.cached:
        facts.append(("Caches", f"another value fills the cache of {_CACHES[info.cached]} anew"))
    if info.secret:
        facts.append(("Secret", "its value is never shown or stored"))
    if info.pending:
        facts.append(("Not offered yet", info.pending))
    elif info.pending_choices and not info.computed:
        for reason in dict.fromkeys(info.pending_choices.values()):
            names = [choice for choice, reason_of_choice in info.pending_choices.items() if reason_of_choice == reason]
            facts.append(("Not offered yet", f"{quote(names)}. {reason}"))
    return facts


def _kind_words(info: OptionInfo) -> str:
    words = _KINDS[info.kind]
    if info.many:
        words = "one or several choices, comma-separated"
    if info.kind == "json" and info.also_words:
        words += f", or {info.also_words}"
    return f"{words}, {info.range}" if info.range else words


def _default_words(info: OptionInfo, code: bool) -> str:
    default = info.show(info.default)
    return default if info.default is None or not code else f"`{default}`"


def options_of(section: type[Section]) -> list[OptionInfo]:
    """The options that a section declares, in order."""
    return [info for info in every_option() if info.page == section.page]


def help_text(width: int = 100, levels: Iterable[str] = ("basic",)) -> str:
    """The options as plain text for `--help`, section by section; by default only those most runs need."""
    level_set = frozenset(levels)
    blocks = []
    for section in SECTIONS:
        lines = [
            _help_line(info, width) for info in options_of(section) if info.level in level_set and not info.pending
        ]
        if lines:
            blocks.append("\n".join([f"{section.title}:", *lines]))
    return "\n\n".join(blocks)


def _help_line(info: OptionInfo, width: int) -> str:
    value = {"bool": "", "integer": " N", "number": " X", "choice": " CHOICE"}.get(info.kind, " VALUE")
    head = f"  --{info.name}{value}"
    body = info.help
    if info.choices and not info.computed and len(info.choices) <= 8:
        body += f" One of: {', '.join(str(c) for c in info.choices)}."
    if info.default is not None:
        body += f" Default: {info.show(info.default)}."
    column = 34
    gap = " " * (column - len(head)) if len(head) < column - 1 else "\n" + " " * column
    wrapped = textwrap.wrap(body, max(30, width - column), break_on_hyphens=False)
    return head + gap + ("\n" + " " * column).join(wrapped)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write(folder: Path = FOLDER) -> list[str]:
    """Write the pages that changed and remove those of sections that are gone; returns the names of both."""
    changed = stale(folder)
    pages = render()
    for name in changed:
        if name in pages:
            write_text(folder / name, pages[name])
        else:
            (folder / name).unlink()
    return changed


def stale(folder: Path = FOLDER) -> list[str]:
    """The names of pages that are missing, different, or left over."""
    pages = render()
    old = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in {*pages, *old} if pages.get(name) != old.get(name))


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or with --check say which are out of date."""
    parser = argparse.ArgumentParser(prog="python -m darkroom.options.pages", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when pages are out of date")
    if not parser.parse_args(argv).check:
        for name in write():
            print(f"wrote {FOLDER / name}")
        return 0
    outdated = stale()
    for name in outdated:
        print(f"out of date: docs/options/{name}; run python -m darkroom.options.pages")
    return 1 if outdated else 0


if __name__ == "__main__":
    raise SystemExit(main())
