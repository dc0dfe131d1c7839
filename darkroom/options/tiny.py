"""Trying a config at the `tiny` flavour unchanged: what its numbers and names are there.

A tiny network has two blocks and random weights. What a config says about blocks further back or about published
weights cannot be meant for it, and becomes the nearest that can, with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

TINY = "tiny"

LIMITS: Mapping[str, int] = {
    "musubi_blocks_to_swap": 1,
    "layersync_student_block": 1,
    "layersync_teacher_block": 2,
}
"""Numbers of blocks, and how large they may be where there are two."""

WEIGHTS = (
    "pretrained_model_name_or_path",
    "pretrained_transformer_model_name_or_path",
    "pretrained_unet_model_name_or_path",
    "pretrained_vae_model_name_or_path",
    "pretrained_t5_model_name_or_path",
    "pretrained_gemma_model_name_or_path",
    "controlnet_model_name_or_path",
    "assistant_lora_path",
    "init_lora",
    "revision",
    "variant",
)
"""Options that name published weights. A local folder or file is taken as it is, so that a tiny one can be given."""

SIZES = ("validation_resolution",)
"""Options that the tiny flavour has values of its own for: its networks have few positions."""


def is_tiny(flavour: str) -> bool:
    """Is this a flavour of random weights: `tiny`, or a variant of it such as `tiny-i2v`?"""
    return flavour == TINY or flavour.startswith(f"{TINY}-")


def fit(values: Mapping[str, object], is_local: Callable[[str], bool]) -> dict[str, tuple[object, str]]:
    """What has to change at `tiny`: option to its value there, None to leave it out, and why."""
    changed: dict[str, tuple[object, str]] = {}
    for name, limit in LIMITS.items():
        number = _read_number(values.get(name))
        if number is not None and number > limit:
            changed[name] = limit, f"{limit} at tiny, whose network has two blocks"
    for name in WEIGHTS:
        value = values.get(name)
        if isinstance(value, str) and value.strip() and not is_local(value):
            changed[name] = None, "left out at tiny, whose weights are random"
    for name in SIZES:
        if values.get(name) not in (None, ""):
            changed[name] = None, "at tiny, images are drawn in the size of its own"
    return changed


def _read_number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
