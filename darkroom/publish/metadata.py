"""Text metadata in the header of saved weights, by the modelspec convention (version 1.0.1)."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from darkroom.core.log import HIDDEN, is_secret_variable, redact

if TYPE_CHECKING:
    from darkroom.options.config import Config

_PLACEHOLDER = re.compile(r"\{(env:[A-Za-z_][A-Za-z0-9_]*|current_step|current_epoch|timestamp)\}")


class StepCounter(Protocol):
    """Where a run stands."""

    step: int
    epoch: int


def writer(options: Config, flavour: str, trained_words: Iterable[str]) -> Callable[[StepCounter], dict[str, str]]:
    """A function from the run's counters to metadata; the comment is filled in anew at every save."""
    architecture = f"{options.model_family}-{flavour}".lower().replace(" ", "-")
    suffix = "/lora" if options.model_type == "lora" else ""
    resolution = f"{options.resolution:g}x{options.resolution:g}"
    fixed = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture + suffix,
        "modelspec.implementation": "diffusers",
        "modelspec.title": str(options.tracker_run_name),
        "modelspec.resolution": resolution,
        "model_family": options.model_family,
        "model_flavour": flavour,
        "model_type": options.model_type,
    }
    if words := ", ".join(dict.fromkeys(trained_words)):
        fixed["trained_words"] = words

    def metadata(state: StepCounter) -> dict[str, str]:
        comment = comment_text(options.modelspec_comment, state)
        texts = {**fixed, "global_step": str(state.step), **({"modelspec.comment": comment} if comment else {})}
        return {name: redact(text) for name, text in texts.items()}

    return metadata


def comment_text(comment: object, state: StepCounter) -> str:
    """The comment with its placeholders filled; a list becomes lines."""
    text = "\n".join(map(str, comment)) if isinstance(comment, (list, tuple)) else str(comment or "")

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name.startswith("env:"):
            return HIDDEN if is_secret_variable(name[4:]) else os.environ.get(name[4:], "")
        if name == "timestamp":
            return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return str({"current_step": state.step, "current_epoch": state.epoch}[name])

    return _PLACEHOLDER.sub(fill, text)
