"""`darkroom generate` from what a run left behind."""

from __future__ import annotations

import json

from darkroom import families
from darkroom.cli.main import main
from darkroom.families.tiny import build


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
