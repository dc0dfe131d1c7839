"""Which prompts are rendered, and what a library may hold."""

from __future__ import annotations

import json

import pytest

from darkroom.core.errors import ConfigError
from darkroom.core.files import safe_name
from darkroom.options.config import Config
from darkroom.validate.prompts import LIBRARY, Prompt, collect, read_library


def library(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def prompts(**options) -> list[Prompt]:
    return collect(Config(model_family="flux", **options))


def test_the_built_in_library_is_valid_and_its_names_are_file_names():
    entries = json.loads(LIBRARY.read_text(encoding="utf-8"))

    found = read_library(LIBRARY, "validation_prompt_library")

    assert len(found) == len(entries) >= 30
    assert all(prompt.text and safe_name(prompt.name) == prompt.name for prompt in found)
    assert len({prompt.text for prompt in found}) == len(found)


def test_an_entry_is_a_text_or_an_object(tmp_path):
    path = library(tmp_path, {
        "plain": "a cat", "object": {"prompt": "a dog", "adapter_strength": 0.5}, "caption": {"caption": "a cow"},
        "tags": {"tags": "hen, egg"}, " ": "skipped", "empty": "",
    })  # fmt: skip

    assert read_library(path, "user_prompt_library") == [
        Prompt("plain", "a cat"), Prompt("object", "a dog", 0.5), Prompt("caption", "a cow"),
        Prompt("tags", "hen, egg"), Prompt("empty", ""),
    ]  # fmt: skip


def test_names_that_become_equal_as_file_names_are_numbered(tmp_path):
    path = library(tmp_path, {"猫": "cat", "犬": "dog", "a b": "one", "a/b": "two"})

    assert [p.name for p in read_library(path, "user_prompt_library")] == ["unnamed", "unnamed_2", "a_b", "a_b_2"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        (3, "one object"),
        ({"bad": 5}, "'bad'"),
        ({"bad": {"text": "x"}}, "'bad'"),
        ({"bad": {"prompt": 5}}, "'bad'"),
        ({"bad": {"prompt": "x", "adapter_strength": "strong"}}, "'bad'"),
    ],
)
def test_a_library_that_cannot_be_used_names_the_entry(tmp_path, content, said):
    with pytest.raises(ConfigError, match=said) as caught:
        read_library(library(tmp_path, content), "user_prompt_library")

    assert caught.value.option == "user_prompt_library"


def test_an_absent_library_is_refused_with_its_path(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        read_library(tmp_path / "nowhere.json", "user_prompt_library")


def test_prompts_come_in_the_published_order(tmp_path):
    path = library(tmp_path, {"mine": "my cat"})

    found = prompts(user_prompt_library=str(path), validation_prompt="a picture", validation_prompt_library=True)

    names = [prompt.name for prompt in found]
    assert (names[0], names[-2:]) == ("unconditional", ["mine", "validation"])
    assert len(names) > 30


def test_the_empty_prompt_can_be_left_out():
    assert prompts(validation_disable_unconditional=True, validation_prompt="x") == [Prompt("validation", "x")]


def test_a_later_prompt_of_the_same_name_wins(tmp_path):
    path = library(tmp_path, {"unconditional": "not empty"})

    assert prompts(user_prompt_library=str(path)) == [Prompt("unconditional", "not empty")]


def test_an_entry_may_bring_the_picture_that_it_starts_from(tmp_path):
    (tmp_path / "start.png").write_bytes(b"x")
    clips = {"clip": {"prompt": "it moves", "image": "start.png"}}
    path = library(tmp_path, {**clips, "two": {"prompt": "both", "image": ["start.png", "start.png"]}})

    start = str(tmp_path / "start.png")
    assert read_library(path, "user_prompt_library") == [
        Prompt("clip", "it moves", images=(start,)), Prompt("two", "both", images=(start, start)),
    ]  # fmt: skip


def test_an_entrys_picture_that_is_not_there_is_refused_with_its_path(tmp_path):
    path = library(tmp_path, {"clip": {"prompt": "it moves", "image": "nowhere.png"}})

    with pytest.raises(ConfigError, match=r"'clip'.*nowhere\.png"):
        read_library(path, "user_prompt_library")
