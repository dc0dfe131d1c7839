"""musubi-tuner's file of sample prompts: lines with switches, or the same as TOML or a list of JSON.

    a red fox --w 832 --h 480 --f 33 --s 20 --d 7 --l 5 --n blurry

A switch of a prompt counts for its images alone; what it leaves out is as the validation options say.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from darkroom.core.errors import ConfigError
from darkroom.core.registry import find_nearest

SWITCHES: Mapping[str, str] = {
    "w": "width", "h": "height", "f": "frame_count", "d": "seed", "s": "sample_steps", "g": "guidance_scale",
    "fs": "discrete_flow_shift", "l": "cfg_scale", "n": "negative_prompt", "i": "image_path", "ei": "end_image_path",
    "ci": "control_image_path",
}  # fmt: skip
NOT_OFFERED = {
    "cn": "control_video_path", "of": "one_frame", "sampler_preset": "sampler_preset",
    "editing_scheduler": "editing_scheduler", "layout_bboxes": "layout_bboxes",
}  # fmt: skip
_IMAGES = ("image_path", "end_image_path", "control_image_path")


def _number(text: object) -> float:
    return float(str(text))


def _whole(text: object) -> int:
    return int(_number(text))


OPTIONS: Mapping[str, tuple[str, Callable[[object], object]]] = {
    "frame_count": ("validation_num_video_frames", lambda text: max(1, (_whole(text) - 1) // 4 * 4 + 1)),
    "seed": ("validation_seed", _whole),
    "sample_steps": ("validation_num_inference_steps", lambda text: min(max(_whole(text), 1), 1000)),
    "guidance_scale": ("validation_guidance", _number),
    "discrete_flow_shift": ("flow_schedule_shift", _number),
    "cfg_scale": ("validation_guidance_real", _number),
    "negative_prompt": ("validation_negative_prompt", str),
}
"""Keys to options, and how their values are read; frames are rounded down to 4n + 1."""


def is_sample_file(path: Path, text: str) -> bool:
    """Is this a file of sample prompts, and no library of names and prompts?"""
    return path.suffix in (".txt", ".toml") or text.lstrip()[:1] == "["


def read_sample_prompts(path: Path, text: str, option: str) -> dict[str, dict[str, object]]:
    """Entries as a library has them, `prompt`, `image` and `settings`, by `sample_00`, `sample_01`...

    Raises ConfigError for a switch that there is not, one that no image here can follow, and an entry of another type.
    """
    rows = [_parse_line(line, path, option) for line in _list_rows(path, text, option)]
    return {f"sample_{number:02d}": _entry(row, path, option) for number, row in enumerate(rows)}


def _list_rows(path: Path, text: str, option: str) -> list[object]:
    if path.suffix == ".txt":
        return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        document = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as wrong:
        raise ConfigError(option, str(path), "", f"The file cannot be read: {wrong}.", "Correct it.") from None
    if isinstance(document, list):
        return document
    table = document.get("prompt", {})
    subsets = table.pop("subset", [{}]) if isinstance(table, dict) else None
    if not isinstance(subsets, list) or not all(isinstance(subset, dict) for subset in subsets):
        remedy = "Write a table [prompt], and [[prompt.subset]] for each prompt."
        raise ConfigError(option, str(path), "", "The file has no prompts as tables.", remedy)
    return [{**table, **subset} for subset in subsets]


def _parse_line(row: object, path: Path, option: str) -> dict[str, object]:
    """A line or an object as keys. Every switch begins with a space and two hyphens."""
    if isinstance(row, dict):
        return row
    if not isinstance(row, str):
        problem = f"The entry '{row}' is neither a text nor an object with a 'prompt'."
        raise ConfigError(option, str(path), "", problem, 'Write "a prompt" or {"prompt": "..."}.')
    prompt, *parts = re.split(r"\s--(?=[A-Za-z])", f" {row.strip()}")
    keys: dict[str, object] = {"prompt": prompt.strip()}
    images: dict[str, list[str]] = {}
    for part in parts:
        switch, _, value = part.strip().partition(" ")
        name = switch.lower()
        if name not in SWITCHES and name not in NOT_OFFERED:
            hint = find_nearest(name, [*SWITCHES, *NOT_OFFERED])
            problem = f"A prompt has no switch --{switch}" + (f"; did you mean --{hint[0]}?" if hint else ".")
            raise ConfigError(option, str(path), "", problem, f"Use one of {', '.join(f'--{s}' for s in SWITCHES)}.")
        key = SWITCHES.get(name) or NOT_OFFERED[name]
        if key in _IMAGES:
            images.setdefault(key, []).append(value.strip())
        else:
            keys[key] = value.strip()
    return keys | images


def _entry(row: Mapping[str, object], path: Path, option: str) -> dict[str, object]:
    settings: dict[str, object] = {}
    size: dict[str, int] = {}
    images: list[str] = []
    for key, value in row.items():
        if key in NOT_OFFERED.values():
            problem = f"{key} of a sample prompt is not offered here."
            raise ConfigError(option, str(path), "", problem, "Take it out of the prompt.")
        try:
            if key in OPTIONS:
                name, read = OPTIONS[key]
                settings[name] = read(value)
            elif key in ("width", "height"):
                size[key] = _whole(value) // 8 * 8
        except (ValueError, OverflowError):
            problem = f"{key} is '{value}', which is no number."
            raise ConfigError(option, str(path), "", problem, "Correct it.") from None
        if key in _IMAGES:
            images += map(str, value) if isinstance(value, list) else [str(value)]
    if size:
        settings["validation_resolution"] = "{width}x{height}".format_map({"width": 256, "height": 256} | size)
    return {"prompt": str(row.get("prompt", "")), "image": images, "settings": settings}
