"""Configs of other trainers become configs of Darkroom, with a word about every key."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from darkroom import families
from darkroom.cli.main import main
from darkroom.core.errors import ConfigErrors
from darkroom.options.config import option_names
from darkroom.options.imports import find_program, kohya
from darkroom.options.imports.report import Verdict
from darkroom.options.sources import resolve
from tests.imports.configs import CONFIGS, write_photos

# what each of the configs comes to
SETTINGS = {
    "kohya": {
        "model_family": "sdxl", "model_type": "lora", "lora_rank": 32, "lora_alpha": 16.0, "optimizer": "bnb-adamw8bit",
        "optimizer_config": "weight_decay=0.1", "lr_scheduler": "cosine", "snr_gamma": 5.0, "noise_offset": 0.05,
        "max_train_steps": 1200, "grad_clip_method": "norm", "caption_dropout_probability": 0.0,
    },
    "ai-toolkit": {
        "model_family": "flux", "lora_rank": 16, "lora_alpha": 16.0, "optimizer": "bnb-adamw8bit", "use_ema": True,
        "base_model_precision": "fp8-quanto", "timestep_sampling": "sigmoid", "caption_dropout_probability": 0.05,
        "max_train_steps": 2000, "output_dir": "out/my_first_flux_lora",
    },
    "onetrainer": {
        "model_family": "sdxl", "lora_alpha": 1.0, "base_model_precision": "nf4-bnb", "snr_gamma": 5.0,
        "optimizer": "torch-adamw", "num_train_epochs": 10, "checkpoint_epoch_interval": 1, "use_ema": True,
    },
    "diffusion-pipe": {
        "model_family": "flux", "lora_rank": 32, "lora_alpha": 32.0, "optimizer": "optimi-adamw",
        "base_model_precision": "fp8-block", "optimizer_beta2": 0.99, "timestep_sampling": "flux_shift",
    },
    "diffusers": {
        "model_family": "flux", "lora_rank": 16, "optimizer": "prodigy", "max_train_steps": 500, "report_to": "wandb",
        "gradient_checkpointing": True, "lr_warmup_steps": 0,
    },
    "simpletuner": {"model_family": "flux", "lora_rank": 8, "max_train_steps": 100},
}  # fmt: skip


@pytest.fixture
def imported(tmp_path, monkeypatch, capsys):
    """Import a program's config in a folder of its own; returns the JSON report."""

    def run(program: str) -> dict[str, object]:
        monkeypatch.chdir(tmp_path)
        write_photos(tmp_path / "photos")
        words = CONFIGS[program](tmp_path)
        assert main(["import", "-o", "imported", "--json", program, *words]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("program", CONFIGS)
def test_a_config_becomes_one_that_a_run_reads(program, imported, tmp_path):
    report = imported(program)

    written = tomllib.loads((tmp_path / "imported/config.toml").read_text())
    resolved = resolve(["imported/config.toml"], {}, Path.cwd(), families.defaults)
    assert {name: written.get(name) for name in SETTINGS[program]} == SETTINGS[program]
    assert set(written) <= set(option_names())
    assert resolved.config.data_backend_config
    assert {key["verdict"] for key in report["keys"]} <= {verdict.value for verdict in Verdict}
    assert all(key["remark"] for key in report["keys"] if key["verdict"] != "exact")


@pytest.mark.parametrize("program", CONFIGS)
def test_every_key_of_a_config_is_answered_for(program, imported, tmp_path):
    report = imported(program)

    text = (tmp_path / "imported/import_report.md").read_text()
    assert all(f"{key['key']} = " in text for key in report["keys"])
    if program == "kohya":
        given = set(kohya._read_flat("lora.toml", tmp_path)) | {"bucket_reso_steps", "xformers", "config_file"}
        assert given <= {key["key"] for key in report["keys"]}


@pytest.mark.slow
@pytest.mark.parametrize("program", CONFIGS)
def test_what_was_imported_is_planned_at_tiny(program, imported, capsys):
    imported(program)

    changes = [
        "--model_flavour=tiny",
        "--base_model_precision=no_change",
        "--pretrained_model_name_or_path=",
        "--report_to=none",
    ]
    assert main(["plan", "imported/config.toml", *changes]) == 0
    assert "10 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "change", "nearest"),
    [
        ("kohya", lambda words: [*words, "--netwrk_dim=4"], "network_dim"),
        ("diffusers", lambda words: [*words, "--learning_rat=1"], "learning_rate"),
    ],
)
def test_a_misspelt_flag_is_an_error_that_names_the_nearest(program, change, nearest, tmp_path):
    words = change(CONFIGS[program](tmp_path))

    with pytest.raises(ConfigErrors, match=nearest):
        find_program(program).read(words, tmp_path)


@pytest.mark.parametrize(
    ("program", "file", "key", "nearest"),
    [
        ("kohya", "lora.toml", "network_dim", "network_dim"),
        ("ai-toolkit", "flux.yaml", "gradient_accumulation_steps", "train.gradient_accumulation"),
        ("onetrainer", "sdxl.json", "lora_rank", "lora_rank"),
        ("diffusion-pipe", "flux.toml", "gradient_clipping", "gradient_clipping"),
    ],
)
def test_a_misspelt_key_of_a_file_is_an_error_that_names_the_nearest(program, file, key, nearest, tmp_path):
    words = CONFIGS[program](tmp_path)
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(text.replace(key, key[:-2] + key[-1] + key[-2], 1))

    with pytest.raises(ConfigErrors, match=nearest):
        find_program(program).read(words, tmp_path)


@pytest.mark.parametrize("program", ["kohya", "ai-toolkit", "onetrainer", "diffusion-pipe", "diffusers"])
def test_what_is_no_config_of_the_program_is_refused_in_words(program, tmp_path):
    (tmp_path / "other").write_text("\x00 [ {")

    words = {"kohya": ["--config_file", "other"], "diffusers": ["other"]}.get(program, ["other"])
    with pytest.raises(ConfigErrors):
        find_program(program).read(words, tmp_path)


@pytest.mark.parametrize("program", ["kohya", "ai-toolkit", "onetrainer", "diffusion-pipe", "diffusers"])
def test_every_rule_names_options_that_there_are(program):
    module = find_program(program)
    names = set(option_names())
    for value in vars(module).values():
        for key, rule in value.items() if isinstance(value, dict) else ():
            if hasattr(rule, "make") and rule.verdict is not Verdict.NOT_OFFERED:
                try:
                    made = rule.make(1, {})
                except (TypeError, ValueError, KeyError, IndexError, AttributeError):
                    continue
                settings = made.settings if hasattr(made, "settings") else made
                entry_keys = {"instance_data_dir", "repeats", "is_regularisation_data", "crop", "crop_style"}
                entry_keys |= {"train_batch_size", "minimum_aspect_ratio", "maximum_aspect_ratio", "dataset_type"}
                assert set(settings) <= names | entry_keys, key


@pytest.mark.parametrize("program", ["kohya", "ai-toolkit", "onetrainer", "diffusion-pipe"])
def test_a_config_of_another_trainer_names_the_command_that_imports_it(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = CONFIGS[program](tmp_path)
    file = next(word for word in words if word.endswith((".toml", ".yaml", ".json")))

    assert main(["train", file]) == 2
    assert f"darkroom import {program} {file}" in capsys.readouterr().err
