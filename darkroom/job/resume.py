"""Going on from a checkpoint: what may have changed since, what that means, and where the run stands then."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.core import files
from darkroom.core.errors import CheckpointError
from darkroom.core.events import Warn
from darkroom.core.units import show_size
from darkroom.data import manifest
from darkroom.data.batches.order import Base
from darkroom.data.manifest import DataChanges
from darkroom.data.plan import DatasetPlan
from darkroom.families.base import Family
from darkroom.job.run import DEFAULT_SEED, Run, config_as_dict
from darkroom.options.config import every_option, option_info, option_names
from darkroom.options.sources import Resolved
from darkroom.pretrained.repository import Repository
from darkroom.train.checkpoint import CheckpointManager, find_differences, read_state
from darkroom.train.state import TrainState

if TYPE_CHECKING:
    from darkroom.options.config import Config

FINISHED = "finished.json"
"""In the output folder of a run that has done all its steps: where it stood then."""

# in a checkpoint's settings: what the base's weights are, wherever they lie, and what another base means
WEIGHTS = {"weights of the denoiser": "refuse", "weights of the text encoders": "warn", "weights of the VAE": "warn"}
# these say where such weights are; the weights themselves are compared
_PLACES = "pretrained_"
# whole numbers of which 0 means that another option decides
_LENGTHS = ("max_train_steps", "num_train_epochs")


@dataclasses.dataclass(frozen=True)
class Resumption:
    """Where a run goes on: a checkpoint, where that stood, and what has changed in the settings."""

    folder: Path
    state: TrainState
    changed: Mapping[str, tuple[object, object]]

    @property
    def is_untouched(self) -> bool:
        """Would a checkpoint of where the run begins hold what this one holds?"""
        return not self.changed

    @property
    def fresh_optimizer(self) -> bool:
        """Is the checkpoint's optimizer another, so that its state is of no use?"""
        return "optimizer" in self.changed


def collect_compared_settings(resolved: Resolved, family: Family, repository: Repository) -> dict[str, object]:
    """Of a run's settings those that matter to its resume, as they take effect. A checkpoint keeps them."""
    config = resolved.config
    values = config_as_dict(config)
    effective = {
        "seed": DEFAULT_SEED if config.seed is None else config.seed,
        "model_flavour": family.spec.name,
        "learning_rate": config.effective_learning_rate,
        "lora_alpha": config.lora_alpha or config.lora_rank,
        **{name: values[name] or None for name in _LENGTHS},
    }
    compared = {info.name: values[info.name] for info in every_option() if info.resume != "free"}
    identities = repository.base_identity()["denoiser"], repository.text_identity(), repository.vae_identity()
    return {**compared, **effective, **dict(zip(WEIGHTS, identities, strict=True))}


def find(resolved: Resolved, keeper: CheckpointManager, settings: Mapping[str, object]) -> Resumption | None:
    """The checkpoint to go on from, if there is one. Raises CheckpointError if it belongs to another run."""
    config = resolved.config
    folder = keeper.find(config.resume_from_checkpoint)
    if folder is None:
        return None
    state, saved = read_state(folder)
    changed = {k: v for k, v in find_differences(saved, settings).items() if has_effect(k, config)}
    refused = {k: v for k, v in changed.items() if meaning(k) == "refuse"}
    if refused and not config.i_know_what_i_am_doing:
        lines = "\n".join(f"  {describe_change(name, old, new)}" for name, (old, new) in refused.items())
        raise CheckpointError(
            f"{folder} was made with other settings, so the run cannot go on where it was:\n{lines}\n"
            "  Put them back, set resume_from_checkpoint to none, or set i_know_what_i_am_doing to go on regardless."
        )
    return Resumption(folder, state, changed)


def meaning(name: str) -> str:
    """What another value of a setting means: refuse, warn or free."""
    return WEIGHTS.get(name) or option_info(name).resume


def has_effect(name: str, config: Config) -> bool:
    """Has another value of this setting any effect in this run?"""
    if name in WEIGHTS:
        return True
    is_option = name in option_names()  # a checkpoint of another version may have others
    return is_option and not name.startswith(_PLACES) and not option_info(name).applies(config)


def describe_change(name: str, old: object, new: object) -> str:
    """A changed setting in words."""
    if name in WEIGHTS:
        other = ", or compute in another precision" if WEIGHTS[name] == "warn" else ""
        return f"The {name} differ from those that the checkpoint was trained with{other}."
    info = option_info(name)
    return f"{name}: {info.show(old)} then, {info.show(new)} now"


