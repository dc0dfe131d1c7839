"""`darkroom families`: what can be trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TypedDict

from darkroom import families
from darkroom.families.base import Family
from darkroom.families.shared.model_spec import flavour_names, resolve_flavour


def run(argv: list[str]) -> int:
    """List families, describe one, or write its tiny model."""
    parser = argparse.ArgumentParser("darkroom families", description="The model families and their flavours.")
    parser.add_argument("name", nargs="?", help="describe this family")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print the page docs/families.md")
    parser.add_argument("--make_tiny", metavar="DIR", help="write the family's tiny random model as a diffusers folder")
    arguments = parser.parse_args(argv)
    names = [arguments.name] if arguments.name else families.names()
    rows = {name: describe(families.load(name)) for name in names}
    if arguments.make_tiny:
        return make_tiny(names, arguments.make_tiny)
    if arguments.markdown:
        print(page(rows, {name: sizes(families.load(name)) for name in names}))
        return 0
    print(json.dumps(rows, indent=2) if arguments.json else "\n\n".join(show(name, row) for name, row in rows.items()))
    return 0


class FlavourRow(TypedDict):
    """A flavour as data."""

    repository: str
    defaults: dict[str, object]
    note: str


class FamilyRow(TypedDict):
    """A family as data."""

    title: str
    pipeline: str
    denoiser: str
    prediction: str
    latents: str
    supports: list[str]
    targets: list[str]
    corrects: str
    default_flavour: str
    flavours: dict[str, FlavourRow]


def describe(family: type[Family]) -> FamilyRow:
    """A family as data."""
    return {
        "title": family.title,
        "pipeline": family.pipeline,
        "denoiser": family.denoiser,
        "prediction": family.prediction,
        "latents": f"{family.latents.channels} channels, 1/{family.latents.downscale} of the size",
        "supports": sorted(resolve_flavour(family, None).supports),
        "targets": sorted(family.targets),
        "corrects": family.corrects,
        "default_flavour": family.default_flavour,
        "flavours": {
            name: {
                "repository": resolve_flavour(family, name).flavour.repository,
                "defaults": dict(resolve_flavour(family, name).defaults),
                "note": "; ".join(
                    filter(None, [resolve_flavour(family, name).flavour.about, *differences(family, name)])
                ),
            }
            for name in flavour_names(family)
        },
    }


def differences(family: type[Family], flavour: str) -> list[str]:
    """What a flavour can do that the default one cannot, and the other way round."""
    supports, usual = resolve_flavour(family, flavour).supports, resolve_flavour(family, None).supports
    words = {"also": supports - usual, "without": usual - supports}
    return [f"{word} {', '.join(sorted(names))}" for word, names in words.items() if names]


def sizes(family: type[Family]) -> dict[str, str]:
    """By flavour: billions of numbers in a denoiser, and the memory that its weights take in 16, 8 and 4 bits."""
    from darkroom.core.units import show_size
    from darkroom.memory.fake import bits_of
    from darkroom.memory.sizes import WIDE, weight_bytes
    from darkroom.pretrained import single_file
    from darkroom.pretrained.components import silence_libraries

    silence_libraries()
    sizes_of: dict[str, str] = {}

    def size(settings: Mapping[str, object]) -> str:
        model = single_file.build_shapes(family.denoiser, settings)
        billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
        byte_counts = [
            weight_bytes(model, family.blocks, bits) for bits in (WIDE, bits_of("fp8-block"), bits_of("nf4-bnb"))
        ]
        return f"{billions:.3g} B: {', '.join(map(show_size, byte_counts))}"

    by_precision = {}
    for flavour in flavour_names(family):
        if (settings := resolve_flavour(family, flavour).denoiser_sizes) is not None:
            key = json.dumps(settings)
            sizes_of[key] = by_precision[flavour] = sizes_of.get(key) or size(settings)
    return by_precision


def page(rows: dict[str, FamilyRow], sizes: dict[str, dict[str, str]]) -> str:
    """docs/families.md: what can be trained, and what each flavour is and sets."""
    lines = [
        "# Families", "",
        "Written by `darkroom families --markdown`. What is proven of each, and how: [conformance](conformance.md).",
        "",
        "Network: numbers in one denoiser, and the memory that its weights take in 16, 8 (`fp8-block`) and 4 bits "
        "(`nf4-bnb`), by the settings under which it was published; left empty where those are not known here. What a "
        "run takes beside them, `darkroom plan` tells.",
    ]  # fmt: skip
    for name, row in rows.items():
        targets = ", ".join(f"`{target}`" for target in row["targets"])
        lines += [
            "", f"## {row['title']} (`{name}`)", "",
            f"- Can do: {', '.join(row['supports'])}",
            f"- Network: `{row['denoiser']}` in `{row['pipeline']}`; answers {row['prediction'].replace('_', ' ')}",
            f"- Latents: {row['latents']}",
            f"- LoRA target lists: {targets}",
            *([f"- Other than in the stock pipeline: {row['corrects']}"] if row["corrects"] else []), "",
            "| Flavour | Weights | Network | Defaults | |", "|---|---|---|---|---|",
        ]  # fmt: skip
        for flavour, facts in row["flavours"].items():
            mark = "; the default" if flavour == row["default_flavour"] else ""
            settings = ", ".join(f"{key} {value}" for key, value in sorted(facts["defaults"].items()))
            size = sizes[name].get(flavour, "")
            lines.append(f"| `{flavour}`{mark} | {facts['repository']} | {size} | {settings} | {facts['note']} |")
    return "\n".join(lines)


def show(name: str, row: FamilyRow) -> str:
    """A family for a person."""
    lines = [f"{name}: {row['title']} ({row['prediction']}; {row['latents']}; {', '.join(row['supports'])})"]
    for flavour, facts in row["flavours"].items():
        mark = " (default)" if flavour == row["default_flavour"] else ""
        note = f": {facts['note']}" if facts["note"] else ""
        lines.append(f"  {flavour}{mark}  {facts['repository']}{note}")
    return "\n".join(lines)


def make_tiny(names: list[str], folder: str) -> int:
    """Write tiny models, one folder per family."""
    from pathlib import Path

    from darkroom.families import tiny
    from darkroom.pretrained.components import silence_libraries

    silence_libraries()
    for name in names:
        target = Path(folder) / name if len(names) > 1 else Path(folder)
        tiny.build(families.get(name)).save_pretrained(target)
        print(f"{name}: {target}")
    return 0
