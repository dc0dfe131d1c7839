"""Names say what a value is, in the words of the field: each banned word has one to use instead.

The words are counted in the identifiers that the package defines: functions, classes, arguments, variables, attributes.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "darkroom"
# every layer
LAYERS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())

# as one word of a name: `kept_file`, `_hollow_parts`
WORDS: Mapping[str, str] = {
    "picture": "image",
    "pictures": "images",
    "film": "video, or clip for a trained piece of one",
    "films": "videos",
    "sounds": "audio",
    "hollow": "fake",
    "twin": "master parameter",
    "twins": "master_parameters",
    "shelf": "quantized_cache_dir",
    "settle": "collect_offloaded_grads",
    "kept": "cached, or what it is",
    "seen": "what was collected",
    "told": "what was passed",
    "wanted": "required",
    "drawn": "rendered, or sampled",
    "beside": "extra, or conditioning",
    "apart": "extra_modules, or separate",
    "overheard": "auxiliary_losses",
    "bystander": "frozen component",
    "companion": "conditioning dataset",
    "companions": "conditioning datasets",
    "widen": "add_input_channels",
    "widened": "dequantized, or double_inputs",
    "narrowed": "quantized",
    "straighten": "realign_storage",
    "lend": "share_modules",
    "rehearse": "dry_run",
    "found": "what was found",
    "made": "what was made",
    "given": "what was passed",
    "thing": "what it is",
    "things": "what they are",
    "mine": "whose it is, in a noun",
    "theirs": "whose it is, in a noun",
    "quantise": "quantize",
    "quantised": "quantized",
    "quantiser": "quantizer",
    "normalise": "normalize",
    "normalised": "normalized",
    "normaliser": "normalizer",
    "colour": "color",
    "colours": "colors",
    "grey": "gray",
    "behaviour": "behavior",
}
# as a whole name; behind a layer only there
NAMES: Mapping[str, str] = {
    "Parts": "Components",
    "Part": "ComponentSpec",
    "Tiny": "ComponentSpecs",
    "Placement": "MemoryPolicy",
    "placement": "memory_policy",
    "Look": "ReferenceImage, or DecodedSample",
    "Team": "ProcessGroup",
    "Needs": "DataRequirements",
    "Watch": "debug log",
    "Release": "RunResult",
    "released": "export_result",
    "Released": "PerParameterOptimizer",
    "Offloaded": "OffloadedOptimizer",
    "Made": "Rendered",
    "Wrapped": "DenoiserWrapper",
    "optim/Shape": "ScheduleShape",
    "memory/Stream": "WeightStreamer",
    "memory/Kind": "RepeatedBlocks",
    "pretrained/kinds": "specs",
    "job/kinds": "groups",
    "tiny_for": "specs_for",
    "held_for": "denoiser_components_for",
    "trained_for": "trainable_components_for",
    "embedded_call": "pipeline_kwargs_from_embeds",
    "prompt_call": "pipeline_kwargs_from_prompt",
    "size_call": "size_kwargs",
    "families/conditions": "model_inputs",
    "families/portion": "slice_batch",
    "stand_ins": "dummy_components",
    "can_keep": "is_serializable",
    "let_go": "detach_from_mmap",
    "job/opened": "open_run",
    "dumped": "config_as_dict",
    "data/survey": "build_index",
    "data/decide": "assign_buckets",
}
# names that options, files and other layers' steps have
FORMATS: Mapping[str, tuple[str, ...]] = {
    # as scenes and their checks are written down
    "demo/checker.py": {"colour"},
    "demo/pictures.py": {"colour", "COLOURS", "with_colour"},
    "core/events.py": ("pictures",),
    "validate/recipe.py": ("pictures", "told"),
    "options/data.py": ("vae_cache_scan_behaviour",),
    "options/families.py": ("sd3_clip_uncond_behaviour", "sd3_t5_uncond_behaviour"),
    "options/precision.py": ("keep_quantised_weights",),
    "report/dataset_facts.py": ("beside",),
    "report/eventlog.py": ("pictures",),
}

# a function is named by an order, as in `load_denoiser`, and not by what was done, as in `prepared`
MAX_SHARE = 0.03
IRREGULAR = frozenset((
    "made", "found", "kept", "given", "told", "held", "drawn", "seen", "got", "said", "known", "left", "taken", "shown",
    "meant", "laid", "lent", "sent", "written", "begun", "built", "bought", "brought", "broken", "caught", "chosen",
    "done", "driven", "fed", "felt", "forgotten", "frozen", "grown", "heard", "hidden", "hung", "lost", "met", "paid",
    "proven", "sought", "sold", "slept", "spent", "stood", "stuck", "struck", "sung", "sunk", "swept", "sworn",
    "taught", "thought", "thrown", "torn", "understood", "undone", "won", "worn", "overheard", "apart",
))  # fmt: skip
NOT_PARTICIPLES = frozenset((
    "need", "feed", "seed", "speed", "embed", "shed", "proceed", "exceed", "succeed", "red", "bed", "hundred", "indeed",
))  # fmt: skip


def words(name: str) -> list[str]:
    """The words of a name, in small letters.

    >>> words("_FakeComponents"), words("keep_it")
    (['fake', 'components'], ['keep', 'it'])
    """
    return [word.lower() for part in name.split("_") for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", part)]


def is_participle(name: str) -> bool:
    """Does a function's name begin with what was done?

    >>> is_participle("_prepared_batch"), is_participle("prepare_batch"), is_participle("embed")
    (True, False, False)
    """
    first = (words(name) or [""])[0]
    return first in IRREGULAR or (first not in NOT_PARTICIPLES and len(first) > 4 and first.endswith("ed"))


class Name(NamedTuple):
    """A name that the package defines, and where."""

    path: str
    line: int
    name: str
    is_function: bool


@functools.cache
def names_of(layer: str) -> list[Name]:
    """The names of a layer: functions, classes, arguments, variables, attributes."""
    found = []
    for path in sorted((PACKAGE / layer).rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.append(Name(where, node.lineno, node.name, not isinstance(node, ast.ClassDef)))
            elif isinstance(node, ast.arg):
                found.append(Name(where, node.lineno, node.arg, False))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.append(Name(where, node.lineno, node.id, False))
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.append(Name(where, node.lineno, node.attr, False))
    return found


@functools.cache
def replacement(name: str, layer: str) -> str:
    """What to use in place of a name; empty if it may stay."""
    whole = NAMES.get(name) or NAMES.get(f"{layer}/{name}")
    return whole or next((WORDS[word] for word in words(name) if word in WORDS), "")


def test_no_name_uses_a_word_of_its_own_for_what_the_field_has_a_word_for():
    banned = [
        f"darkroom/{path}:{line}: {name}; use: {better}"
        for layer in LAYERS
        for path, line, name, _ in names_of(layer)
        if (better := replacement(name, layer)) and name not in FORMATS.get(path, ())
    ]
    assert not banned, "\n".join(banned)


def test_functions_are_named_by_orders():
    shares = {}
    for layer in LAYERS:
        names = [name for _, _, name, is_function in names_of(layer) if is_function]
        participles = [name for name in names if is_participle(name)]
        if len(participles) > MAX_SHARE * len(names):
            shares[layer] = f"{len(participles)} of {len(names)}: {', '.join(participles)}"
    assert not shares


def test_the_words_are_told_from_others():
    assert replacement("_kept_file", "memory") == WORDS["kept"]
    assert replacement("HollowParts", "pretrained") == WORDS["hollow"]
    assert replacement("Kind", "memory")
    assert not replacement("Kind", "options")
    assert not replacement("load_denoiser", "job")
    assert all(map(is_participle, ("drawn", "kept_in", "_made", "embedded_call")))
    assert not any(map(is_participle, ("read", "embed", "load_denoiser")))


def test_a_name_is_let_pass_only_where_it_is():
    defined = {(path, name) for layer in LAYERS for path, _, name, _ in names_of(layer)}
    assert {(path, name) for path, names in FORMATS.items() for name in names} <= defined
