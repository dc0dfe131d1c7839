"""Commands and configs of musubi-tuner are read, with an answer for every key."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from darkroom import families
from darkroom.cli.main import main
from darkroom.core.errors import ConfigErrors, UserError
from darkroom.options.imports import find_program
from darkroom.options.imports.musubi.architectures import SCRIPTS, find_script
from darkroom.options.imports.musubi.options import OPTIONS
from darkroom.options.imports.report import Verdict
from darkroom.options.imports.writer import as_toml
from darkroom.options.sources import resolve
from tests.imports.musubi_commands import CACHING, GENERATING, TRAINING, Command
from tests.rows import each_row

DATASETS = """
[general]
resolution = [64, 64]
caption_extension = ".txt"
batch_size = 2

[[datasets]]
image_directory = "images"
"""


def read(words: str, folder: Path):
    return find_program("musubi").read(shlex.split(words), folder)


def name_of(command: Command) -> str:
    return command.words.split()[0]


@each_row("command", [*TRAINING, *CACHING, *GENERATING], ids=name_of)
def test_every_key_of_a_command_is_answered_and_set_to_a_value_of_its_option(command, tmp_path):
    imported = read(command.words, tmp_path)
    given = {word.lstrip("-").replace("-", "_").partition("=")[0]
             for word in shlex.split(command.words) if word.startswith("-")}  # fmt: skip
    assert given <= {row.key.partition(" ")[0] for row in imported.rows}
    assert [row.key for row in imported.rows if row.verdict is not Verdict.EXACT and not row.remark] == []
    needed = {"model_family": "flux", "data_backend_config": "d.toml"}
    (tmp_path / "c.toml").write_text(as_toml({**needed, **imported.settings}))
    resolved = resolve(["c.toml"], {}, tmp_path, families.defaults)
    for name, value in imported.settings.items():
        if isinstance(value, bool | int | str):
            assert getattr(resolved.config, name) == value


def test_the_commands_name_every_architecture_and_kind_of_script():
    named = [find_script(name_of(command)).architecture for command in [*TRAINING, *CACHING, *GENERATING]]
    assert {find_script(name).architecture.title for name in SCRIPTS if find_script(name).architecture} <= {
        architecture.title for architecture in named if architecture
    }
    assert len([*TRAINING, *CACHING, *GENERATING]) >= 40


@each_row("command", TRAINING, ids=name_of)
def test_what_import_writes_and_what_train_reads_are_the_same(command, tmp_path):
    """The same keys as a --config_file: section names mean nothing, and musubi-tuner's defaults hold."""
    from darkroom.options.imports.musubi.arguments import parse

    imported = read(command.words, tmp_path)
    if "model_family" not in imported.settings:
        return
    words = shlex.split(command.words)
    values = parse(words[1:]) | {"ignore_unsupported": True}
    (tmp_path / "m.toml").write_text("[training]\n" + as_toml(values))
    model = [f"--{name}={imported.settings[name]}" for name in ("model_family", "model_flavour", "model_type")]
    (tmp_path / "c.toml").write_text(as_toml(dict(imported.settings)))
    theirs = resolve(["--config_file", "m.toml", *model], {}, tmp_path, families.defaults).config
    ours = resolve(["c.toml"], {}, tmp_path, families.defaults).config
    without = {"ignore_unsupported", "defaults", "peft_lora_target_modules", "text_encoder_2_precision"}
    first, second = theirs.model_dump_json(exclude=without), ours.model_dump_json(exclude=without)
    assert first == second


def test_a_config_file_names_its_model_by_the_network_module(tmp_path):
    (tmp_path / "m.toml").write_text(
        'network_module = "networks.lora_wan"\ntask = "t2v-1.3B"\ndataset_config = "d.toml"'
    )
    resolved = resolve(["--config_file", "m"], {}, tmp_path, families.defaults)
    config = resolved.config
    assert (config.model_family, config.model_flavour) == ("wan", "t2v-480p-1.3b-2.1")
    assert (config.lora_rank, config.lora_alpha, config.max_grad_norm, config.grad_clip_method) == (4, 1.0, 1.0, "norm")
    assert (config.timestep_sampling, config.caption_dropout_probability, config.max_train_steps) == (
        "sigma",
        0.0,
        1600,
    )
    assert resolved.sources["lora_rank"] == "musubi-tuner default"


def test_lists_stand_on_the_command_line_of_train(tmp_path):
    words = [
        "--model_family=flux",
        "--dataset_config=d.toml",
        "--optimizer_type",
        "AdamW",
        "--optimizer_args",
        "eps=1e-7",
    ]
    config = resolve([*words, "betas=(0.9,0.95)", "--seed", "3"], {}, tmp_path).config
    assert config.optimizer_config == {"eps": 1e-7, "betas": (0.9, 0.95)}
    assert (config.optimizer, config.seed) == ("torch-adamw", 3)


@each_row("name", sorted(OPTIONS)[::3])
def test_a_misspelt_option_is_answered_with_the_nearest_name(name, tmp_path):
    if len(name) < 5:
        return
    wrong = name[:-2] + name[-1] + name[-2] if name[-1] != name[-2] else name + "x"
    if wrong in OPTIONS:
        return
    with pytest.raises(ConfigErrors, match="no option of this name; did you mean"):
        read(f"wan_train_network.py --{wrong} 1", tmp_path)
    (tmp_path / "m.toml").write_text(f'network_module = "networks.lora_wan"\n{wrong} = 1\n')
    with pytest.raises(ConfigErrors, match="no option of this name; did you mean"):
        read("wan_train_network.py --config_file m.toml", tmp_path)
    with pytest.raises(ConfigErrors, match="There is no option of this name"):
        resolve(["m.toml"], {}, tmp_path)


@each_row("words", [["wan_trian_network.py"], ["merge_lorra.py"], ["--task", "t2v-14B"]])
def test_a_script_that_there_is_not_is_answered_with_the_nearest(words, tmp_path):
    with pytest.raises(UserError, match=r"Did you mean|Name one|[Nn]o script"):
        find_program("musubi").read(words, tmp_path)


def test_the_command_writes_config_datasets_and_report_and_overwrites_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data.toml").write_text(DATASETS)
    words = ["import", "musubi", "src/musubi_tuner/wan_train_network.py", "--dataset_config", "data.toml",
             "--output_name", "fox", "--scale_weight_norms", "1.0"]  # fmt: skip
    assert main(words) == 0
    assert main(words) == 0
    assert sorted(path.name for path in Path("config").iterdir()) == ["fox", "fox-2"]
    assert Path("config/fox/datasets.toml").read_text() == DATASETS
    report = Path("config/fox/import_report.md").read_text()
    assert "1 not offered" in report
    assert "scale_weight_norms = 1.0: weights of an adapter are never rescaled" in report
    assert main([*words, "-o", "config/fox"]) == 2
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["keys"][-1]["verdict"] == "not offered"


def test_a_launcher_before_the_script_is_left_out(tmp_path):
    launcher = "accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 src/musubi_tuner"
    imported = read(f"{launcher}/wan_train_network.py --network_dim 8", tmp_path)
    assert (imported.subject, imported.settings["lora_rank"]) == ("wan_train_network", 8)
