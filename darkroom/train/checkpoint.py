"""Checkpoints: complete or absent. A folder counts only with a manifest whose sizes and hashes agree.

checkpoint-N/
    pytorch_lora_weights.safetensors or transformer/    what other programs load
    sla_attention.safetensors                           with attention_mechanism sla, what it has learned
    ema/                                                averaged weights, as trained and for loading
    trained.safetensors                                 the trained tensors themselves, where the files above differ
    optimizer.safetensors                               tensors
    training_state.json                                 counters, optimizer numbers, settings that matter to a resume
    dataset_manifest.parquet                            what it was trained on
    checkpoint_manifest.json                            size and sha256 of every file; written last

A checkpoint is written into `checkpoint-N-tmp`, flushed to disk and renamed, so a kill at any instant leaves either the
whole folder or none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file

from darkroom.adapters.base import Adapter, save_safetensors
from darkroom.core import files
from darkroom.core.errors import CheckpointError
from darkroom.core.log import logger
from darkroom.core.memory import is_memory_full
from darkroom.train import optimizer_state
from darkroom.train.pack import flatten
from darkroom.train.state import TrainState
from darkroom.train.step import Stepper

if TYPE_CHECKING:
    from darkroom.optim.base import Optimizer
    from darkroom.options.config import Config

log = logger(__name__)

MANIFEST = "checkpoint_manifest.json"
STATE = "training_state.json"
TRAINED = "trained.safetensors"
VERSION = 1
_NAME = re.compile(r"^checkpoint-(\d+)(-rolling)?$")
_ABANDONED = re.compile(r"^abandoned-(\d+)$")
# without these in the manifest nothing says that they are whole
_NEEDED = (STATE, "optimizer.safetensors")
_READ = (".safetensors", ".json", ".parquet")
UNREADABLE = (
    ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError, RuntimeError, SafetensorError,
)  # fmt: skip
"""What torch, safetensors and we raise about contents that do not fit."""


@dataclasses.dataclass
class Snapshot:
    """Everything a checkpoint holds, by reference to the live run. Create it before the first step.

    `attached` are further files, by name, that a resume looks at.
    """

    adapter: Adapter
    stepper: Stepper
    state: TrainState
    settings: Mapping[str, object]
    metadata: Callable[[TrainState], dict[str, str]]
    attached: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.built = optimizer_state.collect_hyperparameters(self._optimizer)

    def write(self, folder: Path) -> None:
        """All files but the manifest, into an empty folder."""
        metadata = self.metadata(self.state)
        with self.stepper.use_inference_weights():
            self.adapter.save(folder, metadata)
        if self.adapter.export_is_lossy or self.stepper.is_schedule_free:
            save_safetensors(folder / TRAINED, self.adapter.state(), {})
        optimizer, tensors = flatten(self._optimizer.state_dict())
        save_safetensors(folder / "optimizer.safetensors", tensors, {})
        if self.stepper.ema:
            self._write_ema(folder / "ema", metadata)
        for name, content in self.attached.items():
            files.write_bytes(folder / name, content)
        scaler = self.stepper.accelerator.scaler
        files.write_json(
            folder / STATE,
            {
                "version": VERSION,
                "global_step": self.state.step,
                **dataclasses.asdict(self.state),
                "optimizer": optimizer,
                "built": self.built,
                "scaler": scaler.state_dict() if scaler else None,
                "settings": dict(self.settings),
            },
        )

    def _write_ema(self, folder: Path, metadata: Mapping[str, str]) -> None:
        ema = self.stepper.ema
        assert ema is not None
        save_safetensors(folder / "ema_model.safetensors", ema.state_dict(), {"decay": str(ema.decay)})
        with ema.use_average():
            self.adapter.save(folder, dict(metadata))

    def read(self, folder: Path, fresh_optimizer: bool = False) -> None:
        """Put a checkpoint's contents into the live run. Raises CheckpointError if they do not fit.

        With `fresh_optimizer` the state of the optimizer stays as it is: the checkpoint has that of another kind.
        """
        try:
            saved = json.loads((folder / STATE).read_text(encoding="utf-8"))
            state = TrainState.from_dict(saved)
            if (folder / TRAINED).exists():
                self.adapter.load(load_file(folder / TRAINED))
            else:
                self.adapter.read(folder)
            if not fresh_optimizer:
                tensors = load_file(folder / "optimizer.safetensors")
                optimizer_state.load(self._optimizer, saved["optimizer"], tensors, saved.get("built"), self.built)
            if self.stepper.ema and (folder / "ema" / "ema_model.safetensors").exists():
                self.stepper.ema.load_state_dict(load_file(folder / "ema" / "ema_model.safetensors"))
            if self.stepper.accelerator.scaler and saved["scaler"]:
                self.stepper.accelerator.scaler.load_state_dict(saved["scaler"])
        except UNREADABLE as cause:
            if is_memory_full(cause):
                raise
            raise CheckpointError(
                f"{folder} does not fit this run: {cause}\n"
                "  Resume with the settings that made it, or set resume_from_checkpoint to none to start afresh "
                "(init_lora takes its weights as a start)."
            ) from cause
        vars(self.state).update(vars(state))

    @property
    def _optimizer(self) -> Optimizer:
        return getattr(self.stepper.optimizer, "optimizer", self.stepper.optimizer)


def list_checkpoints(output: Path) -> list[Path]:
    """Folders named like checkpoints in an output folder, oldest step first; whether they are whole is not asked."""
    steps = [(int(match[1]), path) for path in output.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(steps, key=lambda pair: (pair[0], pair[1].name))]


class CheckpointManager:
    """Writes, finds, validates and deletes the checkpoints of one output folder."""

    def __init__(self, output: Path, options: Config):
        self.output, self.options = Path(output), options
        self.newest: int | None = None  # the last step that is saved of this very run

    # -- writing ---------------------------------------------------------------------------------------------------

    def save(self, snapshot: Snapshot, rolling: bool = False) -> Path:
        """Write a checkpoint for the current step and delete those above the limit. Returns its folder."""
        name = f"checkpoint-{snapshot.state.step}" + ("-rolling" if rolling else "")
        with self._write_folder(name) as temporary:
            snapshot.write(temporary)
            write_manifest(temporary, name, snapshot.metadata(snapshot.state))
        self.newest = snapshot.state.step
        self._delete_surplus(rolling, keep=name)
        return self.output / name

    @contextlib.contextmanager
    def _write_folder(self, name: str) -> Iterator[Path]:
        """An empty folder that takes its final name when the body has finished."""
        self.clear_leftovers()
        temporary, target = self.output / f"{name}-tmp", self.output / name
        try:
            with files.explain_disk_full(self.output, name):
                temporary.mkdir(parents=True)
                yield temporary
                if target.exists():
                    # the same step saved again after a resume: the old one steps aside until the new one is there
                    os.replace(target, self.output / f"{name}{files.ASIDE}")
                os.replace(temporary, target)
                files.fsync(self.output)
        finally:
            self.clear_leftovers()

    def clear_leftovers(self) -> None:
        """Remove what an interrupted save left. A checkpoint that stepped aside for nothing gets its name back."""
        files.clear_folders(self.output, "checkpoint-*")

    def set_aside(self, start: Path | None) -> tuple[Path, list[str]] | None:
        """Move the checkpoints that a run which begins at `start` (None: afresh) does not come from out of its way.

        Returns the folder they are in now and their names, or None if there are none. Later ones are of a branch that
        is left, and would be taken for the newest of this one.
        """
        is_own = start is not None and start.parent.resolve() == self.output.resolve()
        step = _parse_step(start) if start is not None and is_own else -1
        later = [path for path in self.folders() if path != start and _parse_step(path) > step]
        if not later:
            return None
        numbers = [int(match[1]) for path in self.output.glob("abandoned-*") if (match := _ABANDONED.match(path.name))]
        target = self.output / f"abandoned-{max(numbers, default=0) + 1}"
        target.mkdir()
        for path in later:
            os.replace(path, target / path.name)
        files.fsync(self.output)
        return target, [path.name for path in later]

    def _delete_surplus(self, rolling: bool, keep: str) -> None:
        limit = self.options.checkpoints_rolling_total_limit if rolling else self.options.checkpoints_total_limit
        same_kind = [path for path in self.folders() if path.name.endswith("-rolling") == rolling and path.name != keep]
        if limit:
            for path in same_kind[: max(0, len(same_kind) - (limit - 1))]:
                _delete(path)

    # -- finding ---------------------------------------------------------------------------------------------------

    def folders(self) -> list[Path]:
        """Folders named like checkpoints, oldest step first; whether they are whole is not asked."""
        return list_checkpoints(self.output)

    def find(self, name: str | None) -> Path | None:
        """The checkpoint to resume from: None, `latest`, a name in the output folder, or a path.

        `latest` passes over damaged ones with a warning. A named one that is absent or damaged raises CheckpointError.
        """
        if not name or name.lower() == "none":
            return None
        if name == "latest":
            for path in reversed(self.folders()):
                problem = validate_checkpoint(path)
                if problem is None:
                    return path
                log.warning("%s is passed over: %s", path.name, problem)
            return None
        path = files.expand_home(name)
        if not path.is_dir():
            path = self.output / name
        if not path.is_dir():
            names = ", ".join(p.name for p in self.folders()) or "none"
            raise CheckpointError(
                f"resume_from_checkpoint = '{name}'\n  There is no such folder, here or in {self.output}.\n"
                f"  Checkpoints there: {names}."
            )
        if problem := validate_checkpoint(path):
            raise CheckpointError(
                f"resume_from_checkpoint = '{name}'\n  {path} cannot be used: {problem}.\n"
                "  Choose an earlier checkpoint, or 'latest', which takes the newest that is whole."
            )
        return path


def _delete(folder: Path) -> None:
    """Remove a checkpoint. It loses its name first, so that a kill in the middle leaves none that is half there."""
    leaving = folder.with_name(f"{folder.name}-tmp")
    shutil.rmtree(leaving, ignore_errors=True)
    os.replace(folder, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def write_manifest(folder: Path, name: str, metadata: Mapping[str, str]) -> None:
    """Hash every file of `folder`, flush everything to disk and write the manifest last."""
    rows = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files.fsync(path)
        relative = path.relative_to(folder).as_posix()
        rows.append({"path": relative, "size": path.stat().st_size, "sha256": files.sha256(path)})
    for path in folder.rglob("*"):
        if path.is_dir():
            files.fsync(path)
    manifest = {"version": VERSION, "checkpoint": name, "files": rows, "metadata": dict(metadata)}
    files.write_json(folder / MANIFEST, manifest)
    files.fsync(folder)


def validate_checkpoint(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if every file is as its manifest says. Raises nothing."""
    try:
        return _find_problem(folder)
    except FileNotFoundError:
        return "it has no manifest, so it was not finished"
    except (OSError, ValueError, RecursionError) as cause:
        return f"its manifest cannot be read ({type(cause).__name__})"


