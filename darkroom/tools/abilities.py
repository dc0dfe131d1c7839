"""What works now and what is refused for now, from registries and declarations: the tables in README.md.

python -m darkroom.tools.abilities          writes it
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from darkroom import adapters, families, storage
from darkroom.core.files import write_text
from darkroom.data.index.captions import SOURCES
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.memory import quantize
from darkroom.optim.table import OPTIMIZERS
from darkroom.options.config import option_info, option_names
from darkroom.report import trackers

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- written by python -m darkroom.tools.abilities -->", "<!-- end of what is written -->"


def table() -> str:
    """Both tables, as Markdown."""
    titles = ", ".join(families.get(name).title for name in families.names())
    works: dict[str, str] = {
        "Families": f"{titles}; each also as `tiny`, random weights to try things",
        "Trained": f"{_names(adapters.ADAPTERS)}; ControlNets: {_having('controlnet')}; control pictures as channels: "
        f"{_having('control')}; text encoders: {_having('train_text_encoder')}",
        "Optimizers": f"{_names(OPTIMIZERS)}; any class by import path",
        "Frozen weights in fewer bits": _names(quantize.find_quantizers()),
        "Datasets from": _names(storage.STORES),
        "Captions from": _names(SOURCES),
        "Trackers": _names(trackers.TRACKERS_BY_NAME),
    }
    lines = ["| Part | Works now |", "|---|---|", *(f"| {part} | {state} |" for part, state in works.items())]
    lines += ["", "| Refused for now, with this reason | Options and choices |", "|---|---|"]
    rows = (
        f"| {reason} | {', '.join(f'`{name}`' for name in names)} |" for reason, names in sorted(list_refused().items())
    )
    return "\n".join([*lines, *rows])


def list_refused() -> dict[str, list[str]]:
    """Options, and choices as `option=choice`, that are declared and not offered yet, by the reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for info in map(option_info, option_names()):
        if info.pending:
            reasons[info.pending].append(info.name)
        for choice, reason in (info.pending_choices or {}).items():
            reasons[reason].append(f"{info.name}={choice}")
    return reasons


def _having(method: str) -> str:
    loaded = [families.load(name) for name in families.names()]
    return _names(
        f.name for f in loaded if any(method in resolve_flavour(f, flavour).supports for flavour in f.flavours)
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def page(text: str) -> str:
    """The README with the tables in their place."""
    before, _, remaining = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{remaining.partition(END)[2]}"


if __name__ == "__main__":
    write_text(README, page(README.read_text(encoding="utf-8")))
