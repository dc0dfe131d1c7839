"""The engine of a run, and the precisions that options mean."""

from __future__ import annotations

import pytest
import torch

from darkroom.options.config import Config
from darkroom.train import distributed


def config(**options) -> Config:
    return Config(model_family="flux", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 and devices differ with a GPU")
def test_runs_of_one_process_may_differ_in_precision():
    started = [distributed.start(config(mixed_precision=wanted)).mixed_precision for wanted in ("bf16", "no")]

    assert started == ["bf16", "no"]


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"mixed_precision": "no"}, torch.float32),
        ({"mixed_precision": "bf16"}, torch.bfloat16),
        ({"mixed_precision": "fp16"}, torch.float16),
        ({"mixed_precision": "bf16", "base_model_default_dtype": "fp32"}, torch.float32),
    ],
)
def test_precision_of_frozen_weights(options, dtype):
    assert distributed.base_dtype(config(**options)) is dtype


@pytest.mark.parametrize(("optimizer", "dtype"), [("adamw_bf16", torch.bfloat16), ("torch-adamw", torch.float32)])
def test_precision_of_trained_weights(optimizer, dtype):
    assert distributed.trained_dtype(config(optimizer=optimizer)) is dtype
