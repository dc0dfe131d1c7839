"""Small runs on real photographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom import families
from darkroom.families import tiny
from darkroom.families.shared.model_spec import resolve_flavour
from tests.families.conformance import options  # it also lets the editing pipelines make small pictures

PHOTOGRAPHS = {
    "astronaut": "a woman in an orange suit",
    "chelsea": "a ginger cat",
    "coffee": "a cup of coffee",
    "rocket": "a rocket at dusk",
    "hubble_deep_field": "galaxies",
    "retina": "an orange disc",
}


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six small photographs with captions, of two shapes."""
    from skimage import data

    folder = tmp_path_factory.mktemp("photographs")
    for name, caption in PHOTOGRAPHS.items():
        image = Image.fromarray(getattr(data, name)())
        size = (96, 96) if abs(image.width / image.height - 1) < 0.2 else (120, 80)
        image.resize(size).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture
def dataset_file(tmp_path: Path, photographs: Path) -> Callable[..., str]:
    """Writes a dataset file of one entry with the given keys over the usual ones, or of several entries."""

    def write(*entries: dict[str, Any], **keys: Any) -> str:
        common = {"type": "local", "instance_data_dir": str(photographs), "caption_strategy": "textfile"}
        rows = [{"id": f"set{i}", **common, **entry, **keys} for i, entry in enumerate(entries or ({},))]
        path = tmp_path / "datasets.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def arguments(tmp_path: Path, dataset_file: Callable[..., str]) -> Callable[..., list[str]]:
    """Command-line arguments of a tiny run; keywords become options."""

    def build(family: str = "flux", **options: Any) -> list[str]:
        values = {
            "model_family": family,
            "model_flavour": "tiny",
            "output_dir": str(tmp_path / "out"),
            "max_train_steps": 4,
            "train_batch_size": 2,
            "seed": 5,
            "validation_disable_unconditional": True,
            "validation_num_inference_steps": 2,
            "torch_num_threads": 1,
            **options,
        }
        values.setdefault("data_backend_config", None)
        if values["data_backend_config"] is None:
            values["data_backend_config"] = dataset_file()
        return [f"--{name}={value}" for name, value in values.items() if value is not None]

    return build


FILMS = ("chelsea", "coffee")
FRAMES = 9


@pytest.fixture(scope="session")
def moving(tmp_path_factory):
    """Two films of photographs that move."""
    from skimage import data

    from darkroom.media.video import write_mp4

    folder = tmp_path_factory.mktemp("moving")
    for name in FILMS:
        whole = Image.fromarray(getattr(data, name)()).resize((128, 96))
        clip = [np.asarray(whole.crop((i, i // 2, i + 96, i // 2 + 72))) for i in range(FRAMES)]
        write_mp4(folder / f"{name}.mp4", np.stack(clip), 24.0)
        (folder / f"{name}.txt").write_text(f"a film of {name}")
    return folder


@pytest.fixture(scope="session")
def layered(tmp_path_factory):
    """Photographs, each with two layers that are partly transparent."""
    from skimage import data

    folder = tmp_path_factory.mktemp("layered")
    for name in FILMS:
        whole = Image.fromarray(getattr(data, name)()).resize((128, 96))
        whole.save(folder / f"{name}.png")
        for number, side in enumerate([(0, 0, 64, 96), (64, 0, 128, 96)]):
            alpha = Image.new("L", whole.size)
            alpha.paste(255, side)
            whole.putalpha(alpha)
            whole.save(folder / f"{name}_{number}.png")
        (folder / f"{name}.txt").write_text(f"a picture of {name}")
    return folder


@pytest.fixture
def settings(dataset_file, photographs, moving, layered, tmp_path):
    """The options of a short run of a flavour, on what it is made for."""

    def of(name: str, flavour: str) -> dict[str, object]:
        family = families.get(name, flavour)
        supports, facts = family.spec.supports, family.spec.flavour
        entries: list[dict[str, object]] = [{}]
        steps = family.spec.components.defaults.get("validation_num_inference_steps", 2)
        found: dict[str, object] = {
            "model_flavour": flavour, "train_batch_size": 1, "validation_num_inference_steps": steps,
        }  # fmt: skip
        if "video" in supports:
            video: dict[str, object] = {"num_frames": FRAMES, "min_frames": FRAMES, "max_frames": 100}
            if facts.image_pipeline:
                video["is_i2v"] = True
            size = {"resolution": family.spec.defaults["resolution"]}
            entries = [{"dataset_type": "video", "instance_data_dir": str(moving), "video": video, **size}]
            found["validation_num_video_frames"] = max(FRAMES, options(name, flavour).validation_num_video_frames)
        if "layers" in supports:
            entries = [{"instance_data_dir": str(layered), "layers": True}]
        if "references" in supports:
            entries.append({
                "id": "before", "dataset_type": "conditioning", "conditioning_type": "reference_strict",
                "source_dataset_id": "set0", "instance_data_dir": str(photographs), "caption_strategy": None,
            })  # fmt: skip
        if facts.control:
            entries.append({
                "id": "followed", "dataset_type": "conditioning", "conditioning_type": "controlnet",
                "source_dataset_id": "set0", "instance_data_dir": str(moving), "caption_strategy": None,
            })  # fmt: skip
        prompts: dict[str, object] = {"cup": "a cup of coffee"}
        if facts.image_input != "none" or facts.control:
            needed = max(1, family.image_counts(options(name, flavour))[0])
            pictured = {"prompt": "a cup of coffee", "image": [str(photographs / "coffee.png")] * needed}
            # with a pipeline of its own for pictures, the flavour also draws without one
            prompts = {**prompts, "start": pictured} if facts.image_pipeline else {"cup": pictured}
        library = tmp_path / "prompts.json"
        library.write_text(json.dumps(prompts))
        return {**found, "data_backend_config": dataset_file(*entries), "user_prompt_library": library}

    return of


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """Tiny models that are wide enough for every quantiser, as folders."""
    found = {}

    def of(name: str) -> str:
        if name not in found:
            family = families.get(name)
            found[name] = str(tmp_path_factory.mktemp("wide") / name)
            tiny.build(family, resolve_flavour(family, "tiny").components.oracle).save_pretrained(found[name])
        return found[name]

    return of
