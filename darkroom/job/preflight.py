"""Everything that can fail, before weights load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darkroom import families
from darkroom.core.errors import ConfigError, ConfigErrors, missing_option
from darkroom.families.base import Family
from darkroom.optim.table import row_of
from darkroom.options import conflicts
from darkroom.options.sources import Note, Resolved
from darkroom.validate import schedulers
from darkroom.validate.prompts import Prompt, collect


def check(resolved: Resolved) -> tuple[Family, list[Prompt]]:
    """The run's family and its validation prompts. Raises ConfigErrors with all that is wrong at once."""
    config = resolved.config
    family = families.get(config.model_family)
    errors = list(conflicts.check(config, resolved.sources, facts(family)))
    prompts: list[Prompt] = []
    for probe in (
        lambda: _flavour(family, config),
        lambda: row_of(config.optimizer),
        lambda: schedulers.changes(config, family.prediction == "flow_matching"),
        lambda: prompts.extend(collect(config)),
        lambda: _writable(Path(config.output_dir)),
    ):
        try:
            probe()
        except ConfigErrors as several:
            errors += several.errors
        except ConfigError as one:
            errors.append(one)
    if errors:
        raise ConfigErrors(errors)
    return family, prompts


def remarks(resolved: Resolved, family: Family) -> list[Note]:
    """What a person should know of these settings although nothing is wrong with them."""
    config, sources = resolved.config, resolved.sources
    notes = [*resolved.notes, *conflicts.remarks(config, sources, facts(family))]
    if not config.checkpointing_use_tempdir:
        reason = "no effect: checkpoints are always completed in a folder of their own and then renamed"
        notes.append(Note("checkpointing_use_tempdir", False, sources["checkpointing_use_tempdir"], reason))
    return notes


def facts(family: Family) -> conflicts.FamilyFacts:
    """What conflict rules need to know of a family."""
    return conflicts.FamilyFacts(
        family=family.name,
        title=family.title,
        prediction="flow" if family.prediction == "flow_matching" else family.prediction,
        guidance_input=family.guidance_input,
        supports=family.supports,
    )


def _flavour(family: Family, config: Any) -> None:
    if config.model_flavour and config.model_flavour not in family.flavour_names():
        raise missing_option(
            "model_flavour",
            f"{family.title} has no flavour '{config.model_flavour}'.",
            f"Choose one of: {', '.join(family.flavour_names())}.",
        )


def _writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as cause:
        raise ConfigError(
            "output_dir", str(output), "", f"Nothing can be written there: {cause.strerror}.", "Choose another folder."
        ) from cause
