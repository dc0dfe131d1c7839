"""What to change so that a run fits into the memory there is: the fastest change that does, found by forecasting it.

Text, samples and training take memory at different times, so each is made to fit by itself. What the weights of blocks
take on a card is arithmetic, in any precision and with any number of blocks offloaded to CPU RAM; what training takes
beside them is forecast, for as few combinations of options as it needs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping

from darkroom.core.device import run_device
from darkroom.core.errors import DarkroomError
from darkroom.data.cache.filler import CacheFiller
from darkroom.families.base import Family
from darkroom.families.shared.rule_facts import family_facts
from darkroom.job.forecast import ADVICE, IMAGE_PHASE, LATENTS, LOAD, SAVE, STEP, TEXT, Forecast, Forecaster
from darkroom.memory import policy, quantize
from darkroom.options import conflicts
from darkroom.options.sources import Resolved
from darkroom.validate.prompts import Prompt

Change = Mapping[str, object]
Key = frozenset[tuple[str, object]]
NOTHING: Key = frozenset()
TRAINING = (LOAD, STEP, IMAGE_PHASE, SAVE)
PRECISION = "base_model_precision"
CHECKPOINTS: Change = {"gradient_checkpointing": True}
SINGLE_SAMPLES: Change = {"vae_batch_size": 1}
TILES: Change = {"vae_enable_tiling": True}
OF_TEXT = ("int8-quanto", "nf4-bnb")
# With each change, how much longer a step takes: rules of thumb that put changes into an order. Blocks are computed
# twice; weights are widened for every product; small batches use a card less well; what is offloaded is copied, and
# all blocks as they are now count as `OFFLOADED`.
AGAIN, SPLIT, OFFLOADED = 1.3, 1.35, 1.5
PRESETS: Mapping[str, float] = {"fp8-block": 1.1, "nf4-bnb": 1.3}
# tiles only take longer outside steps
HARDLY = 1.001
# where the base itself is trained: what of its gradients and of the optimizer leaves the device
OF_THE_BASE: tuple[tuple[Change, float], ...] = (
    ({"optimizer_release_gradients": True}, 1.1),
    ({"optimizer_cpu_offload_method": "cpu", "optimizer_offload_gradients": True}, 1.6),
)
# bytes that leave the device with a byte of a weight that is trained: gradients and two averages go with it
WITH_STATE = 4
MAX_FORECASTS = 6


@dataclasses.dataclass(frozen=True)
class Choice:
    """A way to train: `change` decides what it takes beside its weights, `preset` and `offloaded` blocks about these.

    `cost` says how much longer a step takes.
    """

    change: Change
    preset: str
    cost: float
    offloaded: int = 0

    @property
    def full_change(self) -> Change:
        """All of it as one change."""
        preset = {PRECISION: self.preset} if self.preset else {}
        return {**self.change, **preset, **({policy.SWAP: self.offloaded} if self.offloaded else {})}

    @property
    def key(self) -> Key:
        """By which it is known what it takes beside its weights."""
        return frozenset(self.change.items())


@dataclasses.dataclass(frozen=True)
class Measured:
    """What training was forecast to take: bytes by phase, and how many of them are weights of blocks."""

    phases: Mapping[str, int]
    weights: float


@dataclasses.dataclass(frozen=True)
class Adviser:
    """Tries changes of one run. `filler` has its scanned datasets, `prompts` what validation draws.

    `forecaster` is the one of the run as it is, whose phases are taken over where a change leaves them alone.
    """

    resolved: Resolved
    family: Family
    filler: CacheFiller
    prompts: list[Prompt]
    forecaster: Forecaster

    def advise(self, wrong: Forecast) -> Change | None:
        """The fastest change with which a run fits that does not. None if nothing that is known is enough."""
        together: dict[str, object] = {}
        wrong_phases = {phase.phase for phase in wrong.too_large}
        for phases, find in (((TEXT,), self._text), ((LATENTS,), self._samples), (TRAINING, self._train)):
            if wrong_phases.intersection(phases):
                change = find(together, wrong)
                if change is None:
                    return None
                together |= change
        return together

    def changes(self, change: Change) -> bool:
        """Would it be another run?"""
        return any(getattr(self.resolved.config, name) != value for name, value in change.items())

    def apply_change(self, change: Change) -> Resolved:
        """The run's settings with a change."""
        sources = {**self.resolved.sources, **dict.fromkeys(change, ADVICE)}
        return dataclasses.replace(
            self.resolved, config=self.resolved.config.model_copy(update=dict(change)), sources=sources
        )

    def is_legal(self, change: Change) -> bool:
        """Would a run start with it on this device?"""
        resolved = self.apply_change(change)
        facts = family_facts(self.family, resolved.config)
        if conflicts.validate_options(resolved.config, resolved.sources, facts):
            return False
        try:
            policy.validate_memory_options(resolved.config, run_device())
        except DarkroomError:
            return False
        return True

    def forecast(self, change: Change, helps: Collection[str]) -> Forecast:
        """The run's phases with a change that leaves all but those in `helps` as they are."""
        first = self.forecaster
        first.tell(f"with {describe_change(change)}")
        settings, cached = first.scene.settings, first.cache.but(helps)
        return Forecaster(
            self.apply_change(change), self.family, self.filler, self.prompts, settings, cached
        ).forecast()

    # -- text and samples ----------------------------------------------------------------------------------------------

    def _text(self, before: Change, _: Forecast) -> Change | None:
        encoders = self.family.spec.components.encoders
        names = policy.TEXT_PRECISIONS[: len(encoders)]
        return self._find_first_fit(before, (dict.fromkeys(names, preset) for preset in OF_TEXT), TEXT)

    def _samples(self, before: Change, _: Forecast) -> Change | None:
        return self._find_first_fit(before, (SINGLE_SAMPLES, TILES, {**SINGLE_SAMPLES, **TILES}), LATENTS)

    def _find_first_fit(self, before: Change, changes: Iterable[Change], phase: str) -> Change | None:
        for change in changes:
            combined = {**before, **change}
            if self.changes(change) and self.is_legal(combined) and fits(self.forecast(combined, {phase}), {phase}):
                return change
        return None

    # -- training ------------------------------------------------------------------------------------------------------

    def _train(self, before: Change, wrong: Forecast) -> Change | None:
        """Of all ways to train the one that costs least by what is known; the next one where that does not fit."""
        config = self.resolved.config
        choices = [choice for choice in self._choices() if self.is_legal({**before, **choice.full_change})]
        measured = {NOTHING: self._measure(wrong, Choice({}, "", 1, config.musubi_blocks_to_swap))}
        fewest_blocks = dict.fromkeys(((choice.key, choice.preset) for choice in choices), 0)
        for _ in range(MAX_FORECASTS):
            ready = [self._with_offloading(choice, measured, fewest_blocks, before, wrong) for choice in choices]
            better = [choice for choice in ready if choice is not None and self.changes(choice.full_change)]
            if not better:
                return None
            choice = min(better, key=lambda candidate: candidate.cost)
            forecast = self.forecast({**before, **choice.full_change}, TRAINING)
            if fits(forecast, TRAINING):
                return choice.full_change
            measured[choice.key] = self._measure(forecast, choice)
            fewest_blocks[choice.key, choice.preset] = choice.offloaded + 1
        return None

    def _choices(self) -> Iterator[Choice]:
        """Every way to train, without offloading."""
        config = self.resolved.config
        samples = config.gradient_accumulation_steps * config.train_batch_size
        split = {"train_batch_size": 1, "gradient_accumulation_steps": samples}
        axes: list[list[tuple[Change, float]]] = [[(CHECKPOINTS, AGAIN)], [(split, SPLIT)], [(TILES, HARDLY)]]
        axes += [list(OF_THE_BASE)] if config.model_type == "full" else []
        axes = [[({}, 1.0), *(row for row in axis if self.changes(row[0]))] for axis in axes]
        presets = PRESETS.items() if config.base_model_precision == quantize.NONE else ()
        for rows in itertools.product(*axes):
            change = {name: value for row, _ in rows for name, value in row.items()}
            for preset, cost in (("", 1.0), *presets):
                yield Choice(change, preset, cost * math.prod(slower for _, slower in rows))

    def _with_offloading(
        self,
        choice: Choice,
        measured: Mapping[Key, Measured],
        fewest_blocks: Mapping[tuple[Key, str], int],
        before: Change,
        wrong: Forecast,
    ) -> Choice | None:
        """A choice with the fewest blocks offloaded with which it may fit, from what is known; None if it cannot."""
        room = wrong.host if wrong.device is None else wrong.device
        baseline = measured.get(choice.key) or _estimate_minimum(measured[NOTHING], choice.change)
        blocks = min(map(len, self.forecaster.weights), default=0)
        can = wrong.device is not None and self.is_legal({**before, **choice.full_change, policy.SWAP: 1})
        for offloaded in range(fewest_blocks[choice.key, choice.preset], max(1, blocks if can else 0)):
            candidate = dataclasses.replace(choice, offloaded=offloaded)
            growth = self._weights(candidate) - baseline.weights
            if room is None or all(size + growth <= room for size in baseline.phases.values()):
                return dataclasses.replace(
                    candidate, cost=choice.cost * OFFLOADED ** self._compute_offloaded_share(candidate)
                )
        return None

    def _measure(self, forecast: Forecast, choice: Choice) -> Measured:
        phases: dict[str, int] = {}
        for row in forecast.phases:
            size = row.host if forecast.device is None else row.device
            if row.phase in TRAINING and size is not None:
                phases[row.phase] = max(phases.get(row.phase, 0), size)
        return Measured(phases, self._weights(choice))

    def _compute_offloaded_share(self, choice: Choice) -> float:
        """Bytes that are offloaded, of those that all blocks have now."""
        preset = choice.preset or quantize.NONE
        away = [
            b.size(preset)
            for blocks in self.forecaster.weights
            for b in policy.pick_spread_blocks(blocks, choice.offloaded)
        ]
        return sum(away) / max(1, sum(block.total for blocks in self.forecaster.weights for block in blocks))

    def _weights(self, choice: Choice) -> float:
        """Bytes of all blocks on the device, with what is trained of them."""
        config, total = self.resolved.config, 0.0
        factor = WITH_STATE if config.model_type == "full" else 1
        for blocks in self.forecaster.weights:
            sizes = [block.size(choice.preset or quantize.NONE) for block in blocks]
            away = policy.pick_spread_blocks(sizes, choice.offloaded)
            slots = min(config.block_swap_ring_size, len(away))
            total += factor * (sum(sizes) - sum(away)) + slots * max(away, default=0)
        return total