# -- the data ---------------------------------------------------------------------------------------------------------


def changes_of_data(start: Resumption | None, plan: DatasetPlan, ranks: int) -> DataChanges:
    """What of the data is other than in the checkpoint. Raises CheckpointError if that cannot be read."""
    then = manifest.read(start.folder) if start else None
    return DataChanges((), False) if then is None else manifest.compare(then, plan.manifest(ranks))


def base_of(state: TrainState) -> Base:
    """Where the data of a run became what they are."""
    return Base(state.base_step, state.base_epoch)


def initial_state(resumption: Resumption | None, changes: DataChanges, config: Config) -> TrainState:
    """The counters that a run begins with."""
    if resumption is None:
        return TrainState()
    state = dataclasses.replace(resumption.state)
    if changes.reorders:
        state.start_on_other_data(None if config.max_train_steps else config.num_train_epochs or 1)
    return state


def sentences(start: Resumption, changes: DataChanges, state: TrainState) -> list[str]:
    """What is other than it was, and what that means."""
    lines = [f"Since the checkpoint: {describe_change(name, old, new)}" for name, (old, new) in start.changed.items()]
    if start.fresh_optimizer:
        lines.append("The optimizer begins afresh: the checkpoint has the state of another one.")
    lines += [f"The data have changed. {sentence}" for sentence in changes.sentences]
    if changes.reorders:
        origin = f"at the start of epoch {state.epoch}, after step {state.step}"
        lines.append(f"The order of batches is another with these data, so the run goes on {origin}.")
    return lines


def announce(run: Run, start: Resumption, changes: DataChanges, state: TrainState) -> None:
    """Say where the run goes on and what is other than it was."""
    for sentence in sentences(start, changes, state):
        run.bus.emit(Warn(step=state.step, message=sentence, about="resume"))
    run.bars.print_line(f"Going on from {start.folder.name}: step {state.step}, epoch {state.epoch}.")


# -- the folder -------------------------------------------------------------------------------------------------------


def leave_branch(run: Run, keeper: CheckpointManager, start: Path | None) -> None:
    """Set aside the checkpoints that this run does not come from, and say so."""
    (run.output / FINISHED).unlink(missing_ok=True)
    moved = keeper.set_aside(start)
    if moved is None:
        return
    folder, names = moved
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    begin = f"from {start.name}" if start else "at step 0"
    message = (
        f"This run goes on {begin} and leaves what was trained after that: {', '.join(names)} moved to {folder.name} "
        f"({show_size(size)}). Delete that folder if you do not need it."
    )
    run.bus.emit(Warn(message=message, about="resume"))


def clear_leftovers(output: Path) -> None:
    """Remove files that a run killed while writing left half-written. Only for who has claimed the folder."""
    for name in ("checkpoint-*", "pipeline"):
        files.clear_folders(output, name)
    # caches may be another run's as well, which may be writing there
    folders = [output, *(path for path in output.glob("*/") if path.name != "cache")]
    for path in (leftovers for folder in folders for name in files.LEFTOVERS for leftovers in folder.glob(name)):
        path.unlink(missing_ok=True)


def write_finished(output: Path, keeper: CheckpointManager, state: TrainState, result: Path) -> None:
    """Note that a run has done all its steps."""
    row = {"result": result.relative_to(output).as_posix(), "newest": _newest(keeper)}
    files.write_json(output / FINISHED, dataclasses.asdict(state) | row)


def _newest(keeper: CheckpointManager) -> str | None:
    folders = keeper.folders()
    return folders[-1].name if folders else None


def find_finished(
    output: Path, keeper: CheckpointManager, config: Config, plan: DatasetPlan, ranks: int
) -> tuple[int, Path] | None:
    """Steps and result of a run that was finished here before, if nothing is left to do of this one.

    Who has deleted its last checkpoint wants to go on from an earlier one.
    """
    if config.resume_from_checkpoint != "latest":
        return None
    try:
        row = json.loads((output / FINISHED).read_text(encoding="utf-8"))
        state, result = TrainState.from_dict(row), files.join_inside(output, row["result"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    steps, epochs = plan.steps_and_epochs(ranks, base_of(state))
    is_complete = state.step >= steps or (not config.max_train_steps and state.epoch > epochs)
    is_complete = is_complete and row.get("newest") == _newest(keeper)
    return (state.step, result) if is_complete and result.exists() else None
