"""What became of every key of another trainer's config: the answer that all importers give.

ImportedKey("network_dim", 32, Verdict.EXACT, {"lora_rank": 32})
ImportedKey("network_dropout", 0.1, Verdict.APPROXIMATED, {"lora_dropout": 0.1}, "it drops the input of the adapter")
ImportedKey("scale_weight_norms", 1.0, Verdict.NOT_OFFERED, {}, "weights of an adapter are never rescaled")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Verdict(StrEnum):
    """Whether a key of another trainer does here what it does there."""

    EXACT = "exact"
    APPROXIMATED = "approximated"
    NOT_OFFERED = "not offered"


@dataclass(frozen=True)
class ImportedKey:
    """One key that was given, and what it became.

    settings  options of Darkroom and their values; empty where the key needs none
    remark    how it is approximated, why it is not offered, or why nothing has to be set; starts in lower case
    trains    whether a key that is not offered would have changed what is trained
    """

    key: str
    value: object
    verdict: Verdict
    settings: Mapping[str, object] = field(default_factory=dict)
    remark: str = ""
    trains: bool = False

    def __str__(self) -> str:
        became = ", ".join(f"{name} = {_show(value)}" for name, value in self.settings.items())
        words = "; ".join(part for part in (became, self.remark) if part)
        return f"{self.key} = {_show(self.value)}: {words or 'nothing to set'}"


@dataclass(frozen=True)
class ForeignOption:
    """One option of another trainer, as its documentation has it and as it is read here.

    kind    `switch`, `integer`, `number`, `text` or `list`
    to      the option of Darkroom that it becomes; empty where there is none, or where the value decides
    remark  a sentence for the page and for `darkroom options NAME`
    trains  whether leaving it out changes what is trained
    """

    name: str
    kind: str
    verdict: Verdict
    to: str = ""
    remark: str = ""
    trains: bool = False


@dataclass(frozen=True)
class Imported:
    """A config of another trainer, read.

    settings  options of Darkroom and their values, in the order in which they are written
    rows      one per key that was given
    datasets  the dataset file to write beside the config, as text or as entries; None where the config names one that
              stays
    prompts   a library of validation prompts to write beside the config
    command   the command of Darkroom that does what was asked, with {config} for the file that is written
    """

    program: str
    subject: str
    name: str
    settings: Mapping[str, object]
    rows: Sequence[ImportedKey]
    datasets: str | Sequence[Mapping[str, object]] | None = None
    prompts: Mapping[str, object] | None = None
    command: str = "darkroom train {config}"
    remarks: Sequence[str] = ()

    def count(self, verdict: Verdict) -> int:
        """How many keys have this verdict."""
        return sum(row.verdict is verdict for row in self.rows)

    def as_json(self) -> dict[str, object]:
        """The report as other programs read it."""
        return {
            "program": self.program,
            "subject": self.subject,
            "settings": dict(self.settings),
            "keys": [
                {
                    "key": row.key,
                    "value": row.value,
                    "verdict": row.verdict.value,
                    "settings": dict(row.settings),
                    "remark": row.remark,
                }
                for row in self.rows
            ],
            "remarks": list(self.remarks),
            "command": self.command,
        }

    def as_text(self) -> str:
        """The report as a page: what is not offered first, as that is what a reader has to know."""
        lines = [f"# {self.program}: {self.subject}", ""]
        counts = ", ".join(f"{self.count(verdict)} {verdict.value}" for verdict in Verdict)
        lines += [f"{len(self.rows)} keys: {counts}.", ""]
        lines += [f"{remark}\n" for remark in self.remarks]
        for verdict in (Verdict.NOT_OFFERED, Verdict.APPROXIMATED, Verdict.EXACT):
            rows = [row for row in self.rows if row.verdict is verdict]
            if rows:
                lines += [f"## {verdict.value.capitalize()}", "", *(f"- {row}" for row in rows), ""]
        return "\n".join([*lines, f"Next: {self.command}", ""])


def _show(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
