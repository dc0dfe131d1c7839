"""Small folders of pictures, a stand-in for the options of a run, and encoders made of arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom.core.events import Bus, Event
from darkroom.data.plan import scan_datasets
from darkroom.data.requirements import DataRequirements
from darkroom.options.config import Config, construct
from darkroom.options.datasets import DatasetFile, read_datasets
from tests.data.prepared import PreparedData


def write_picture(
    path: Path, size: tuple[int, int] = (64, 64), seed: int = 0, caption: str | None = "a picture"
) -> Path:
    """A noisy picture of (width, height), with a caption file unless `caption` is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


class Workshop:
    """One temporary project: pictures in `pictures`, a dataset file, options, and everything the bus was told."""

    def __init__(self, folder: Path):
        self.folder, self.pictures = folder, folder / "pictures"
        self.pictures.mkdir()
        self.options = {
            "output_dir": str(folder / "out"),
            "model_family": "toy",
            "aspect_bucket_alignment": 8,
            "train_batch_size": 2,
            "seed": 7,
            "caption_dropout_probability": 0.0,
            "compress_disk_cache": False,
        }
        self.events: list[Event] = []
        self.requirements = DataRequirements("toy")

    @property
    def config(self) -> Config:
        return construct(self.options)

    def entry(self, **keys: Any) -> dict[str, Any]:
        return {
            "id": "pics",
            "instance_data_dir": str(self.pictures),
            "resolution": 64,
            "caption_strategy": "textfile",
            **keys,
        }

    def read(self, *entries: Any, environ: dict[str, str] | None = None) -> DatasetFile:
        file = self.folder / "datasets.json"
        file.write_text(json.dumps(list(entries)))
        return read_datasets(file, self.config, environ or {})

    def plan(self, *entries: Any, lenient: bool = False) -> PreparedData:
        """The datasets, scanned; their caches are as they are."""
        bus = Bus()
        bus.on(Event, self.events.append)
        file = self.read(*(entries or (self.entry(),)))
        return PreparedData(scan_datasets(self.config, file, bus, self.requirements, lenient=lenient))

    def add(self, count: int, size: tuple[int, int] = (64, 64), prefix: str = "p", folder: str = "") -> list[Path]:
        return [
            write_picture(self.pictures / folder / f"{prefix}{i:03d}.png", size, i, f"caption {prefix} {i}")
            for i in range(count)
        ]

    @staticmethod
    def encode_pixels(pixels):
        """(B, 3, H, W) to (B, 3, H/8, W/8): averages, so that tests can tell pictures apart."""
        import torch

        return torch.nn.functional.avg_pool2d(pixels, 8)

    @staticmethod
    def encode_text(captions):
        """One dict per caption: its length and the sum of its letters."""
        import torch

        return [{"text": torch.tensor([float(len(c)), float(sum(map(ord, c)))])} for c in captions]

    def filled(self, *entries: Any) -> PreparedData:
        plan = self.plan(*entries)
        plan.fill_text(self.encode_text, "text-1")
        plan.fill_latents(self.encode_pixels, "vae-1")
        return plan

    picture = staticmethod(write_picture)


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)
