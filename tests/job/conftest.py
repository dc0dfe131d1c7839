"""Small runs on real photographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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
