"""Configs and dataset files of SimpleTuner are read as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from darkroom import families
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
