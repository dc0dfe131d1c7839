"""musubi-tuner's dataset file (TOML, or JSON with the same tables) as entries of the SimpleTuner kind.

Sizes keep musubi-tuner's own bucket arithmetic, so that both trainers see the same pixels. Its caches are not read:
they name neither the content nor the encoder.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from darkroom.core.errors import DataError
from darkroom.core.files import expand_home, is_file, is_folder
from darkroom.options.config import option_info
from darkroom.options.datasets.document import Values
from darkroom.options.datasets.entries import WholeNumber
from darkroom.options.datasets.notes import Notes

if TYPE_CHECKING:
    from darkroom.options.config import Config


COMMON = ("resolution", "caption_extension", "batch_size", "num_repeats", "enable_bucket", "bucket_no_upscale")
IMAGE = (
    "image_directory",
    "image_jsonl_file",
    "cache_directory",
    "control_directory",
    "multiple_target",
    "no_resize_control",
    "control_resolution",
    "fp_latent_window_size",
    "fp_1f_clean_indices",
    "fp_1f_target_index",
    "fp_1f_no_post",
)
VIDEO = (
    "video_directory",
    "video_jsonl_file",
    "cache_directory",
    "control_directory",
    "target_frames",
    "frame_extraction",
    "frame_stride",
    "frame_sample",
    "max_frames",
    "source_fps",
    "fp_latent_window_size",
)
RENAMED = {
    "flux_kontext_no_resize_control": "no_resize_control",
    "qwen_image_edit_no_resize_control": "no_resize_control",
    "qwen_image_edit_control_resolution": "control_resolution",
}
FRAMEPACK = {
    "fp_latent_window_size": "framepack_latent_window_size",
    "fp_1f_clean_indices": "framepack_clean_indices",
    "fp_1f_target_index": "framepack_target_index",
    "fp_1f_no_post": "framepack_no_post",
}
"""Settings that a dataset has there and a run here."""


def read_run_settings(path: Path, family: str) -> Values:
    """The settings of a run that the dataset file holds, as options: those of the first dataset that has them.

    Empty for a file that is none of musubi-tuner's, or that cannot be read, which the reader of datasets says.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    datasets = document.get("datasets") if isinstance(document, dict) else None
    settings: Values = {}
    for dataset in datasets if isinstance(datasets, list) else []:
        for key, name in FRAMEPACK.items():
            if isinstance(dataset, dict) and key in dataset and family in option_info(name).families:
                settings.setdefault(name, dataset[key])
    return settings


STEPS = {"hidream_o1": 32}
"""Pixels between edges of buckets; 16 for all other families."""


def entries(path: Path, document: Values, family: str, config: Config, notes: Notes) -> list[Values]:
    """The entries that do what the document says. Problems are noted under the number of the dataset."""
    datasets, general = document.get("datasets"), document.get("general", {})
    if not isinstance(datasets, list) or not datasets or not all(isinstance(d, dict) for d in datasets):
        raise DataError(
            f"The dataset file {path} has no [[datasets]].\n  Add one with image_directory or video_directory."
        )
    if not isinstance(general, dict):
        raise DataError(f"The dataset file {path}: general is a table of settings.\n  Write [general].")
    for key in sorted(set(document) - {"datasets", "general"}):
        notes.unknown_key("general", key, document[key], ("datasets", "general"))
    for key in sorted(set(general) - set(COMMON)):
        notes.unknown_key("general", key, general[key], COMMON)
    converted: list[Values] = []
    for number, raw in enumerate(datasets, 1):
        converted += _Conversion(raw, general, f"dataset-{number}", family, config, notes).entries()
    return converted


