"""The skeleton that `darkroom dev new-family` writes: it can be imported, and says what the classes say."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from darkroom import families
from darkroom.cli.main import main
from darkroom.tools import new_family
from tests.rows import each_row

CONFIG = Path(__file__).parents[2] / "pyproject.toml"
# a family that is here, by the pipeline that its skeleton would be written from
HERE = {"MochiPipeline": "mochi", "HunyuanImagePipeline": "hunyuan_image", "StableDiffusion3Pipeline": "sd3"}


@pytest.fixture
def checkout(tmp_path):
    """The two folders that a family has files in."""
    for folder in ("darkroom/families", "tests/families/faults"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def skeleton(checkout, pipeline):
    """The family of a skeleton, as it is written."""
    file, _ = new_family.write(pipeline, checkout)
    spec = importlib.util.spec_from_file_location(f"skeleton_{pipeline}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FAMILY


@pytest.mark.parametrize("pipeline", HERE)
def test_a_skeleton_knows_what_the_classes_say(checkout, pipeline):
    family, real = skeleton(checkout, pipeline), families.get(HERE[pipeline])

    assert (family.pipeline, family.denoiser, family.prediction) == (real.pipeline, real.denoiser, real.prediction)
    assert family.blocks == real.blocks
    assert set(family.targets["default"]) >= set(real.targets["default"])
    assert (family.latents.channels, family.latents.patch) == (real.latents.channels, real.latents.patch)
    assert bool(family.latents.temporal) == bool(real.latents.temporal)
    assert set(family.tiny.encoders) == set(real.tiny.encoders)
    assert set(family.tiny.tokenizers) == set(real.tiny.tokenizers)
    assert (family.tiny.vae.cls, family.tiny.scheduler.cls) == (real.tiny.vae.cls, real.tiny.scheduler.cls)


@pytest.mark.parametrize("pipeline", [*HERE, "CogVideoXPipeline", "StableDiffusionXLPipeline"])
def test_its_files_pass_the_linter_once_they_are_formatted(checkout, pipeline):
    files = new_family.write(pipeline, checkout)

    for command in (["format"], ["check", "--ignore", "F401"]):
        run = [sys.executable, "-m", "ruff", *command, "--config", CONFIG, *files]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    assert new_family.FILL in files[0].read_text()


@each_row(
    "arguments, problem",
    [
        (["MochPipeline"], r"no pipeline MochPipeline.*\n.*MochiPipeline"),
        (["ErnieImageModularPipeline"], r"no pipeline ErnieImageModularPipeline"),
        (["LLaDA2Pipeline"], r"no network of diffusers.*\n.*Copy"),
        (["LattePipeline"], r"cannot be built from the defaults.*\n.*Copy"),
        (["MochiPipeline", "--name", "taken"], r"is there already.*\n.*--name"),
        (["MochiPipeline", "--root", "nowhere"], r"no folder.*\n.*--root"),
    ],
)
def test_what_cannot_be_written_is_said(checkout, capsys, arguments, problem):
    if "taken" in arguments:
        (checkout / "darkroom/families/taken.py").touch(exist_ok=True)

    assert main(["dev", "new-family", "--root", str(checkout), *arguments]) == 2
    assert re.search(problem, capsys.readouterr().err)
