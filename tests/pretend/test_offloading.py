"""Weights that wait on the host, and checkpoints of another device, on a pretended GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from darkroom import families
from darkroom.cli.main import main
from darkroom.families import tiny
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.memory import quantize
from tests.job.test_run import weights
from tests.pretend.runs import USUAL, losses

pytestmark = pytest.mark.slow

PLAIN = {**USUAL, "validation_disable": True, "gradient_checkpointing": True}
LAYERS = {
    "leaves": {"enable_group_offload": True, "group_offload_type": "leaf_level"},
    "ramtorch": {"ramtorch": True, "ramtorch_disable_extensions": False},
}


@pytest.fixture
def run(arguments, worker, tmp_path):
    """A run on the device into a folder; gives its losses."""

    def go(family: str, folder: Path, **options) -> list[float]:
        log = tmp_path / "log"
        report = worker(["train", *arguments(family, **{**PLAIN, **options}, output_dir=folder)], log=str(log))
        assert report["code"] == 0, log.read_text()[-4000:]
        assert report["refused"] == {}
        assert not [row for row in report["waits"] if "checkpointing.py" in row]
        return losses(folder)

    return go


@pytest.fixture(scope="session")
def wide(tmp_path_factory) -> str:
    """A tiny model that is wide enough for every quantiser."""
    folder, family = tmp_path_factory.mktemp("wide"), families.get("flux")
    tiny.build(family, resolve_flavour(family, "tiny").components.oracle).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("preset", ["int8-quanto", "int8-torchao", "uint8-sdnq"])
def test_quantised_weights_that_wait_learn_what_resident_ones_learn(preset, run, wide, tmp_path):
    if not quantize.is_installed(quantize.find_quantizers()[preset].PACKAGE):
        pytest.skip(f"its package is not installed: {preset}")
    options = {"base_model_precision": preset, "pretrained_model_name_or_path": wide}
    resident = run("flux", tmp_path / "resident", **options)

    assert run("flux", tmp_path / "waits", **options, musubi_blocks_to_swap=1) == resident
    assert weights(tmp_path / "waits" / "checkpoint-2", settings=False) == weights(
        tmp_path / "resident" / "checkpoint-2", settings=False
    )


def test_layers_that_move_alone_in_blocks_that_are_computed_again_learn_the_resident_bytes(run, tmp_path):
    resident = run("sdxl", tmp_path / "resident")
    for name, options in LAYERS.items():
        assert run("sdxl", tmp_path / name, **options) == resident, name
        assert weights(tmp_path / name / "checkpoint-2", settings=False) == weights(
            tmp_path / "resident" / "checkpoint-2", settings=False
        ), name


def test_inputs_of_blocks_wait_on_the_host_and_nobody_waits_for_them(run, tmp_path):
    resident = run("flux", tmp_path / "resident")
    offloaded = {"gradient_checkpointing_backend": "unsloth"}
    assert run("flux", tmp_path / "offloaded", **offloaded) == resident


@pytest.mark.parametrize(("optimizer", "then"), [("torch-adamw", "GPU"), ("adamw_bf16", "CPU")])
def test_a_checkpoint_goes_on_on_another_device(optimizer, then, run, arguments, tmp_path):
    options = {"optimizer": optimizer, "mixed_precision": "bf16", "lora_dropout": 0.1, "use_ema": True}

    def on_cpu(family: str, folder: Path, **options) -> list[float]:
        assert main(["train", *arguments(family, **{**PLAIN, **options}, output_dir=folder)]) == 0
        return losses(folder)

    first, second = (on_cpu, run) if then == "GPU" else (run, on_cpu)
    whole = first("flux", tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "parts" / "checkpoint-2")
    (last,) = second("flux", tmp_path / "parts", **options)

    assert last == pytest.approx(whole[-1], rel=0.01)
