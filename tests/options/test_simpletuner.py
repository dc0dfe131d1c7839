"""Configs and dataset files of SimpleTuner are read as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from darkroom import families
from darkroom.core.errors import ConfigErrors
from darkroom.families.shared.rule_facts import family_facts
from darkroom.options import conflicts
from darkroom.options.datasets import read_datasets
from darkroom.options.sources import Resolved, resolve
from tests.options.simpletuner_corpus import CONTROLNETS, IMAGE_FAMILIES, VIDEO_FAMILIES, environments
from tests.rows import each_row

CORPUS = {environment.name: environment for environment in environments()}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all environments, as beside a checkout of SimpleTuner."""
    root = tmp_path_factory.mktemp("simpletuner")
    for name in ("images", "clips"):
        (root / name).mkdir()
    Image.new("RGB", (160, 160)).save(root / "images/one.png")
    for environment in CORPUS.values():
        environment.write(root, root / "images", root / "clips")
    return root


def read(name: str, root: Path, *words: str) -> Resolved:
    return resolve([f"env={name}", *words], {}, root, families.defaults)


def test_the_corpus_has_every_family_and_kind_of_training():
    assert len(CORPUS) >= 60
    assert len(list(environments())) == len(CORPUS)
    assert set(CONTROLNETS) <= {*IMAGE_FAMILIES}
    only_here = {"framepack", "framepack_one_frame", "hunyuan_image", "hunyuanvideo_original", "mochi"}
    read_as = {"ideogram": "ideogram4", "pixart": "pixart_sigma"}
    there = {read_as.get(name, name.replace("-", "_")) for name in {**IMAGE_FAMILIES, **VIDEO_FAMILIES}}
    assert there == {*families.names()} - only_here


