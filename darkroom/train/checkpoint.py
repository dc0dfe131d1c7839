"""Checkpoints: complete or absent. A folder counts only with a manifest whose sizes and hashes agree.

checkpoint-N/
    pytorch_lora_weights.safetensors or transformer/    what other programs load
    sla_attention.safetensors                           with attention_mechanism sla, what it has learnt
    ema/                                                averaged weights, as trained and for loading
    trained.safetensors                                 the trained tensors themselves, where the files above differ
    optimizer.safetensors, generators.safetensors       tensors
    training_state.json                                 counters, optimizer numbers, settings that decide the path
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
from typing import Any

from safetensors.torch import load_file

from darkroom.adapters.base import Adapter, save_safetensors
from darkroom.core import files
from darkroom.core.errors import CheckpointError
from darkroom.core.log import logger
from darkroom.objectives.base import Draws
from darkroom.train.pack import flatten, restore
from darkroom.train.state import TrainState
from darkroom.train.step import Stepper

log = logger(__name__)

MANIFEST = "checkpoint_manifest.json"
STATE = "training_state.json"
TRAINED = "trained.safetensors"
ASIDE = "-old-tmp"
VERSION = 1
_NAME = re.compile(r"^checkpoint-(\d+)(-rolling)?$")


@dataclasses.dataclass
class Snapshot:
    """Everything a checkpoint holds, by reference to the live run."""

    adapter: Adapter
    stepper: Stepper
    draws: Draws
    state: TrainState
    settings: Mapping[str, Any]
    metadata: Callable[[TrainState], dict[str, str]]

    def write(self, folder: Path) -> None:
        """All files but the manifest, into an empty folder."""
        metadata = self.metadata(self.state)
        with self.stepper.weights_for_use():
            self.adapter.save(folder, metadata)
        if self.adapter.export_is_lossy or self.stepper.is_schedule_free:
            save_safetensors(folder / TRAINED, self.adapter.state(), {})
        optimizer, tensors = flatten(self._optimizer.state_dict())
        save_safetensors(folder / "optimizer.safetensors", tensors, {})
        save_safetensors(folder / "generators.safetensors", self.draws.state(), {})
        if self.stepper.ema:
            self._write_ema(folder / "ema", metadata)
        scaler = self.stepper.engine.scaler
        files.write_json(
            folder / STATE,
            {
                "version": VERSION,
                "global_step": self.state.step,
                **dataclasses.asdict(self.state),
                "optimizer": optimizer,
                "scaler": scaler.state_dict() if scaler else None,
                "settings": dict(self.settings),
            },
        )

    def _write_ema(self, folder: Path, metadata: Mapping[str, str]) -> None:
        ema = self.stepper.ema
        assert ema is not None
        save_safetensors(folder / "ema_model.safetensors", ema.state(), {"decay": str(ema.decay)})
        with ema.applied():
            self.adapter.save(folder, dict(metadata))

    def read(self, folder: Path) -> None:
        """Put a checkpoint's contents into the live run. Raises CheckpointError if they do not fit."""
        saved = json.loads((folder / STATE).read_text(encoding="utf-8"))
        try:
            if (folder / TRAINED).exists():
                self.adapter.load(load_file(folder / TRAINED))
            else:
                self.adapter.read(folder)
            optimizer = restore(saved["optimizer"], load_file(folder / "optimizer.safetensors"))
            self._load_optimizer(optimizer)
            if self.stepper.ema and (folder / "ema" / "ema_model.safetensors").exists():
                self.stepper.ema.load(load_file(folder / "ema" / "ema_model.safetensors"))
            if self.stepper.engine.scaler and saved["scaler"]:
                self.stepper.engine.scaler.load_state_dict(saved["scaler"])
        except (ValueError, KeyError, OSError) as cause:
            raise CheckpointError(
                f"{folder} does not fit this run: {cause}\n"
                "  Resume with the settings that made it, or set resume_from_checkpoint to none to start afresh "
                "(init_lora takes its weights as a start)."
            ) from cause
        self.draws.load(load_file(folder / "generators.safetensors"))
        for field in dataclasses.fields(TrainState):
            setattr(self.state, field.name, saved[field.name])

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        """Put the optimizer's state back; the base rates stay those of this run's learning_rate."""
        rates = [group.get("base_lr") for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(saved)
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["base_lr"] = rate

    @property
    def _optimizer(self) -> Any:
        return getattr(self.stepper.optimizer, "optimizer", self.stepper.optimizer)


class Keeper:
    """Writes, finds, checks and thins out the checkpoints of one output folder."""

    def __init__(self, output: Path, options: Any):
        self.output, self.options = Path(output), options

    # -- writing ---------------------------------------------------------------------------------------------------

    def save(self, snapshot: Snapshot, rolling: bool = False) -> Path:
        """Write a checkpoint for the current step and delete those above the limit. Returns its folder."""
        name = f"checkpoint-{snapshot.state.step}" + ("-rolling" if rolling else "")
        with self._folder(name) as temporary:
            snapshot.write(temporary)
            write_manifest(temporary, name, snapshot.metadata(snapshot.state))
        self._thin(rolling, keep=name)
        return self.output / name

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        """An empty folder that takes its final name when the body has finished."""
        self.clear_leftovers()
        temporary, target = self.output / f"{name}-tmp", self.output / name
        try:
            with files.disk_full_says(self.output, name):
                temporary.mkdir(parents=True)
                yield temporary
                if target.exists():
                    # the same step saved again after a resume: the old one steps aside until the new one is there
                    os.replace(target, self.output / f"{name}{ASIDE}")
                os.replace(temporary, target)
                files.fsync(self.output)
        finally:
            self.clear_leftovers()

    def clear_leftovers(self) -> None:
        """Remove what an interrupted save left. A checkpoint that stepped aside for nothing gets its name back."""
        for aside in self.output.glob(f"checkpoint-*{ASIDE}"):
            target = aside.with_name(aside.name.removesuffix(ASIDE))
            if not target.exists():
                os.replace(aside, target)
        for path in self.output.glob("checkpoint-*-tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _thin(self, rolling: bool, keep: str) -> None:
        limit = self.options.checkpoints_rolling_total_limit if rolling else self.options.checkpoints_total_limit
        mine = [path for path in self.folders() if path.name.endswith("-rolling") == rolling and path.name != keep]
        if limit:
            for path in mine[: max(0, len(mine) - (limit - 1))]:
                shutil.rmtree(path, ignore_errors=True)

    # -- finding ---------------------------------------------------------------------------------------------------

    def folders(self) -> list[Path]:
        """Folders named like checkpoints, oldest step first; whether they are whole is not asked."""
        found = [
            (int(match[1]), path) for path in self.output.glob("checkpoint-*") if (match := _NAME.match(path.name))
        ]
        return [path for _, path in sorted(found, key=lambda pair: (pair[0], pair[1].name))]

    def find(self, wanted: str | None) -> Path | None:
        """The checkpoint to resume from: None, `latest`, a name in the output folder, or a path.

        `latest` passes over damaged ones with a warning. A named one that is absent or damaged raises CheckpointError.
        """
        if not wanted or wanted.lower() == "none":
            return None
        if wanted == "latest":
            for path in reversed(self.folders()):
                problem = check(path)
                if problem is None:
                    return path
                log.warning("%s is passed over: %s", path.name, problem)
            return None
        path = Path(wanted).expanduser()
        if not path.is_dir():
            path = self.output / wanted
        if not path.is_dir():
            known = ", ".join(p.name for p in self.folders()) or "none"
            raise CheckpointError(
                f"resume_from_checkpoint = '{wanted}'\n  There is no such folder, here or in {self.output}.\n"
                f"  Checkpoints there: {known}."
            )
        if problem := check(path):
            raise CheckpointError(
                f"resume_from_checkpoint = '{wanted}'\n  {path} cannot be used: {problem}.\n"
                "  Choose an earlier checkpoint, or 'latest', which takes the newest that is whole."
            )
        return path


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


def check(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if every file is as its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        rows = [(row["path"], row["size"], row["sha256"]) for row in manifest["files"]]
    except FileNotFoundError:
        return "it has no manifest, so it was not finished"
    except (ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    for name, size, digest in rows:
        try:
            path = files.inside(folder, name)
        except ValueError:
            return f"its manifest names a file outside it, {name}"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if files.sha256(path) != digest:
            return f"{name} was changed after it was written (its sha256 differs)"
    return None


def differences(folder: Path, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that decide a run's path and differ from the checkpoint's: name to (saved, now)."""
    saved = json.loads((folder / STATE).read_text(encoding="utf-8")).get("settings", {})
    now = json.loads(json.dumps(dict(settings), default=str))
    return {name: (saved[name], now[name]) for name in saved if name in now and saved[name] != now[name]}