def _find_problem(folder: Path) -> str | None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    rows = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        return "its manifest cannot be read (it is not of the expected form)"
    version, name = manifest.get("version"), manifest.get("checkpoint")
    if type(version) is not int or version != VERSION:
        return f"its manifest has version {version!r}, and this Darkroom reads version {VERSION}"
    if _NAME.match(folder.name) and name != folder.name:
        return f"it was saved as {name!r} and renamed since"
    for row in rows:
        if problem := _find_file_problem(folder, row["path"], row["size"], row["sha256"]):
            return problem
    listed = {row["path"] for row in rows}
    readable = (path for path in folder.rglob("*") if path.is_file() and path.suffix in _READ and path.name != MANIFEST)
    unlisted = [path.relative_to(folder).as_posix() for path in readable]
    missing = [name for name in (*_NEEDED, *sorted(unlisted)) if name not in listed]
    return f"its manifest does not name {missing[0]}" if missing else None


def _is_row(row: object) -> bool:
    if not isinstance(row, dict):
        return False
    return all(type(row.get(name)) is kind for name, kind in (("path", str), ("size", int), ("sha256", str)))


def _find_file_problem(folder: Path, name: str, size: int, digest: str) -> str | None:
    """What is wrong with one file of a checkpoint."""
    try:
        path = files.join_inside(folder, name)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if files.sha256(path) != digest:
            return f"{name} was changed after it was written (its sha256 differs)"
    except ValueError:
        return f"its manifest names a file outside it, {name!r}"
    except OSError as cause:
        return f"{name!r} cannot be read ({cause.strerror})"
    return None


def _parse_step(folder: Path) -> int:
    match = _NAME.match(folder.name)
    return int(match[1]) if match else -1


def read_state(folder: Path) -> tuple[TrainState, dict[str, object]]:
    """The counters and settings of a checkpoint. Raises CheckpointError for a file of another form."""
    try:
        saved = json.loads((folder / STATE).read_text(encoding="utf-8"))
        settings = saved["settings"]
        if not isinstance(settings, dict):
            raise ValueError("its settings are no table")
        return TrainState.from_dict(saved), settings
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise CheckpointError(
            f"{folder / STATE}\n  It cannot be read: {cause}.\n  Resume from another checkpoint."
        ) from cause


def find_differences(saved: Mapping[str, object], settings: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Settings that differ from those of a checkpoint: name to (then, now)."""
    now = json.loads(json.dumps(dict(settings), default=str))
    return {name: (saved[name], now[name]) for name in saved if name in now and saved[name] != now[name]}
