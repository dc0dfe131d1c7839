"""`darkroom import musubi SCRIPT FLAGS...`: one command of musubi-tuner as a config of Darkroom's."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from darkroom.core.errors import missing_option
from darkroom.core.files import expand_home, is_file
from darkroom.options.imports.musubi.architectures import CACHE, FINETUNE, GENERATE, TRAIN, Script, find_script
from darkroom.options.imports.musubi.arguments import parse, read_config_file, split_launcher
from darkroom.options.imports.musubi.translate import MODEL, translate
from darkroom.options.imports.report import Imported, ImportedKey

TITLE = "musubi-tuner"
USAGE = "darkroom import musubi SCRIPT [FLAGS...], as after `python` or `accelerate launch`"


def read(words: Sequence[str], cwd: Path) -> Imported:
    """The command as a config. Raises ConfigErrors for options that musubi-tuner has not."""
    if not words:
        raise missing_option("SCRIPT", "No script of musubi-tuner is named.", f"Write: {USAGE}.")
    name, *flags = split_launcher(words)
    script = find_script(name)
    values = parse(flags)
    if file := values.get("config_file"):
        values = {**read_config_file(str(file), cwd), **values}
    rows = translate(_with_model_options(values, cwd), script)
    rows = [row for row in rows if row.key in values or row.key.partition(" ")[0] in (*values, MODEL)]
    settings = {name: value for row in reversed(rows) for name, value in row.settings.items()}  # the first one counts
    settings = dict(sorted(settings.items(), key=lambda item: _position(item[0], rows)))
    if script.job in (TRAIN, FINETUNE, CACHE):
        settings = {"defaults": "musubi", **settings}
    datasets, remarks = _read_datasets(values, cwd)
    return Imported(
        TITLE,
        script.name,
        str(values.get("output_name") or f"musubi-{script.name}"),
        settings,
        rows,
        datasets=datasets,
        command=_find_command(script, settings, values),
        remarks=[*remarks, *_describe(script)],
    )


def _with_model_options(values: Mapping[str, object], cwd: Path) -> dict[str, object]:
    """The values, and whether the dataset file is of one-frame FramePack, which musubi-tuner's training is not told."""
    path = values.get("dataset_config")
    if path and "one_frame" not in values:
        file = cwd / expand_home(str(path))
        if is_file(file) and "fp_1f_" in file.read_text(encoding="utf-8", errors="replace"):
            return {**values, "one_frame": True}
    return dict(values)


def _position(name: str, rows: Sequence[ImportedKey]) -> int:
    return next(number for number, row in enumerate(rows) if name in row.settings)


def _read_datasets(values: Mapping[str, object], cwd: Path) -> tuple[str | None, list[str]]:
    """The text of the dataset file, to be written beside the config, and what to say of one that is not there."""
    path = values.get("dataset_config")
    if not path:
        return None, []
    file = cwd / expand_home(str(path))
    if file.suffix == ".toml" and is_file(file):
        return file.read_text(encoding="utf-8-sig"), []
    if is_file(file):
        return None, []
    return None, [f"The dataset file {path} is not here; the config names it as it is."]


def _find_command(script: Script, settings: Mapping[str, object], values: Mapping[str, object]) -> str:
    """The command of Darkroom that does what the script does."""
    if script.job == CACHE:
        return "darkroom cache {config}"
    if script.job == GENERATE:
        return _generate_command(settings, values)
    return "darkroom train {config}" if script.job in (TRAIN, FINETUNE) else "darkroom --help"


def _generate_command(settings: Mapping[str, object], values: Mapping[str, object]) -> str:
    words = ["darkroom", "generate"]
    for flag, name in (("--model_family", "model_family"), ("--model_flavour", "model_flavour")):
        words += [flag, str(settings[name])] if name in settings else []
    files, strengths = values.get("lora_weight"), values.get("lora_multiplier")
    numbers = strengths if isinstance(strengths, list) else []
    for position, file in enumerate(files if isinstance(files, list) else []):
        words += ["--adapter", f"{file}:{numbers[position] if position < len(numbers) else 1.0}"]
    for flag, name in (
        ("--prompt", "validation_prompt"),
        ("--negative_prompt", "validation_negative_prompt"),
        ("--resolution", "validation_resolution"),
        ("--frames", "validation_num_video_frames"),
        ("--steps", "validation_num_inference_steps"),
        ("--guidance", "validation_guidance"),
        ("--guidance_real", "validation_guidance_real"),
        ("--seed", "seed"),
        ("--count", "num_validation_images"),
    ):
        words += [flag, str(settings[name])] if name in settings else []
    for name in ("image_path", "i", "control_image_path", "ref_images"):
        images = values.get(name) or []
        for image in images if isinstance(images, list) else [images]:
            words += ["--image", str(image)]
    if folder := values.get("save_path") or values.get("output"):
        words += ["--output", str(folder)]
    return shlex.join(words)


def _describe(script: Script) -> list[str]:
    """What Darkroom does in another way than a script of this kind."""
    if script.job == CACHE:
        return [
            "A run fills its caches itself; `darkroom cache` does it beforehand. musubi-tuner's caches are not read."
        ]
    if script.job == GENERATE:
        return ["The config holds the same as validation options, for a run that renders while it trains."]
    if script.architecture is None:
        return ["This is a tool for files, not a training: no config comes of it."]
    return []
