"""The table of SimpleTuner's values and ours is what the reader answers, and what the page shows."""

import json

import pytest

from darkroom import families
from darkroom.options.config import option_info
from darkroom.options.origins import ORIGINS
from darkroom.options.sources import resolve
from tests.options.compared import COMPARED, LEFT_OUT, PAGE, page
from tests.rows import each_row

ORIGIN = ORIGINS["simpletuner"]
# what a page says of an option whose value is worked out when it is left out
EFFECTIVE = {"learning_rate": "effective_learning_rate"}


def value_of(row, folder):
    written = {} if row.written == LEFT_OUT else {row.option: row.written}
    beside = {"lr_scheduler": "cosine"} if row.option == "compat_lr_schedules" else {}
    settings = {
        "--model_family": "flux", "--model_flavour": "dev", "--data_backend_config": "d.json", **beside, **written,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    config = resolve(["config.json"], {}, folder, families.defaults).config
    return getattr(config, EFFECTIVE.get(row.option, row.option))


def test_forty_options_are_compared():
    assert len({row.option for row in COMPARED}) >= 40


@each_row("row", COMPARED)
def test_the_value_here_is_what_the_reader_answers(row, tmp_path):
    assert value_of(row, tmp_path) == row.here


@each_row("row", COMPARED)
def test_what_differs_is_explained(row):
    assert (row.there == row.here) == (not row.reason)


@each_row("row", [row for row in COMPARED if row.written == LEFT_OUT and row.option in ORIGIN.defaults])
def test_the_defaults_of_simpletuner_are_those_that_the_option_takes(row):
    assert {**ORIGIN.defaults, **ORIGIN.defaults_for("flux", "dev")}[row.option] == row.there


@pytest.mark.parametrize("family", ["ltxvideo2", "ltxvideo", "z_image", "kandinsky5_video", "lumina2", "qwen_image"])
def test_the_flow_shift_of_simpletuner_holds_when_it_is_chosen(family, tmp_path):
    words = [f"--model_family={family}", "--data_backend_config=d", "--defaults=simpletuner"]
    config = resolve(words, {}, tmp_path, families.defaults).config
    assert (config.flow_schedule_shift, config.flow_schedule_auto_shift) == (3.0, False)


def test_caption_lengths_of_simpletuner_hold_when_they_are_chosen(tmp_path):
    def length(family):
        words = [f"--model_family={family}", "--data_backend_config=d", "--defaults=simpletuner"]
        return resolve(words, {}, tmp_path, families.defaults).config.tokenizer_max_length

    assert [length(name) for name in ("sd3", "kandinsky5_image", "auraflow")] == [154, 256, 120]


def test_every_default_that_differs_is_known_to_its_option():
    for name in ORIGIN.defaults:
        assert option_info(name).name == name


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.options.compared"
