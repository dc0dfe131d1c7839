"""Runs that draw in bfloat16 are made again as they were drawn; caches are in full precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from darkroom.cli.main import main
from darkroom.families.shared import latents
from darkroom.job import caches
from darkroom.tools.verify import verify
from darkroom.train.step import Stepper

RUNS = {
    "a plain adapter": ("flux", {}),
    "two text encoders": ("sdxl", {}),
    "trained text encoders": ("sd1x", {"train_text_encoder": True}),
    "two denoisers": ("wan", {"model_flavour": "tiny-pair"}),
    "another number format of the VAE": ("wan", {"vae_dtype": "bf16"}),
    "frozen weights in 32 bit": ("z_image", {"base_model_default_dtype": "fp32"}),
    "whole weights": ("sdxl", {"model_type": "full"}),
    "whole weights in bfloat16": ("wan", {"model_type": "full", "optimizer": "adamw_bf16"}),
}


BESIDE = {"conditioning": {"type": "superresolution"}}
LOOKING = {
    "a picture that CLIP looks at": ("wan", "tiny-i2v", {}),
    "a picture that the reader of text looks at": ("qwen_image", "tiny-edit", BESIDE),
}


@pytest.mark.parametrize("kind", LOOKING)
def test_what_looks_at_pictures_has_the_precision_that_it_had(
    kind: str, arguments, dataset_file, tmp_path: Path
) -> None:
    family, flavour, keys = LOOKING[kind]
    # the editing pipeline gives the VAE its pictures in the precision of the text
    precision = {"mixed_precision": "bf16", "vae_dtype": "bf16"}
    options = {"max_train_steps": 2, "disable_benchmark": True, "num_eval_images": 1, **precision}
    argv = arguments(family, model_flavour=flavour, data_backend_config=dataset_file(keys), **options)
    assert main(["train", *argv]) == 0

    verdict = verify(tmp_path / "out")
    assert verdict.images == 1
    assert verdict.holds


@pytest.mark.parametrize("kind", RUNS)
def test_an_intact_run_in_bfloat16_holds(kind: str, arguments, tmp_path: Path) -> None:
    family, options = RUNS[kind]
    usual = {"mixed_precision": "bf16", "max_train_steps": 2, "validation_prompt": "a cup of coffee"}
    assert main(["train", *arguments(family, **{**usual, "disable_benchmark": True, **options})]) == 0

    verdict = verify(tmp_path / "out")
    assert verdict.unmatched == []
    assert verdict.images == 1
    assert verdict.difference is not None
    assert verdict.difference <= 1
    assert verdict.holds


@pytest.mark.parametrize(
    ("options", "trains_with"),
    [({}, True), ({"disable_tf32": True}, False), ({"vae_cache_ondemand": True}, False)],
)
def test_what_is_cached_is_encoded_in_full_precision_whatever_training_computes_in(
    options, trains_with, arguments, monkeypatch
):
    seen: dict[str, set[tuple[bool, bool]]] = {}

    def watched(name, function):
        def call(*args, **keywords):
            found = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            seen.setdefault(name, set()).add(found)
            return function(*args, **keywords)

        return call

    monkeypatch.setattr(latents, "encode", watched("images", latents.encode))
    monkeypatch.setattr(caches, "encode_captions", watched("captions", caches.encode_captions))
    monkeypatch.setattr(Stepper, "update", watched("steps", Stepper.update))
    assert main(["train", *arguments(max_train_steps=1, validation_disable=True, **options)]) == 0

    assert seen == {
        "captions": {(False, False)}, "images": {(False, False)}, "steps": {(trains_with, trains_with)},
    }  # fmt: skip
