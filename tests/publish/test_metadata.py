"""What a saved file says about itself."""

from __future__ import annotations

import pytest

from darkroom.options.config import Config
from darkroom.publish import metadata
from darkroom.train.state import TrainState


def written(step: int = 7, words=(), **options) -> dict[str, str]:
    return metadata.writer(Config(model_family="flux", **options), "dev", words)(TrainState(step=step, epoch=2))


def test_keys_of_the_model_specification():
    row = written(tracker_run_name="grumbo", resolution=512)

    assert row["modelspec.sai_model_spec"] == "1.0.1"
    assert row["modelspec.architecture"] == "flux-dev/lora"
    assert row["modelspec.implementation"] == "diffusers"
    assert row["modelspec.title"] == "grumbo"
    assert row["modelspec.resolution"] == "512x512"
    assert row["global_step"] == "7"


def test_a_whole_model_is_no_lora():
    assert written(model_type="full")["modelspec.architecture"] == "flux-dev"


def test_trained_words_are_listed_once():
    assert written(words=["grumbo", "mint", "grumbo"])["trained_words"] == "grumbo, mint"
    assert "trained_words" not in written()


@pytest.mark.parametrize("step", [0, 12])
def test_the_comment_is_filled_in_at_every_save(monkeypatch, step):
    monkeypatch.setenv("AUTHOR", "me")

    row = written(step, modelspec_comment="by {env:AUTHOR} at {current_step}, epoch {current_epoch}, {other}")

    assert row["modelspec.comment"] == f"by me at {step}, epoch 2, {{other}}"


def test_a_timestamp_is_in_utc():
    assert metadata.comment_text("{timestamp}", TrainState()).endswith("+00:00")


def test_a_list_becomes_lines_and_nothing_no_key():
    assert metadata.comment_text(["a", "b"], TrainState()) == "a\nb"
    assert "modelspec.comment" not in written()


def test_every_value_is_text():
    assert all(isinstance(value, str) for value in written().values())