class _Conversion:
    """One [[datasets]] table."""

    def __init__(self, raw: Values, general: Values, name: str, family: str, config: Config, notes: Notes):
        self.name, self.family, self.notes = name, family, notes
        renamed = self._rename_keys(raw)
        self.is_video = any(key in renamed for key in ("video_directory", "video_jsonl_file"))
        self.accepted_keys = (*COMMON, *(VIDEO if self.is_video else IMAGE))
        self.values = {**{key: value for key, value in general.items() if key in COMMON}, **renamed}
        self.config = config

    def _rename_keys(self, raw: Values) -> Values:
        values = dict(raw)
        for old, new in RENAMED.items():
            if old in values:
                self.notes.warn(self.name, f"{old} is an old name of {new}.")
                value = values.pop(old)
                values.setdefault(new, value)
        return values

    def entries(self) -> list[Values]:
        """The dataset, and one conditioning dataset per control."""
        for key in [key for key in self.values if key not in self.accepted_keys]:
            self.notes.unknown_key(self.name, key, self.values[key], self.accepted_keys)
        location = self._read_location()
        if location is None:
            return []
        self._refusals()
        main: Values = {
            "id": self.name,
            "dataset_type": "video" if self.is_video else "image",
            "_made": True,
            **location,
            **self._captions(),
            "kohya": self._buckets(),
            "crop_style": "center",
            "train_batch_size": self.values.get("batch_size", 1),
            "repeats": max(0, self._repeats() - 1),
            "short_batches": True,
            "empty_captions": True,
        }
        if self._repeats() == 0:
            self.notes.warn(self.name, "num_repeats is 0, so none of its samples is trained.")
            main["probability"] = 0.0
        if self.values.get("cache_directory"):
            main["cache_dir_vae"] = str(expand_home(str(self.values["cache_directory"])) / "darkroom" / self.name)
        if self.values.get("multiple_target"):
            main["layers"] = True
        if self.is_video:
            main["video"] = self._video()
        controls = self._controls()
        if controls:
            if len(controls) > 1 and getattr(self.config, "conditioning_multidataset_sampling", None) != "combined":
                advice = "set conditioning_multidataset_sampling to combined, or each sample is given one of them"
                self.notes.warn(self.name, f"its samples have up to {len(controls)} controls; {advice}.")
            main["conditioning_data"] = [control["id"] for control in controls]
        return [main, *controls]

    def _read_location(self) -> Values | None:
        """Where the samples are: a folder (never those below it) or a list."""
        medium = "video" if self.is_video else "image"
        folder, lines = self.values.get(f"{medium}_directory"), self.values.get(f"{medium}_jsonl_file")
        if folder:
            return {"instance_data_dir": str(folder), "_recursive": False}
        if lines:
            file = expand_home(str(lines))
            if not is_file(file):
                self._problem(f"{medium}_jsonl_file", lines, "There is no such file.", "Correct the path.")
                return None
            key = _number_keys(file, f"{medium}_path")
            layers = _keys_in(file, f"{medium}_path")[1:] if self.values.get("multiple_target") else []
            lines_of = {"file": file, "key": key, "name_key": key, "layer_keys": layers}
            return {"_jsonl": lines_of, "caption_strategy": "jsonl"}
        self._problem(
            f"{medium}_directory",
            None,
            "Nothing says where the samples are.",
            f"Set {medium}_directory or {medium}_jsonl_file.",
        )
        return None

    def _captions(self) -> Values:
        if self._has_lines():
            return {}
        ending = self.values.get("caption_extension")
        if not ending:
            self.notes.warn(self.name, "caption_extension is not set; captions are read from .txt files.")
        return {"caption_strategy": "textfile", "caption_extension": ending or ".txt", "disable_multiline_split": True}

    def _has_lines(self) -> bool:
        medium = "video" if self.is_video else "image"
        return not self.values.get(f"{medium}_directory")

    def _repeats(self) -> int:
        """How often the dataset is gone through; 1 where that is noted as no number."""
        repeats = self.values.get("num_repeats", 1)
        try:
            return TypeAdapter(WholeNumber).validate_python(repeats)
        except ValidationError:
            self._problem("num_repeats", repeats, "This is not a whole number.", "Write for example 1.")
            return 1

    def _pair(self, key: str, otherwise: object) -> object:
        value = self.values.get(key, otherwise)
        return [value, value] if isinstance(value, int) else value

    def _buckets(self) -> Values:
        if self.values.get("bucket_no_upscale") and (self.is_video or not self.values.get("enable_bucket")):
            reason = "clips always have buckets" if self.is_video else "enable_bucket is false"
            self.notes.warn(self.name, f"bucket_no_upscale has no effect: {reason}.")
        return {
            "resolution": self._pair("resolution", [960, 544]),
            "enable_bucket": self.is_video or bool(self.values.get("enable_bucket", False)),
            "bucket_no_upscale": not self.is_video
            and bool(self.values.get("enable_bucket", False))
            and bool(self.values.get("bucket_no_upscale", False)),
            "step": STEPS.get(self.family, 16),
        }

    def _video(self) -> Values:
        v = self.values
        if isinstance(v.get("source_fps"), int):
            self._problem(
                "source_fps", v["source_fps"], "A rate has a decimal point here.", f"Write {v['source_fps']}.0."
            )
        mode = v.get("frame_extraction", "head")
        if mode != "full" and "max_frames" in v:
            self.notes.warn(self.name, "max_frames has no effect: frame_extraction is not full.")
        if mode == "uniform" and v.get("frame_sample", 1) == 1:
            self.notes.warn(self.name, "frame_extraction uniform with frame_sample = 1 is the same as head.")
            mode = "head"
        frames = v.get("target_frames", [1])
        if isinstance(frames, list) and all(isinstance(number, int) for number in frames):
            frames = sorted(set(frames))  # anything else is the checker's to refuse
        block = {
            "target_frames": frames,
            "frame_extraction": mode,
            "frame_stride": v.get("frame_stride", 1),
            "frame_sample": v.get("frame_sample", 1),
            "source_fps": v.get("source_fps"),
            "bucket_strategy": "resolution_frames",
            "frame_interval": 1,
        }
        return block | ({"max_frames": v.get("max_frames", 129)} if mode == "full" else {})

    def _refusals(self) -> None:
        for key, option in FRAMEPACK.items():
            if key in self.values and self.family not in option_info(option).families:
                self.notes.warn(self.name, f"{key} has no effect: one-frame training is offered for FramePack only.")
            elif key in self.values and self.values[key] != getattr(self.config, option, None):
                problem = "Drawing needs to know it too, so it is an option here."
                self._problem(key, self.values[key], problem, f"Set {option} to {self.values[key]}.")

    # -- controls ---------------------------------------------------------------------------------------------------

    def _controls(self) -> list[Values]:
        """One conditioning dataset per control number."""
        if self._has_lines():
            if self.values.get("control_directory"):
                self.notes.warn(self.name, "control_directory has no effect: controls are named in the list.")
            medium = "video" if self.is_video else "image"
            file = expand_home(str(self.values[f"{medium}_jsonl_file"]))
            keys, name_key = _keys_in(file, "control_path"), _number_keys(file, f"{medium}_path")
            places = [{"_jsonl": {"file": file, "key": key, "name_key": name_key}} for key in keys]
            return [self._control(number, location) for number, location in enumerate(places)]
        folder = self.values.get("control_directory")
        if not folder:
            return []
        root = expand_home(str(folder))
        count = 1 if self.is_video else _count_controls(root, expand_home(str(self.values["image_directory"])))
        location = {
            "instance_data_dir": str(folder),
            "_recursive": False,
            "pairing": "path" if self.is_video else "prefix",
        }
        return [self._control(number, location | {"number": number}) for number in range(count)]

    def _control(self, number: int, location: Values) -> Values:
        sizes = self._control_sizes()
        return {
            "id": f"{self.name}-control-{number}",
            "dataset_type": "conditioning",
            "conditioning_type": "reference_loose" if sizes else "reference_strict",
            "source_dataset_id": self.name,
            "caption_strategy": None,
            "optional": number > 0,
            "follows_model": True,
            "_made": True,
            **({"kohya": sizes, "crop_style": "center"} if sizes else {}),
            **location,
        }

    def _control_sizes(self) -> Values | None:
        """musubi.md section 5: None means that controls take the target's bucket."""
        free, resolution = bool(self.values.get("no_resize_control")), self._pair("control_resolution", None)
        step = STEPS.get(self.family, 16)
        if not free:
            return {"mode": "fit", "resolution": resolution, "step": step} if resolution else None
        return {"mode": "own", "step": step} | ({"resolution": resolution, "capped": True} if resolution else {})

    def _problem(self, key: str, value: object, problem: str, change: str) -> None:
        self.notes.problem(self.name, key, value, problem, change)


