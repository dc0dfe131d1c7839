"""`darkroom options`: describe, search and explain what can be set.

darkroom options                        every option, section by section
darkroom options snr_gamma lora_rank    these options in detail
darkroom options --search guidance      options whose name or sentence has the word
darkroom options --pending              what is declared and not offered yet
darkroom options --explain CONFIG ...   each value of a run and where it came from
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from darkroom.core.errors import ConfigErrors, UserError
from darkroom.core.log import redact
from darkroom.core.registry import find_nearest
from darkroom.options.config import SECTIONS, every_option, option_names
from darkroom.options.field import OptionInfo
from darkroom.options.imports.musubi.options import OPTIONS
from darkroom.options.imports.report import ForeignOption
from darkroom.options.pages import facts_of
from darkroom.options.sources import DEFAULT, Resolved, resolve


def run(argv: Sequence[str]) -> int:
    """The command. Returns the exit status; raises UserError for an unknown option or a wrong config."""
    arguments = _parser().parse_args(list(argv))
    if arguments.explain is not None:
        return _explain(arguments.explain, arguments.name, arguments.json)
    selected = _select_options(arguments.name, arguments.search, arguments.pending)
    if arguments.json:
        foreign = [] if arguments.name or arguments.search or arguments.pending else [*OPTIONS.values()]
        rows = [as_json(info) for info in selected] + [foreign_as_json(row) for row in foreign if not is_ours(row)]
        print(json.dumps({"options": rows}, indent=1, ensure_ascii=False))
    elif arguments.pending:
        _print_pending(selected)
    elif arguments.name:
        _print_details(selected)
    else:
        _print_list(selected)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darkroom options",
        description="Describe what can be set, and explain where the values of a run come from.",
    )
    parser.add_argument("name", nargs="*", help="options to describe in detail; left out, all are listed")
    parser.add_argument("--json", action="store_true", help="print JSON for other programs")
    parser.add_argument("--search", metavar="WORD", help="only options whose name or sentence has this word")
    parser.add_argument("--pending", action="store_true", help="only what is declared and not offered yet")
    parser.add_argument(
        "--explain",
        nargs=argparse.REMAINDER,
        metavar="CONFIG",
        help="read the arguments that follow as `darkroom train` would, and show each value with its source",
    )
    return parser


# ---- which options ---------------------------------------------------------------------------------------------------


def _select_options(names: Sequence[str], word: str | None, pending: bool) -> list[OptionInfo]:
    selected = [_find_option(name) for name in names] if names else every_option()
    if word is not None:
        selected = [info for info in selected if _mentions(info, word.lower())]
        if not selected:
            raise UserError(f"No option mentions '{word}'.\n  Try another word, or list all with: darkroom options")
    return [info for info in selected if info.pending or info.pending_choices] if pending else selected


def _find_option(name: str) -> OptionInfo:
    plain = name.lstrip("-").replace("-", "_")
    if plain not in option_names():
        hint = find_nearest(plain, option_names())
        suggestion = f"did you mean {' or '.join(hint)}?" if hint else "list all with: darkroom options"
        raise UserError(f"There is no option '{name}'.\n  {suggestion[:1].upper()}{suggestion[1:]}")
    return option_names()[plain]


def _mentions(info: OptionInfo, word: str) -> bool:
    texts = [*info.names, info.help, *map(str, info.choices)]
    return any(word in text.lower() or word.replace(" ", "_") in text.lower() for text in texts)


def as_json(info: OptionInfo) -> dict[str, object]:
    """An option as other programs read it."""
    return {
        "option": info.name,
        "type": info.kind,
        "default": info.default,
        "choices": list(info.choices) or None,
        "aliases": list(info.aliases),
        "section": info.section,
        "help": info.help,
        "families": list(info.families),
        "pending": info.pending or None,
    }


def is_ours(row: ForeignOption) -> bool:
    """Whether an option of another program has the name of one of ours."""
    return row.name in option_names()


def foreign_as_json(row: ForeignOption) -> dict[str, object]:
    """An option of musubi-tuner that is read, as other programs read ours."""
    became = f"becomes {row.to}" if row.to else row.verdict.value
    return {
        "option": row.name,
        "type": row.kind,
        "default": None,
        "choices": None,
        "aliases": [],
        "section": "musubi-tuner",
        "help": f"Of musubi-tuner: {became}{f'; {row.remark}' if row.remark else ''}.",
        "families": [],
        "pending": None,
    }


# ---- printing --------------------------------------------------------------------------------------------------------


def _width() -> int:
    return max(60, min(120, shutil.get_terminal_size((100, 24)).columns))


def _print_list(selected: Sequence[OptionInfo]) -> None:
    for title, infos in _by_section(selected):
        _heading(title)
        for info in infos:
            waiting = " (not offered yet)" if info.pending else ""
            _row(info.name, f"{info.help}{waiting}")


def _print_details(selected: Sequence[OptionInfo]) -> None:
    for number, info in enumerate(selected):
        if number:
            print()
        _heading(info.name, gap=False)
        print(_wrap(info.help, 2))
        for name, words in [("Section", info.section), *facts_of(info)]:
            _row(name, words, column=20)


def _print_pending(selected: Sequence[OptionInfo]) -> None:
    for title, infos in _by_section(selected):
        _heading(title)
        for info in infos:
            if info.pending:
                _row(info.name, info.pending)
                continue
            for reason in dict.fromkeys(info.pending_choices.values()):
                names = [str(choice) for choice, cause in info.pending_choices.items() if cause == reason]
                _row(info.name, f"{', '.join(names)}: {reason}")


def _by_section(selected: Sequence[OptionInfo]) -> Iterable[tuple[str, list[OptionInfo]]]:
    for section in SECTIONS:
        infos = [info for info in selected if info.page == section.page]
        if infos:
            yield section.title, infos


def _heading(text: str, gap: bool = True) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{chr(10) if gap else ''}{bold}{text}{plain}")


def _row(name: str, words: str, column: int = 44) -> None:
    """A name and its words, which start at `column`, or below when the name is too long."""
    head = f"  {name}"
    start = head.ljust(column) if len(head) < column else f"{head}\n{' ' * column}"
    print(redact(start + _wrap(words, column).lstrip()))


def _wrap(text: str, indent: int) -> str:
    blank = " " * indent
    return textwrap.fill(text, _width(), initial_indent=blank, subsequent_indent=blank, break_on_hyphens=False)


# ---- explaining ------------------------------------------------------------------------------------------------------


def _explain(argv: Sequence[str], names: Sequence[str], as_machine: bool) -> int:
    """Resolve as a run would, and print what is not a default (or the named options) with its source."""
    words = [word for word in argv if word != "--json"]
    resolved = resolve(words, os.environ, Path.cwd(), _family_defaults, partial=True)
    _validate(resolved)
    requested = {_find_option(name).name for name in names}
    selected = [
        info
        for info in every_option()
        if (info.name in requested if requested else as_machine or resolved.sources[info.name] != DEFAULT)
    ]
    if as_machine or len(words) != len(argv):
        _explain_as_json(resolved, selected)
        return 0
    print(f"Config file: {resolved.path or 'none'}")
    for title, infos in _by_section(selected):
        _heading(title)
        for info in infos:
            value = info.show(info.safe(getattr(resolved.config, info.name)))
            _row(f"{info.name} = {value}", resolved.sources[info.name])
    if resolved.notes:
        _heading("Notes")
        for note in resolved.notes:
            print(redact(_wrap(str(note), 2)))
    return 0


def _validate(resolved: Resolved) -> None:
    """Raises ConfigErrors for options that contradict each other, as `darkroom train` does."""
    from darkroom import families
    from darkroom.families.shared.rule_facts import family_facts
    from darkroom.options.conflicts import validate_options

    config = resolved.config
    family = families.get(config.model_family, config.model_flavour)
    if errors := validate_options(config, resolved.sources, family_facts(family, config)):
        raise ConfigErrors(errors)


def _explain_as_json(resolved: Resolved, selected: Sequence[OptionInfo]) -> None:
    options = [
        {
            "option": info.name,
            "value": info.safe(getattr(resolved.config, info.name)),
            "source": resolved.sources[info.name],
        }
        for info in selected
    ]
    notes = [{"option": n.option, "value": n.value, "source": n.source, "reason": n.reason} for n in resolved.notes]
    document = {"config": str(resolved.path) if resolved.path else None, "options": options, "notes": notes}
    print(redact(json.dumps(document, indent=1, ensure_ascii=False, default=str)))


def _family_defaults(family: str, flavour: str | None) -> dict[str, object]:
    from darkroom import families

    return dict(families.defaults(family, flavour))
