"""Runs whose base is one file, in an original layout: the stock pipeline draws what they taught."""

from __future__ import annotations

import pytest

from darkroom import families
from darkroom.cli.main import main
from darkroom.families import tiny
from darkroom.tools.verify import verify
from tests.families.gguf_files import written
from tests.families.originals import ORIGINALS
from tests.families.test_single_file import checkpoint, saved


@pytest.mark.parametrize(
    ("name", "kind", "suffix"),
    [
        ("sd1x", "lora", "safetensors"),
        ("z_image", "lora", "safetensors"),
        ("z_image", "full", "safetensors"),
        ("z_image", "lora", "gguf"),
    ],
)
def test_a_run_on_one_file_holds(name, kind, suffix, arguments, tmp_path):
    pipe, base = tiny.build(families.get(name)), tmp_path / f"base.{suffix}"
    if suffix == "gguf":
        pytest.importorskip("gguf")
        written(base, ORIGINALS["ZImageTransformer2DModel", 0](pipe.transformer.state_dict()), "Q8_0")
    elif name == "sd1x":
        checkpoint(pipe, base)
    else:
        saved(ORIGINALS["ZImageTransformer2DModel", 0](pipe.transformer.state_dict()), base, "model.diffusion_model.")

    given = {"pretrained_model_name_or_path": base, "model_type": kind, "validation_prompt": "a cup"}
    assert main(["train", *arguments(name, **given)]) == 0

    verdict = verify(tmp_path / "out")
    assert (verdict.unmatched, verdict.images) == ([], 1)
    assert verdict.matched > 0
    assert verdict.difference <= 1
