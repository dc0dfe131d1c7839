"""`darkroom generate` from what a run left behind."""

from __future__ import annotations

import json

import pytest

from darkroom import families
from darkroom.cli.main import main
from darkroom.families.tiny import build
from darkroom.tools.verify import verify


@pytest.mark.smoke
def test_a_runs_whole_pipeline_is_drawn_with_its_own_parts(tmp_path, capsys, monkeypatch):
    """The run's base took its UNet from elsewhere; what it trained of it is in the pipeline."""
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))
    build(families.get("sd1x")).save_pretrained(tmp_path / "run" / "pipeline")
    places = {"pretrained_unet_model_name_or_path": str(tmp_path / "gone")}
    options = {"model_family": "sd1x", "model_flavour": "tiny", **places}
    lock = {"options": {name: {"value": value} for name, value in options.items()}, "base": {"source": "tiny:tiny"}}
    (tmp_path / "run" / "run.lock.json").write_text(json.dumps(lock))

    said = main(["generate", "--model", str(tmp_path / "run" / "pipeline"), "--prompt", "a house", "--steps", "1",
                 "--output", str(tmp_path / "pictures")])  # fmt: skip

    assert said == 0, capsys.readouterr().err
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("flux", {"flux_attention_masked_training": True, "validation_guidance_real": 3.0}),
        ("flux", {"t5_padding": "zero"}),
        ("sd3", {"t5_padding": "zero"}),
        ("pixart_sigma", {"t5_padding": "zero"}),
    ],
    ids=str,
)
def test_a_run_that_reads_padding_in_its_own_way_is_drawn_so_elsewhere(family, options, arguments, tmp_path):
    usual = {"max_train_steps": 2, "validation_prompt": "a cup of coffee", "disable_benchmark": True}
    assert main(["train", *arguments(family, **usual, **options)]) == 0

    verdict = verify(tmp_path / "out")
    assert verdict.images == 1
    assert verdict.holds
