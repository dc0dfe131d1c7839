"""Environments of SimpleTuner are planned at `tiny` unchanged, and one in five is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom import families
from darkroom.cli.main import main
from darkroom.job import plan
from darkroom.media.video import write_mp4
from darkroom.options.sources import resolve
from tests.options.simpletuner_corpus import environments
from tests.rows import each_row

pytestmark = pytest.mark.slow

CORPUS = {environment.name: environment for environment in environments()}
TINY = "--model_flavour=tiny"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all environments and a few images and clips for them."""
    root = tmp_path_factory.mktemp("simpletuner")
    images, clips = root / "images", root / "clips"
    noise = np.random.default_rng(16)
    for folder in (images, clips):
        folder.mkdir()
    for number in range(4):
        Image.fromarray(noise.integers(0, 255, (160, 160, 3), dtype=np.uint8)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"photo {number}")
    for number in range(2):
        write_mp4(clips / f"{number}.mp4", noise.integers(0, 255, (12, 80, 80, 3), dtype=np.uint8), 24.0)
        (clips / f"{number}.txt").write_text(f"clip {number}")
    for environment in CORPUS.values():
        environment.write(root, images, clips)
    return root


@each_row("name", CORPUS)
def test_every_environment_is_planned_at_tiny(name, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    begun = plan.begin(resolve([f"env={name}", TINY], {}, workplace, families.defaults))
    assert begun.values["steps"]


# torch says so where a norm with fp32 weights is computed in bf16 on a CPU, which it does in the usual way then
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("name", [*CORPUS][::5])
def test_one_environment_in_five_is_trained(name, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    assert main(["train", f"env={name}", TINY, "--max_train_steps=1", "--validation_disable=true"]) == 0
    results = [path for path in (workplace / "output" / name).rglob("*.safetensors") if path.stat().st_size]
    assert results
