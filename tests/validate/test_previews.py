"""Pictures can be looked at while they are made, for every family that has a tiny decoder, by existing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from darkroom import families
from darkroom.cli.main import main
from darkroom.core.errors import ConfigError
from darkroom.report.eventlog import read
from darkroom.validate.prompts import Prompt
from tests.families import conformance
from tests.validate.test_render import renderer

PROMPT = Prompt("house", "a small red house")
SHOWING = [
    (name, flavour)
    for name, flavour in conformance.cases()
    if families.get(name).previews
    and not min(families.get(name, flavour).image_counts(conformance.options(name, flavour)))
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))


def decoder(folder, channels: int) -> str:
    """A tiny decoder with random weights."""
    torch.manual_seed(0)
    made = AutoencoderTiny(
        latent_channels=channels, encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1), scaling_factor=1.0,
    )  # fmt: skip
    made.save_pretrained(folder)
    return str(folder)


def test_families_with_a_decoder():
    assert {"sd1x", "sdxl", "sd3", "flux", "z_image", "hidream"} <= {name for name, _ in SHOWING}


@pytest.mark.parametrize(("name", "flavour"), SHOWING)
def test_every_step_can_be_looked_at_and_the_picture_stays_the_same(name, flavour, tmp_path):
    made, model = renderer(name, flavour)
    source = decoder(tmp_path / "decoder", made.components.latents.channels)
    changed = {"validation_preview": True, "validation_preview_decoder": source, "validation_num_inference_steps": 4}
    made.options = made.components.options = SimpleNamespace(**{**vars(made.options), **changed})
    (plain,) = made.render(model, [PROMPT], 1, "adapter")
    seen = []
    made.on_preview = lambda prompt, index, recipe, step, look: seen.append((prompt.name, step, look.image.size))

    (picture,) = made.render(model, [PROMPT], 1, "adapter")

    assert np.array_equal(picture.output.frames, plain.output.frames)
    assert [step for _, step, _ in seen] == [1, 2, 3, 4]
    assert {size for *_, size in seen} == {(64, 64)}


@pytest.mark.parametrize(
    ("name", "words"), [("wan", "no tiny decoder for the latents of Wan"), ("deepfloyd", "no tiny decoder")]
)
def test_previews_that_cannot_be_are_refused(name, words):
    made, _ = renderer(name, "tiny")
    made.options = SimpleNamespace(**{**vars(made.options), "validation_preview": True})
    with pytest.raises(ConfigError, match=words):
        made.validate_prompts([PROMPT])


def test_a_decoder_of_other_latents_is_refused(tmp_path):
    made, model = renderer("flux", "tiny")
    source = decoder(tmp_path / "decoder", 4)
    changed = {"validation_preview": True, "validation_preview_decoder": source}
    made.options = made.components.options = SimpleNamespace(**{**vars(made.options), **changed})
    made.on_preview = lambda *_: None
    with pytest.raises(ConfigError, match="decodes 4 channels, and latents here have 16"):
        list(made.render(model, [PROMPT], 1, "adapter"))


def test_a_run_writes_previews_and_tells_of_them(tmp_path):
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("red")
    entry = {"id": "a", "type": "local", "instance_data_dir": str(tmp_path), "caption_strategy": "textfile"}
    (tmp_path / "data.json").write_text(json.dumps([{**entry, "repeats": 3}]))
    words = [
        "train", "--model_family=sd1x", "--model_flavour=tiny", f"--output_dir={tmp_path / 'out'}",
        "--max_train_steps=1", "--train_batch_size=1", f"--data_backend_config={tmp_path / 'data.json'}",
        "--validation_prompt=a house", "--validation_disable_unconditional=true", "--disable_benchmark=true",
        "--validation_num_inference_steps=6", "--validation_preview=true", "--validation_preview_steps=3",
        f"--validation_preview_decoder={decoder(tmp_path / 'decoder', 4)}", "--torch_num_threads=1",
    ]  # fmt: skip
    assert main(words) == 0

    rows = [row for row in read(tmp_path / "out/events.jsonl") if row["event"] == "preview"]
    assert [(row["done"], row["total"], row["step"]) for row in rows] == [(3, 6, 1), (6, 6, 1)]
    assert Image.open(tmp_path / "out" / rows[0]["path"]).size == (64, 64)
