"""musubi-tuner's files of sample prompts are validation prompts with settings of their own."""

from __future__ import annotations

import pytest
from PIL import Image

from darkroom.core.errors import ConfigError
from darkroom.validate.prompts import read_library
from tests.rows import each_row

LINE = "a red fox --w 837 --h 480 --f 34 --d 7 --s 2000 --g 3.5 --l 5 --fs 2.2 --n blurry, dark --CI start.png"


def prompts_of(folder, name, text):
    Image.new("RGB", (8, 8)).save(folder / "start.png")
    (folder / name).write_text(text)
    return read_library(folder / name, "user_prompt_library")


def test_every_switch_of_a_line_is_a_setting_of_its_prompt(tmp_path):
    (prompt, plain) = prompts_of(tmp_path, "p.txt", f"# a comment\n\n{LINE}\na plain one\n")
    assert (prompt.name, prompt.text, plain.text) == ("sample_00", "a red fox", "a plain one")
    assert prompt.images == (str(tmp_path / "start.png"),)
    assert plain.settings == ()
    assert dict(prompt.settings) == {
        "validation_resolution": "832x480",
        "validation_num_video_frames": 33,
        "validation_seed": 7,
        "validation_num_inference_steps": 1000,
        "validation_guidance": 3.5,
        "validation_guidance_real": 5.0,
        "flow_schedule_shift": 2.2,
        "validation_negative_prompt": "blurry, dark",
    }


@each_row("name, text", [
    ("p.toml", '[prompt]\nsample_steps = 4\n[[prompt.subset]]\nprompt = "a fox"\nseed = 3\n'),
    ("p.json", '[{"prompt": "a fox", "sample_steps": 4, "seed": 3}]'),
    ("q.json", '["a fox --s 4 --d 3"]'),
])  # fmt: skip
def test_toml_and_json_say_the_same(name, text, tmp_path):
    (prompt,) = prompts_of(tmp_path, name, text)
    assert prompt.text == "a fox"
    assert dict(prompt.settings) == {"validation_num_inference_steps": 4, "validation_seed": 3}


@each_row("line, words", [("a --z 3", "no switch --z"), ("a --cn c.mp4", "not offered"), ("a --s many", "no number"),
                          ("a --i none.png", "is not there")])  # fmt: skip
def test_what_no_image_can_follow_is_an_error(line, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        prompts_of(tmp_path, "p.txt", line)
