"""Every option is declared once, says what it does, and nothing of the predecessors is forgotten."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from darkroom import families
from darkroom.families.shared.model_spec import flavour_names
from darkroom.options import compat, config, model, pages
from darkroom.options.config import Config, every_option, not_offered, option_names
from darkroom.options.conflicts import FamilyFacts, collect_remarks, validate_options
from darkroom.options.field import option
from darkroom.options.imports.musubi.options import OPTIONS
from darkroom.options.origins import ORIGINS
from darkroom.options.sources import resolve
from tests.rows import each_row

pytestmark = pytest.mark.smoke

PREDECESSOR = json.loads((Path(__file__).parent / "predecessor_options.json").read_text())
"""Options of SimpleTuner's documents: their choices, aliases and documented defaults."""


def test_every_name_and_alias_is_unique():
    counts = Counter(name for info in every_option() for name in info.names)
    assert [name for name, count in counts.items() if count > 1] == []


def test_every_option_has_one_plain_sentence():
    wrong = [i.name for i in every_option() if not i.help.endswith(".") or len(i.help) > 200 or not i.help[0].isascii()]
    assert wrong == []
    assert [name for name, count in Counter(i.help for i in every_option()).items() if count > 1] == []


def test_an_option_cannot_be_declared_without_saying_what_a_change_means_at_resume():
    with pytest.raises(TypeError, match="resume"):
        option(1, "A number.")
    assert {info.resume for info in every_option()} == {"refuse", "warn", "free"}


def test_every_reason_for_waiting_is_a_sentence():
    reasons = {i.pending for i in every_option() if i.pending}
    reasons |= {reason for i in every_option() for reason in i.pending_choices.values()}
    assert [r for r in reasons if not r.endswith(".")] == []


def test_every_predecessor_option_is_declared_with_its_aliases():
    names = option_names()
    assert len(PREDECESSOR) == 364
    assert [name for name in PREDECESSOR if name not in names] == []
    for name, row in PREDECESSOR.items():
        assert set(row.get("aliases", ())) <= set(names[name].aliases)


def test_every_predecessor_choice_is_declared():
    names = option_names()
    lacking = {n: set(row.get("choices", ())) - {str(c) for c in names[n].choices} for n, row in PREDECESSOR.items()}
    assert {name: choices for name, choices in lacking.items() if choices} == {}


def test_documented_defaults_are_kept():
    names = option_names()
    documented = {n: row["documented_default"] for n, row in PREDECESSOR.items() if "documented_default" in row}
    # the average of an adapter is small enough for the device; that of a whole model stays on the host, as documented
    otherwise = {"ema_device": "auto"}
    assert {n: names[n].default for n in documented if names[n].default != documented[n]} == otherwise


def test_whole_numbers_are_declared_as_whole_numbers():
    counted = ("_steps", "_interval", "_size", "_limit", "_count", "_epochs", "_index", "_rank")
    sizes = {"minimum_image_size", "maximum_image_size", "target_downsample_size", "eval_epoch_interval"}
    floats = [i.name for i in every_option() if i.kind == "number" and i.name.endswith(counted) and i.name not in sizes]
    assert floats == []


def test_conditions_name_options_and_families_that_exist():
    names, families_known = option_names(), set(model.families_here())
    for info in every_option():
        assert set(info.when) <= set(names), info.name
        assert set(info.families) <= families_known, info.name
        for name, wanted in info.when.items():
            values = wanted if isinstance(wanted, tuple) else (wanted,)
            choices = names[name].choices
            assert not choices or all(v in choices or v in (None, "(set)") for v in values), info.name


def test_pending_choices_are_choices_and_never_the_default():
    for info in every_option():
        assert set(info.pending_choices) <= set(info.choices), info.name
        assert info.default not in info.pending_choices, info.name


def test_defaults_are_valid_and_offered():
    made = Config(model_family=families.names()[0])
    assert Config.model_validate(made.model_dump()) == made
    assert not_offered(made) == []