def fits(forecast: Forecast, phases: Collection[str]) -> bool:
    """Do some phases fit, as far as is known?"""
    rows = [row for row in forecast.phases if row.phase in phases]
    return all(row.host is not None for row in rows) and not any(row.phase in phases for row in forecast.too_large)


def _estimate_minimum(baseline: Measured, change: Change) -> Measured:
    """What a change leaves of what was measured without it, where that was not measured: at least the weights."""
    touched = {IMAGE_PHASE} if TILES.keys() <= change.keys() else set()
    touched |= {STEP} if change.keys() - TILES.keys() else set()
    minimum = baseline.phases.get(LOAD, 0)
    return Measured(
        {name: minimum if name in touched else size for name, size in baseline.phases.items()}, baseline.weights
    )


def describe_change(change: Change) -> str:
    """A change for a person."""
    rows = (f"{name} to {str(value).lower() if isinstance(value, bool) else value}" for name, value in change.items())
    return ", ".join(rows)


def words(change: Change | None) -> str:
    """The advice for a person."""
    if change is None:
        return "No change that Darkroom knows makes it fit: take a smaller model or resolution, or a larger machine."
    return f"It fits with {describe_change(change)}."


def remedy(resolved: Resolved, family: Family, filler: CacheFiller, prompts: list[Prompt]) -> str:
    """What to say to a run whose memory was full: which phases do not fit, and the change with which they do."""
    forecaster = Forecaster(resolved, family, filler, prompts)
    forecast = forecaster.forecast()
    if not forecast.too_large:
        return ""
    phases = ", ".join(dict.fromkeys(f"{phase.phase} {phase.of}".strip() for phase in forecast.too_large))
    advice = Adviser(resolved, family, filler, prompts, forecaster).advise(forecast)
    return f"Too large for this machine: {phases}. {words(advice)}"
