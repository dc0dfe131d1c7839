"""The page about musubi-tuner's options, made from the table of them."""

from __future__ import annotations

from darkroom.options.imports.musubi.options import OPTIONS
from darkroom.options.imports.report import ForeignOption, Verdict
from darkroom.options.origins.musubi import ORIGIN

_HEAD = (
    "# musubi-tuner's options\n\n"
    "[All options](README.md)\n\n"
    "`darkroom import musubi SCRIPT FLAGS...` reads a command, and `darkroom train --config_file x.toml` a file of "
    "arguments. The report of an import says the same for the values that it met. An option that is not offered and "
    "changes what is trained is refused by `train`, unless `ignore_unsupported` is true; an import leaves it out.\n"
)


def page_text() -> str:
    """Every option with what becomes of it, and the defaults that hold for a config of musubi-tuner's."""
    counts = ", ".join(f"{sum(row.verdict is v for row in OPTIONS.values())} {v.value}" for v in Verdict)
    defaults = [f"| `{name}` | `{value}` |" for name, value in ORIGIN.defaults.items()]
    rows = [f"| `{row.name}` | {row.verdict.value} | {_became(row)} |" for row in OPTIONS.values()]
    return "\n".join(
        [
            _HEAD,
            f"{len(OPTIONS)} options: {counts}.",
            "",
            "| Option | Verdict | Becomes |",
            "|---|---|---|",
            *rows,
            "",
            "## Defaults",
            "",
            "These hold for what such a config leaves out; `defaults` set to `darkroom` takes Darkroom's.",
            "",
            "| Option | Value |",
            "|---|---|",
            *defaults,
            "",
        ]
    )


def _became(row: ForeignOption) -> str:
    words = "; ".join(part for part in (f"`{row.to}`" if row.to else "", row.remark.replace("|", "\\|")) if part)
    return f"{words} (changes what is trained)" if row.trains else words