def _first_line(file: Path) -> Mapping[str, object]:
    try:
        with open(file, encoding="utf-8") as lines:
            line = json.loads(next(lines, "{}"))
        return line if isinstance(line, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}  # the reader of the list says what is wrong with it


def _number_keys(file: Path, key: str) -> str:
    """The key, or its first numbered form when the lines use that."""
    keys = _keys_in(file, key)
    return keys[0] if keys else key


def _keys_in(file: Path, key: str) -> list[str]:
    """`key`, `key_0`, `key_1`... as the first line has them, in the order of their numbers."""
    keys = [name for name in _first_line(file) if re.fullmatch(rf"{key}(_\d+)?", name)]
    return sorted(keys, key=lambda name: int(name.removeprefix(key).lstrip("_") or -1))


def _count_controls(controls: Path, targets: Path) -> int:
    """How many controls the target with the most has: files whose name starts with the target's."""
    if not is_folder(controls) or not is_folder(targets):
        return 1
    stems = sorted({path.stem for path in targets.iterdir() if path.is_file()}, key=len, reverse=True)
    counts: dict[str, int] = {}
    for path in controls.iterdir():
        owner = next((s for s in stems if path.stem == s or re.fullmatch(rf"{re.escape(s)}_\d+", path.stem)), None)
        if owner is not None:
            counts[owner] = counts.get(owner, 0) + 1
    return max(counts.values(), default=1)