@each_row("name", CORPUS)
def test_every_environment_is_read_without_a_refusal(name, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    resolved = read(name, workplace)
    family = families.get(resolved.config.model_family, resolved.config.model_flavour)
    facts = family_facts(family, resolved.config)
    assert conflicts.validate_options(resolved.config, resolved.sources, facts) == []
    assert resolved.config.model_flavour in family.flavours
    assert read_datasets(resolved.config.data_backend_config, resolved.config, {}).training


@each_row("name", [*CORPUS][::7])
def test_what_has_no_effect_is_noted(name, workplace):
    noted = {note.option for note in read(name, workplace).notes}
    assert {"hub_model_id", "context_parallel_size", "text_encoder_batch_size"} <= noted


@each_row("name", CORPUS)
def test_every_environment_may_be_tried_at_tiny(name, workplace):
    resolved = read(name, workplace, "--model_flavour=tiny")
    assert resolved.config.model_flavour == "tiny"
    assert resolved.config.musubi_blocks_to_swap <= 1


def resolve_words(folder: Path, **settings: object) -> Resolved:
    settings = {"model_family": "flux", "data_backend_config": "d.json", **settings}
    (folder / "config.json").write_text(json.dumps(settings))
    return resolve(["config.json"], {}, folder, families.defaults)


@each_row("value", [0, -1, "", None, "none", "None", "0"])
@each_row(
    "name",
    [
        "minimum_image_size", "maximum_image_size", "target_downsample_size", "framerate", "checkpoint_epoch_interval",
        "validation_epoch_interval", "eval_epoch_interval", "gradient_checkpointing_interval",
        "accelerator_cache_clear_interval",
    ],
)  # fmt: skip
def test_every_way_to_write_off_leaves_an_option_out(name, value, tmp_path):
    assert getattr(resolve_words(tmp_path, **{name: value}).config, name) is None


@each_row(
    "name, written, read",
    [
        ("seed", -1, None),
        ("seed", 0, 0),
        ("skip_file_discovery", False, None),
        ("skip_file_discovery", ["vae", "text"], "vae,text"),
        ("ramtorch_target_modules", ["blocks.*", "proj"], "blocks.*,proj"),
        ("ramtorch_target_modules", [], None),
        ("peft_lora_target_modules", [], None),
        ("modelspec_comment", ["one", "two"], ["one", "two"]),
        ("attention_mechanism", "flash-attn-3-hub", "diffusers"),
        ("attention_mechanism", "metal-flash-attention-int8", "diffusers"),
        ("base_model_precision", "fp8wo-torchao", "fp8-torchao"),
        ("model_family", "ideogram", "ideogram4"),
        ("model_family", "pixart", "pixart_sigma"),
        ("model_family", "kandinsky5-image", "kandinsky5_image"),
        ("validation_lycoris_strength", 1.0, 1.0),
    ],
)
def test_values_are_read_as_simpletuner_means_them(name, written, read, tmp_path):
    assert getattr(resolve_words(tmp_path, **{name: written}).config, name) == read


@each_row(
    "family, there, here", [("wan", "flf2v-14b-2.1", "flf2v-14b-2.1-720p"), ("z_image", "turbo-ostris-v2", "turbo")]
)
def test_flavours_have_their_names_here(family, there, here, tmp_path):
    resolved = resolve_words(tmp_path, model_family=family, model_flavour=there)
    assert resolved.config.model_flavour == here
    assert any(here in note.reason for note in resolved.notes if note.option == "model_flavour")


def test_a_path_as_prompt_library_is_the_users_own(tmp_path):
    config = resolve_words(tmp_path, validation_prompt_library="config/prompts.json").config
    assert (config.validation_prompt_library, config.user_prompt_library) == (False, "config/prompts.json")


@each_row(
    "settings",
    [
        {"hub_model_id": "me/mine"},
        {"lycoris_config": "config/lycoris.json", "lora_type": "standard"},
        {"tread_config": {}},
        {"publishing_config": []},
        {"model_card_private": False},
        {"crepa_lambda": 0.7, "crepa_scheduler": "linear", "crepa_lambda_end": 0.1},
        {"strict_epoch_limit": False},
        {"context_parallel_size": 1, "context_parallel_comm_strategy": "alltoall"},
        {"fsdp_enable": "false", "fsdp_version": 2, "fsdp_reshard_after_forward": False},
        {"deepspeed_config": ""},
        {"num_machines": 1, "main_process_ip": "10.0.0.1"},
        {"ltx2_first_frame_conditioning_probability": 0.5},
        {"evaluation_type": "clip", "eval_steps_interval": 5},
        {"snr_gamma": 5.0},
    ],
)
def test_a_setting_without_effect_is_no_refusal(settings, tmp_path):
    resolved = resolve_words(tmp_path, **settings)
    family = families.get("flux")
    facts = family_facts(family, resolved.config)
    assert conflicts.validate_options(resolved.config, resolved.sources, facts) == []


@each_row(
    "settings",
    [
        {"push_to_hub": True},
        {"lora_type": "lycoris"},
        {"context_parallel_size": 2},
        {"tread_config": {"routes": [{"selection_ratio": 0.5}]}},
        {"model_family": "ltxvideo2", "ltx2_first_frame_conditioning_probability": 0.5},
        {"twinflow_enabled": True},
    ],
)
def test_what_would_act_is_refused_and_ignore_unsupported_goes_on(settings, tmp_path):
    with pytest.raises(ConfigErrors):
        resolve_words(tmp_path, **settings)
    resolved = resolve_words(tmp_path, **settings, ignore_unsupported=True)
    assert {*settings} - {"model_family"} <= {note.option for note in resolved.notes}
    assert not resolved.config.push_to_hub
    assert resolved.config.lora_type == "standard"


def test_a_config_is_tried_at_tiny_with_what_tiny_has(tmp_path):
    settings = {"musubi_blocks_to_swap": 30, "pretrained_model_name_or_path": "a/b", "validation_resolution": "1024"}
    resolve_words(tmp_path, **settings)
    resolved = resolve(["config.json", "--model_flavour=tiny"], {}, tmp_path, families.defaults)
    config = resolved.config
    assert (config.musubi_blocks_to_swap, config.pretrained_model_name_or_path) == (1, None)
    assert config.validation_resolution == "64"
    assert {*settings} <= {note.option for note in resolved.notes}


def test_a_local_model_is_taken_at_tiny_too(tmp_path):
    resolve_words(tmp_path, pretrained_model_name_or_path=str(tmp_path))
    config = resolve(["config.json", "--model_flavour=tiny"], {}, tmp_path, families.defaults).config
    assert config.pretrained_model_name_or_path == str(tmp_path)


def test_a_new_controlnet_is_trained_whole(tmp_path):
    resolved = resolve_words(tmp_path, model_type="lora", controlnet=True)
    assert resolved.config.model_type == "full"
    assert any(note.option == "model_type" for note in resolved.notes)
    existing = resolve_words(tmp_path, model_type="lora", controlnet=True, controlnet_model_name_or_path="a/b")
    assert existing.config.model_type == "lora"


def test_paths_of_examples_are_found_beside_the_config(tmp_path):
    folder = tmp_path / "somewhere/examples"
    (folder / "mine").mkdir(parents=True)
    (folder / "data.json").write_text("[]")
    settings = {"model_family": "flux", "data_backend_config": "config/examples/data.json"}
    (folder / "mine/config.json").write_text(json.dumps(settings))
    resolved = resolve([str(folder / "mine/config.json")], {}, tmp_path)
    assert resolved.config.data_backend_config == "somewhere/examples/data.json"


@each_row(
    "text, seed",
    [
        ('{"model_family": "flux", "seed": 3,}', 3),
        ('{"model_family": "flux", "peft_lora_target_modules": ["to_q",\n ], "seed": 4\n,\n}', 4),
    ],
)
def test_a_comma_after_the_last_entry_is_read_over(text, seed, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert resolve(["config.json"], {}, tmp_path, partial=True).config.seed == seed


def test_a_comma_inside_a_text_stays(tmp_path):
    (tmp_path / "config.json").write_text('{"model_family": "flux", "validation_prompt": "a lamp,}, \\",]"}')
    config = resolve(["config.json"], {}, tmp_path, partial=True).config
    assert config.validation_prompt == 'a lamp,}, ",]'