def test_predecessor_keys_are_no_options_of_ours():
    foreign = {name for origin in ORIGINS.values() for row in origin.foreign for name in row.keys}
    strangers = foreign | compat.DATASET_KEYS | compat.FORM_KEYS
    assert strangers & set(option_names()) == set()
    switches = compat.ENV_FILE_SWITCHES
    targets = {*compat.ENV_FILE_NAMES.values(), *(row[0] for row in switches.values())}
    assert targets <= set(option_names())


def test_options_of_musubi_tuner_become_options_that_there_are():
    assert {row.to for row in OPTIONS.values() if row.to} <= set(option_names())


def test_the_families_offered_are_the_families_there_are():
    assert {"flux", "sdxl"} <= set(model.families_here())
    assert {name: families.get(name).name for name in model.families_here()} == {n: n for n in families.names()}


def test_every_variable_that_the_code_reads_is_known():
    package = Path(config.__file__).parents[1]
    found = {name for path in package.rglob("*.py") for name in re.findall(r'"DARKROOM_([A-Z_]+)"', path.read_text())}
    assert found - compat.SETTINGS_FREE_VARIABLES - {name.upper() for name in option_names()} == set()


@each_row(
    "family, flavour",
    [(name, flavour) for name in families.names() for flavour in flavour_names(families.get(name))],
)
def test_what_a_family_prefers_is_valid_and_contradicts_nothing(family, flavour, tmp_path):
    words = ["data_backend_config=x", f"model_family={family}", f"model_flavour={flavour}"]
    made = resolve(words, {}, tmp_path, families.defaults)
    known = families.get(family)
    facts = FamilyFacts(family, known.title, known.prediction, known.guidance_input, known.supports)
    assert made.notes == []
    assert validate_options(made.config, made.sources, facts) == []
    assert collect_remarks(made.config, made.sources, facts) == []


def test_the_config_is_frozen_and_flat():
    made = Config(model_family="flux", seed=3)
    assert made.seed == 3
    with pytest.raises(ValidationError):
        made.seed = 4
    with pytest.raises(ValidationError):
        Config(model_family="flux", sed=3)


@each_row(
    "settings, rate",
    [
        ({}, 1e-4),
        ({"model_type": "full"}, 1e-5),
        ({"optimizer": "prodigy"}, 1.0),
        ({"optimizer": "prodigy", "learning_rate": 0.5}, 0.5),
    ],
)
def test_the_learning_rate_that_is_left_out_suits_the_run(settings, rate):
    assert Config(model_family="flux", **settings).effective_learning_rate == rate


def test_a_run_without_a_length_is_one_epoch():
    assert Config(model_family="flux").effective_epochs == 1
    assert Config(model_family="flux", num_train_epochs=3).effective_epochs == 3
    assert Config(model_family="flux", max_train_steps=10).effective_epochs is None


def test_trackers_are_the_words_of_report_to():
    assert Config(model_family="flux").trackers == ()
    assert Config(model_family="flux", report_to=["wandb", "TensorBoard"]).trackers == ("wandb", "tensorboard")


def test_the_pages_are_current():
    assert pages.stale() == [], "run: python -m darkroom.options.pages"
    assert pages.main(["--check"]) == 0


def test_the_pages_mention_every_option(tmp_path):
    changed = pages.write(tmp_path)
    (tmp_path / "gone.md").write_text("left over")
    text = "".join((tmp_path / name).read_text() for name in changed)
    assert [i.name for i in every_option() if f"## `{i.name}`" not in text] == []
    assert pages.stale(tmp_path) == ["gone.md"]
    assert pages.write(tmp_path) == ["gone.md"]
    assert not (tmp_path / "gone.md").exists()


def test_the_help_text_has_the_basic_options_and_fits():
    text = pages.help_text(width=80)
    assert "--train_batch_size N" in text
    assert "--crepa_enabled" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_nothing_here_imports_torch():
    modules = "darkroom.options.pages, darkroom.options.conflicts, darkroom.cli.options"
    code = f"import sys, {modules}; raise SystemExit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_section_is_joined():
    assert {name for section in config.SECTIONS for name in section.model_fields} == set(Config.model_fields)
    assert len({section.page for section in config.SECTIONS}) == len(config.SECTIONS)
