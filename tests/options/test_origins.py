"""Whose config it is, and whose defaults hold."""

import json

import pytest

from darkroom.options.origins import ORIGINS
from darkroom.options.sources import resolve
from tests.rows import each_row

NEEDED = {"model_family": "flux", "data_backend_config": "data.json"}


def read(folder, settings, *words, name="config.json", family_defaults=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({**NEEDED, **settings}))
    return resolve([name, *words], {}, folder, family_defaults)


@each_row(
    "settings",
    [
        {"--model_type": "lora"},
        {"hub_model_id": "mine", "lora_type": "standard"},
        {"context_parallel_size": 1},
        {"data_backend_config": "config/flux/multidatabackend.json"},
    ],
)
def test_a_config_of_simpletuner_takes_its_cosine_and_says_so(settings, tmp_path):
    resolved = read(tmp_path, {"lr_scheduler": "cosine", "lr_warmup_steps": 50, **settings})
    assert resolved.config.compat_lr_schedules
    assert resolved.config.effective_lr_schedule == "cosine_wave"
    assert resolved.sources["compat_lr_schedules"] == "SimpleTuner default"
    assert any("compat_lr_schedules is true" in note.reason for note in resolved.notes)


def test_a_config_of_our_own_keeps_the_cosine_of_the_library(tmp_path):
    resolved = read(tmp_path, {"lr_scheduler": "cosine", "lr_warmup_steps": 50})
    assert resolved.config.effective_lr_schedule == "cosine"
    assert not [note for note in resolved.notes if note.option == "defaults"]


def test_the_user_decides_about_the_schedule(tmp_path):
    resolved = read(tmp_path, {"--lr_scheduler": "cosine", "--compat_lr_schedules": False})
    assert resolved.config.effective_lr_schedule == "cosine"


@pytest.mark.parametrize(("chosen", "rate", "shift"), [("simpletuner", 4e-7, 3.0), ("darkroom", None, 1.0)])
def test_defaults_chooses_whose_hold(chosen, rate, shift, tmp_path):
    resolved = read(
        tmp_path,
        {"--model_type": "lora"},
        f"--defaults={chosen}",
        family_defaults=lambda family, flavour: {"flow_schedule_shift": 1.0},
    )
    assert resolved.config.learning_rate == rate
    assert resolved.config.flow_schedule_shift == shift
    assert not resolved.explicit("learning_rate")


def test_the_notes_name_what_has_another_default_there(tmp_path):
    note = next(n for n in read(tmp_path, {"--model_type": "lora"}).notes if n.option == "defaults")
    assert "train_batch_size 4 (here 1)" in note.reason
    assert "--defaults simpletuner" in note.reason


def test_what_the_config_says_itself_is_not_noted(tmp_path):
    note = next(n for n in read(tmp_path, {"--train_batch_size": 2}).notes if n.option == "defaults")
    assert "train_batch_size 4" not in note.reason


@each_row("name", sorted(ORIGINS))
def test_every_default_of_an_origin_is_a_value_of_its_option(name):
    from darkroom.options.sources import invalid_values

    origin = ORIGINS[name]
    for defaults in (origin.defaults, origin.implied, *origin.family_defaults.values()):
        assert invalid_values({name: value for name, value in defaults.items() if value is not None}) == {}
