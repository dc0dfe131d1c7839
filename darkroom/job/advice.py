"""What to change so that a run fits into the memory there is, cheapest first, found by forecasting it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from darkroom.core.device import is_host, run_device
from darkroom.core.errors import DarkroomError
from darkroom.job import preflight
from darkroom.job.forecast import ADVICE, LATENTS, LOAD, PICTURE, SAVE, STEP, TEXT, Forecast, Forecaster
from darkroom.memory import place
from darkroom.options import conflicts
from darkroom.options.sources import Resolved

Change = Mapping[str, Any]


def cheaper(config: Any, blocks: int) -> Iterator[tuple[set[str], Change]]:
    """Changes of options, those that cost least first, each with the phases that it makes smaller.

    `blocks` is how many the denoiser has.
    """
    yield {LATENTS}, {"vae_batch_size": 1}
    yield {LATENTS, PICTURE}, {"vae_enable_tiling": True}
    yield {STEP}, {"gradient_checkpointing": True}
    yield {STEP, LOAD, PICTURE, SAVE}, {"base_model_precision": "fp8-block"}
    # as many samples a step as before
    samples = config.gradient_accumulation_steps * config.train_batch_size
    yield {STEP}, {"train_batch_size": 1, "gradient_accumulation_steps": samples}
    if blocks > 1 and not is_host(run_device()):  # elsewhere what waits takes room, and leaves none
        yield {STEP, PICTURE, SAVE}, {"musubi_blocks_to_swap": blocks // 2}
        yield {STEP, PICTURE, SAVE}, {"musubi_blocks_to_swap": blocks - 1}
    yield {STEP, LOAD, PICTURE, SAVE}, {"base_model_precision": "nf4-bnb"}
    yield {TEXT}, {"text_encoder_1_precision": "int8-quanto", "text_encoder_2_precision": "int8-quanto"}


@dataclasses.dataclass(frozen=True)
class Adviser:
    """Tries changes of one run. `plan` has its scanned datasets, `prompts` what validation draws.

    `forecaster` is the one of the run as it is, whose phases are taken over where a change leaves them alone.
    """

    resolved: Resolved
    family: Any
    plan: Any
    prompts: Any
    forecaster: Forecaster

    def advise(self, wrong: Forecast) -> Change | None:
        """The cheapest change with which a run fits that does not: each alone, then one after the other together.

        None if nothing is enough.
        """
        phases = {phase.phase for phase in wrong.too_large}
        every = [row for row in cheaper(self.resolved.config, wrong.blocks) if row[0] & phases]
        legal = [(helps, change) for helps, change in every if self.changes(change) and self.is_legal(change)]
        for helps, change in legal:
            if phases <= helps and self.fits(change, helps):
                return change
        together: dict[str, Any] = {}
        touched: set[str] = set()
        for helps, change in legal:
            together, touched = {**together, **change}, touched | helps
            if phases <= touched and self.is_legal(together) and self.fits(together, touched):
                return together
        return None

    def changes(self, change: Change) -> bool:
        """Would it be another run?"""
        return any(getattr(self.resolved.config, name) != value for name, value in change.items())

    def changed(self, change: Change) -> Resolved:
        """The run's settings with a change."""
        sources = {**self.resolved.sources, **dict.fromkeys(change, ADVICE)}
        return dataclasses.replace(
            self.resolved, config=self.resolved.config.model_copy(update=dict(change)), sources=sources
        )

    def is_legal(self, change: Change) -> bool:
        """Would a run start with it here?"""
        made = self.changed(change)
        facts = preflight.facts(self.family, made.config)
        if conflicts.check(made.config, made.sources, facts):
            return False
        try:
            place.check(made.config, run_device())
        except DarkroomError:
            return False
        return True

    def fits(self, change: Change, helps: Collection[str]) -> bool:
        """Does the run fit with it, as far as is known? It leaves all phases but those in `helps` as they are."""
        first = self.forecaster
        first.tell(f"with {shown(change)}")
        made = Forecaster(
            self.changed(change), self.family, self.plan, self.prompts, first.scene.settings, first.known.but(helps)
        ).forecast(until_too_large=True)
        return not made.too_large and all(phase.host is not None for phase in made.phases)


def shown(change: Change) -> str:
    """A change for a person."""
    rows = (f"{name} to {str(value).lower() if isinstance(value, bool) else value}" for name, value in change.items())
    return ", ".join(rows)


def words(change: Change | None) -> str:
    """The advice for a person."""
    if change is None:
        return "No change that Darkroom knows makes it fit: take a smaller model or resolution, or a larger machine."
    return f"It fits with {shown(change)}."


def remedy(resolved: Resolved, family: Any, plan: Any, prompts: Any) -> str:
    """What to say to a run whose memory was full: which phases do not fit, and the change with which they do."""
    forecaster = Forecaster(resolved, family, plan, prompts)
    forecast = forecaster.forecast()
    if not forecast.too_large:
        return ""
    phases = ", ".join(dict.fromkeys(f"{phase.phase} {phase.of}".strip() for phase in forecast.too_large))
    advice = Adviser(resolved, family, plan, prompts, forecaster).advise(forecast)
    return f"Too large for this machine: {phases}. {words(advice)}"
