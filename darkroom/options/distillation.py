"""Training a model to need fewer steps."""

from __future__ import annotations

from typing import ClassVar, Literal

from darkroom.options import later
from darkroom.options.field import SET, Section, option


class DistillationOptions(Section):
    """Training a model to need fewer steps than its teacher."""

    page: ClassVar[str] = "distillation"
    title: ClassVar[str] = "Distillation"

    distillation_method: Literal["lcm", "dcm", "dmd", "perflow"] | None = option(
        None, "The method of distillation, if any.", resume="refuse", level="advanced", pending=later.DISTILLATION
    )
    distillation_config: dict[str, object] | None = option(
        None,
        "Settings of distillation_method.",
        resume="warn",
        json=True,
        level="expert",
        when={"distillation_method": SET},
        pending=later.DISTILLATION,
    )
