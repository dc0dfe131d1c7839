"""Which modules a LoRA adapts: a list of the user's, a preset of the family's, or everything linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from darkroom.core.errors import ConfigError
from darkroom.core.registry import nearest


def target_modules(options: Any, presets: Mapping[str, Sequence[str]]) -> list[str] | str:
    """Module names, name endings or a regular expression, as peft takes them. Raises ConfigError for an unknown preset.

    Precedence: `peft_lora_target_modules` (a list, a preset name, a regular expression or `all-linear`), then
    `flux_lora_target`, then the family's default.
    """
    chosen = options.peft_lora_target_modules
    if isinstance(chosen, (list, tuple)) and chosen:
        return list(chosen)
    if isinstance(chosen, str) and chosen:
        return list(presets[chosen]) if chosen in presets else chosen
    preset = options.flux_lora_target
    if preset and len(presets) > 1:
        if preset not in presets:
            hint = ", ".join(nearest(preset, presets) or presets)
            raise ConfigError(
                "flux_lora_target",
                preset,
                "",
                "This preset needs a ControlNet, which this run does not train.",
                f"Choose one of: {hint}; or list module names in peft_lora_target_modules.",
            )
        return list(presets[preset])
    return list(presets["default"])
