"""Which modules a LoRA adapts: a list of the user's, a preset of the family's, or everything linear."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from darkroom.core.errors import ConfigError
from darkroom.core.registry import find_nearest
from darkroom.options.config import option_info

if TYPE_CHECKING:
    from darkroom.options.config import Config

ALL_LINEAR = "all-linear"
_PATTERN = re.compile(r"[*+?^$|()\[\]\\]")


def target_modules(options: Config, presets: Mapping[str, Sequence[str]]) -> list[str] | str:
    """Module names, name endings or a regular expression, as peft takes them. Raises ConfigError for an unknown preset.

    Precedence: `peft_lora_target_modules` (names, or one entry that is a preset, a regular expression or `all-linear`),
    then `flux_lora_target` for the families that have that option, then the family's default.
    """
    entries = options.peft_lora_target_modules
    if entries:
        return _resolve_entries(list(entries), presets)
    preset = options.flux_lora_target
    if preset and options.model_family in option_info("flux_lora_target").families:
        if preset not in presets:
            hint = ", ".join(find_nearest(preset, presets) or presets)
            raise ConfigError(
                "flux_lora_target",
                preset,
                "",
                "This family has no such list of layers.",
                f"Choose one of: {hint}; or list module names in peft_lora_target_modules.",
            )
        return list(presets[preset])
    return list(presets["default"])


def _resolve_entries(names: list[str], presets: Mapping[str, Sequence[str]]) -> list[str] | str:
    """One entry may stand for many modules; several are names."""
    if len(names) > 1:
        return names
    (name,) = names
    if name in presets:
        return list(presets[name])
    # peft takes a text as a regular expression for the whole name, and this word for every linear layer
    return name if name == ALL_LINEAR or _PATTERN.search(name) else names
