"""The table of keys is complete, agrees with the reader, names tests that exist, and is what the page shows."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from darkroom.core.errors import UserError
from darkroom.options.config import option_info
from darkroom.options.datasets import (
    CaptionShuffle,
    DatasetFile,
    ImageEmbeds,
    MetadataTable,
    SampleDataset,
    TextEmbeds,
    VideoBlock,
    musubi,
    read_datasets,
)
from darkroom.options.datasets import keys as k
from darkroom.options.datasets.entries import Generator
from darkroom.options.datasets.locations import HubRows, LinkList, Panels, RowFilter, S3Files
from tests.data import keys
from tests.data.keys import IDLE, KINDS, MUSUBI, OPTIONS, REFUSED, SECTIONS, WORKS, Key, MusubiKey
from tests.rows import each_row

pytestmark = pytest.mark.smoke

TESTS = Path(__file__).parents[1]
ROWS = [key for rows in SECTIONS.values() for key in rows]

MADE_BY_THE_READER = {
    "location", "generator", "kohya", "pairing", "number", "optional", "has_repeats", "crop_aspect_weights",
    "type", "media_column", "panels", "connections", "follows_model", "short_batches", "empty_captions",
}  # fmt: skip
"""Fields that no key of theirs sets: they hold what other keys say."""

PLACES: dict[str, dict[str, Any]] = {
    "local": {"instance_data_dir": "."},
    "aws": {"type": "aws", "aws_bucket_name": "b", "aws_endpoint_url": "https://x", "aws_access_key_id": "k",
            "aws_secret_access_key": "s"},
    "csv": {"type": "csv", "csv_file": "l.csv", "csv_cache_dir": "kept", "csv_caption_column": "words"},
    "huggingface": {"type": "huggingface", "dataset_name": "x/y"},
    "table": {"instance_data_dir": ".", "metadata_backend": "parquet", "caption_strategy": "parquet",
              "parquet": {"path": "t.parquet"}},
}  # fmt: skip
PLACES |= {"discovery": PLACES["local"], "json": PLACES["local"], "filesystem": PLACES["local"]}


def merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """`two` over `one`, blocks joined."""
    both = {key: merged(one[key], value) for key, value in two.items() if isinstance(value, dict) and key in one}
    return {**one, **two, **both}


def entry_of(letter: str, key: Key, on: str | None = None) -> dict[str, Any]:
    """An entry of a kind with the key written in it."""
    entry: dict[str, Any] = {"id": "tested", "dataset_type": KINDS[letter]}
    place = PLACES[on or key.on]
    if letter in "TMN":
        place = place if place.get("type") == "aws" else {}
    entry = merged(entry, place)
    if letter == "C":
        entry |= {"conditioning_type": "reference_loose", "source_dataset_id": "pics"}
    if letter == "V":
        entry["video"] = dict(keys.CLIP)
    entry = merged(entry, key.beside)
    value = key.value
    for name in reversed(key.path[1:]):
        value = {name: value}
    name = key.path[0]
    if name == "instance_data_root":
        entry.pop("instance_data_dir", None)
    return merged(entry, {name: value}) if len(key.path) > 1 else {**entry, name: value}


def read(shop, letter: str, key: Key, on: str | None = None) -> DatasetFile:
    """A file with the entry among others that it may name."""
    others = [
        {"id": "pics", "instance_data_dir": "."},
        {"id": "words", "dataset_type": "text_embeds"},
        {"id": "latents", "dataset_type": "image_embeds"},
        {"id": "features", "dataset_type": "conditioning_image_embeds"},
        {"id": "beside", "conditioning_type": "reference_loose", "instance_data_dir": "."},
    ]
    return shop.read(*others, entry_of(letter, key, on))


def said_of(made: DatasetFile) -> list[str]:
    return [warning for warning in made.warnings if "'tested'" in warning]


def each(status: str) -> list[Any]:
    return [
        pytest.param(key, letter, id=f"{key.name}-{letter}".replace(" ", ""))
        for key in ROWS
        if key.status == status
        for letter in key.where
    ]


def is_about(text: str, key: Key) -> bool:
    return any(f"{name} " in text for name in (key.path[0], k.ALIASES.get(key.path[0], key.path[0]), key.name))


# -- what the reader answers ------------------------------------------------------------------------------------------


@each_row("key, letter", each(WORKS))
def test_a_key_that_works_is_accepted_without_a_but(shop, key: Key, letter: str) -> None:
    for warning in said_of(read(shop, letter, key)):
        for name in {".".join(key.path), key.path[-1]}:
            assert f" {name} has no effect" not in warning
            assert f"{name} is ignored" not in warning


@each_row("key, letter", each(IDLE))
def test_a_key_without_effect_says_so(shop, key: Key, letter: str) -> None:
    assert any(key.says in warning for warning in said_of(read(shop, letter, key)))


@each_row("key, letter", each(REFUSED))
def test_a_refused_key_gives_its_reason(shop, key: Key, letter: str) -> None:
    with pytest.raises(UserError) as caught:
        read(shop, letter, key)
    assert key.says.lower() in str(caught.value).lower()
    assert "tested" in str(caught.value)


ELSEWHERE = [
    pytest.param(key, letter, id=f"{key.name}-{letter}")
    for key in ROWS
    if key.status == WORKS and key.says_elsewhere and ": " not in key.name
    for letter in KINDS
    if letter not in key.where and not any(other.name == key.name and letter in other.where for other in ROWS)
]


@each_row("key, letter", ELSEWHERE)
def test_on_other_entries_a_key_says_that_it_does_nothing(shop, key: Key, letter: str) -> None:
    try:
        told = said_of(read(shop, letter, key))
    except UserError as cause:
        told = [str(cause)]
    assert any(is_about(text, key) for text in told)


OF_STORAGE = [key for key in ROWS if key.status == WORKS and key.on in ("aws", "csv", "huggingface")]


@each_row("key", [key for key in OF_STORAGE if ": " not in key.name], ids=lambda key: key.name)
def test_a_key_of_another_storage_says_that_it_does_nothing(shop, key: Key) -> None:
    assert any(f"{key.path[0]} has no effect" in warning for warning in said_of(read(shop, "I", key, on="local")))


@each_row(
    "keys, key",
    [
        ({"crop_aspect": "closest", "crop_aspect_buckets": [1.0]}, "crop_aspect"),
        ({"crop_aspect_buckets": [1.0]}, "crop_aspect_buckets"),
        ({"max_upscale_threshold": 0.2}, "max_upscale_threshold"),
        ({"maximum_image_size": 900, "target_downsample_size": 800}, "maximum_image_size"),
        ({"target_downsample_size": 800}, "target_downsample_size"),
        ({"parquet": {"path": "x"}}, "parquet"),
        ({"crop_style": "face", **PLACES["table"]}, "crop_style"),
        ({"dataset_type": "video", "video": {"num_frames": 9, "target_frames": [9]}}, "video.num_frames"),
        ({"dataset_type": "video", "video": {"min_frames": 9, "target_frames": [9]}}, "video.min_frames"),
        ({"dataset_type": "video", "video": {"max_frames": 9, "target_frames": [9]}}, "video.max_frames"),
        ({"dataset_type": "video", "video": {"frame_interval": 9}}, "video.frame_interval"),
        ({"dataset_type": "video", "video": {"frame_stride": 9}}, "video.frame_stride"),
        ({"dataset_type": "video", "video": {"frame_sample": 9}}, "video.frame_sample"),
    ],
)
def test_a_key_that_does_nothing_beside_the_others_says_so(shop, keys, key) -> None:
    assert any(f"{key} has no effect" in warning for warning in shop.read(shop.entry(**keys)).warnings)


def test_a_fading_dataset_under_uniform_sampling_says_that_it_stays(shop) -> None:
    shop.options["data_backend_sampling"] = "uniform"
    made = shop.read(shop.entry(disable_after_epoch_step=5))
    assert any("disable_after_epoch_step has no effect" in warning for warning in made.warnings)


@each_row(
    "keys, words",
    [
        ({"huggingface": {"captoin_column": "x"}}, "Did you mean caption_column"),
        ({"huggingface": "x"}, "object with keys"),
        ({"composite_image_config": {"enabled": True, "image_cuont": 2}}, "Did you mean image_count"),
        ({"filter_func": {"min_widht": 2}}, "It may hold collection"),
    ],
)
def test_a_misspelt_key_of_a_hub_block_is_an_error(shop, keys, words) -> None:
    with pytest.raises(UserError, match=words):
        shop.read({"id": "rows", **PLACES["huggingface"], **keys})


def test_a_misspelt_stage_is_an_error(shop) -> None:
    with pytest.raises(UserError, match="There is no stage 'vea'"):
        shop.read(shop.entry(skip_file_discovery="aspect, vea"))


def test_an_old_name_of_a_metadata_backend_is_understood(shop) -> None:
    made = shop.read(shop.entry(metadata_backend="filesystem"))
    assert made.samples[0].metadata_backend == "discovery"
    assert any("old name of discovery" in warning for warning in made.warnings)


NUMBERS = [
    pytest.param(key, letter, id=f"{key.name}-{letter}")
    for key in ROWS
    if isinstance(key.value, (int, float)) and not isinstance(key.value, bool)
    for letter in key.where
]
ODD = [0, -1, 0.5, "x", "", "0", "-1", [], [0], True, None, float("inf"), float("nan"), 10**30]


def answers(reading: Callable[[], DatasetFile]) -> DatasetFile | None:
    """What was read; None where the reader refused it in its own words."""
    try:
        return reading()
    except UserError:
        return None


@each_row("key, letter", NUMBERS)
def test_whatever_stands_for_a_number_is_read_or_refused(shop, key: Key, letter: str) -> None:
    for odd in ODD:
        answers(lambda odd=odd: read(shop, letter, replace(key, value=odd)))


@each_row("key", ["type", "dataset_type"])
@each_row("odd", [3, True, 0.5, ["image"], {"image": 1}])
def test_a_kind_that_is_no_word_is_refused(shop, key: str, odd: Any) -> None:
    with pytest.raises(UserError, match="There is no such"):
        shop.read(shop.entry(**{key: odd}))


def test_settings_of_a_generated_picture_that_are_no_object_are_refused(shop) -> None:
    with pytest.raises(UserError, match=r"conditioning\.params"):
        shop.read(shop.entry(conditioning={"type": "canny", "params": 3}))


@each_row("name", OPTIONS)
def test_an_option_answers_as_the_table_says(name: str) -> None:
    status, why = keys.option_status(name)
    assert option_info(name).name == name
    assert (status == WORKS) == (why == "")


@each_row("key", MUSUBI, ids=lambda key: f"{key.name}-{key.where.replace(' ', '-')}")
def test_a_musubi_key_is_accepted_or_refused(shop, key: MusubiKey, monkeypatch) -> None:
    monkeypatch.chdir(shop.folder)
    for name in ("films", "controls"):
        Path(name).mkdir(exist_ok=True)
    Path("list.jsonl").write_text('{"image_path": "a.png", "caption": "x"}')
    Path("films.jsonl").write_text('{"video_path": "a.mp4", "caption": "x"}')
    if key.name.startswith("fp_"):
        option = {"fp_latent_window_size": "framepack_latent_window_size"}.get(key.name, f"framepack_{key.name[6:]}")
        own = {"model_family": "framepack_one_frame", option: key.value}
        monkeypatch.setattr(shop, "options", {**shop.options, **own})
    for where in key.where.split():
        folder = {"video_directory": "films"} if where == "video" else {"image_directory": "pictures"}
        folder = {} if key.name.endswith("_jsonl_file") else folder
        dataset = {**folder, "caption_extension": ".txt", **key.beside}
        inner = {} if where == "general" else {key.name: key.value}
        document = {"general": {key.name: key.value} if where == "general" else {}, "datasets": [{**dataset, **inner}]}
        Path("musubi.json").write_text(json.dumps(document))
        if key.status == WORKS:
            made = read_datasets("musubi.json", shop.config, {})
            assert not [warning for warning in made.warnings if f"{key.name} has no effect" in warning]
            continue
        with pytest.raises(UserError) as caught:
            read_datasets("musubi.json", shop.config, {})
        assert key.says.partition(";")[0].lower() in str(caught.value).lower()


@each_row("key", MUSUBI, ids=lambda key: key.name)
def test_whatever_a_musubi_key_holds_is_read_or_refused(shop, key: MusubiKey, monkeypatch) -> None:
    monkeypatch.chdir(shop.folder)
    Path("films").mkdir(exist_ok=True)
    for where in key.where.split():
        place = {"video_directory": "films"} if where == "video" else {"image_directory": "pictures"}
        for odd in [*ODD, [0, 0], [1, "x"], {"a": 1}]:
            inner = {} if where == "general" else {key.name: odd}
            general = {key.name: odd} if where == "general" else {}
            Path("musubi.json").write_text(json.dumps({"general": general, "datasets": [{**place, **inner}]}))
            answers(lambda: read_datasets("musubi.json", shop.config, {}))


# -- completeness -----------------------------------------------------------------------------------------------------


def test_no_key_that_the_code_knows_is_missing_from_the_table() -> None:
    names = {".".join(key.path) for key in ROWS} | {key.path[0] for key in ROWS}
    blocks = {"": (SampleDataset, TextEmbeds, ImageEmbeds, S3Files, LinkList, HubRows), "parquet.": (MetadataTable,),
              "caption_shuffle.": (CaptionShuffle,), "video.": (VideoBlock,), "filter_func.": (RowFilter,),
              "conditioning.": (Generator,)}  # fmt: skip
    fields = {
        f"{block}{name}"
        for block, models in blocks.items()
        for model in models
        for name in model.model_fields
        if block or name not in MADE_BY_THE_READER
    }
    words = {*k.ALIASES, *k.WITHOUT_EFFECT, *k.WITHOUT_EFFECT_UNLESS, *k.REFUSED_KEYS, *k.GLOBALS}
    words |= {key for group in k.STORAGE_KEYS.values() for key in group}
    words |= {f"parquet.{name}" for name in k.TABLE_COLUMNS_OF_OTHERS}
    assert (fields | words) - names == set()
    panels = next(key.value for key in ROWS if key.name == "composite_image_config")
    assert set(Panels.model_fields) == set(panels)


def test_every_kind_of_entry_and_storage_has_a_row() -> None:
    names = {key.name for key in ROWS}
    assert {f"dataset_type: {name}" for name in (*KINDS.values(), *k.REFUSED_TYPES)} <= names
    assert {f"type: {name}" for name in (*k.STORAGE_KEYS, *k.REFUSED_STORAGE)} <= names


def test_every_musubi_key_has_a_row() -> None:
    known = {*musubi.COMMON, *musubi.IMAGE, *musubi.VIDEO, *musubi.RENAMED}
    assert known == {key.name for key in MUSUBI}


def test_every_named_test_exists() -> None:
    places = {row[3] for _, rows in keys.every_row() for row in rows}
    functions: dict[str, set[str]] = {}
    for file in {place.partition("::")[0] for place in places}:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        functions[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [place for place in sorted(places) if place.split("::")[1] not in functions[place.split("::")[0]]] == []


def test_the_page_is_what_the_table_says() -> None:
    assert keys.PAGE.read_text(encoding="utf-8") == keys.page(), "run: python -m tests.data.keys"
