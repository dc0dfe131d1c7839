"""When the state of a run is saved, how many states are kept, and which one a run continues from."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator

from darkroom.core.units import parse_size
from darkroom.options.field import SET, Section, option


class CheckpointOptions(Section):
    """Saving, keeping and resuming."""

    page: ClassVar[str] = "checkpoint"
    title: ClassVar[str] = "Checkpoints"

    checkpoint_step_interval: int = option(
        500, "Save every this many updates; 0 never.", resume="free", aliases=("checkpointing_steps",), ge=0
    )
    checkpoint_epoch_interval: int | None = option(
        None, "Save at the end of every n-th epoch.", off=True, resume="free", ge=1
    )
    checkpoints_total_limit: int = option(
        5,
        "Keep this many checkpoints and delete the oldest; 0 keeps all.",
        resume="free",
        aliases=("save_total_limit",),
        ge=0,
    )
    checkpointing_rolling_steps: int = option(
        0,
        "Also save every this many updates into a rolling checkpoint, which is soon replaced; 0 never.",
        resume="free",
        ge=0,
        level="advanced",
    )
    checkpoints_rolling_total_limit: int = option(
        1,
        "Keep this many rolling checkpoints.",
        resume="free",
        ge=1,
        level="advanced",
        when={"checkpointing_rolling_steps": SET},
    )
    checkpointing_use_tempdir: bool = option(
        True,
        "Write into a folder ending in -tmp and rename it when complete; Darkroom always does.",
        resume="free",
        level="expert",
    )
    resume_from_checkpoint: str | None = option(
        "latest",
        "Continue from the latest checkpoint, from a named one, or from a path; none or an empty text starts anew.",
        resume="free",
        empty=True,
    )
    disk_low_threshold: str | None = option(
        None,
        "Free disk space that every save needs, such as 20G; left out, nothing is checked.",
        resume="free",
        level="advanced",
    )
    disk_low_action: Literal["stop", "wait", "script"] = option(
        "stop",
        "What to do when less than disk_low_threshold is free.",
        resume="free",
        level="advanced",
        when={"disk_low_threshold": SET},
    )
    disk_low_script: str | None = option(
        None,
        "Program that makes room, run when too little disk space is free.",
        resume="free",
        level="advanced",
        when={"disk_low_action": "script"},
    )

    @field_validator("resume_from_checkpoint", mode="before")
    @classmethod
    def _start_anew(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("disk_low_threshold")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value
