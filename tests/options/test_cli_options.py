"""`darkroom options` describes, finds and explains."""

import json

import pytest

from darkroom.cli.options import run
from darkroom.core.errors import ConfigErrors, UserError
from darkroom.options.config import every_option


def said(words, capsys):
    assert run(words) == 0
    return capsys.readouterr().out


def test_json_has_the_promised_keys_for_every_option(capsys):
    options = json.loads(said(["--json"], capsys))["options"]
    ours = [row["option"] for row in options if row["section"] != "musubi-tuner"]
    assert ours == [info.name for info in every_option()]
    keys = {"option", "type", "default", "choices", "aliases", "section", "help", "families", "pending"}
    assert all(set(row) == keys for row in options)


def test_json_of_named_options(capsys):
    rows = json.loads(said(["checkpointing_steps", "lora_type", "--json"], capsys))
    assert [row["option"] for row in rows["options"]] == ["checkpoint_step_interval", "lora_type"]
    assert rows["options"][0]["aliases"] == ["checkpointing_steps"]
    assert rows["options"][1]["choices"] == ["standard", "lycoris"]


def test_details_of_an_option(capsys):
    text = said(["ema_decay"], capsys)
    assert "0 to 0.9999" in text
    assert "use_ema is true" in text
    assert "0.995" in text


def test_the_list_has_every_option(capsys):
    text = said([], capsys)
    assert [info.name for info in every_option() if f"  {info.name}" not in text] == []


def test_search_looks_at_names_and_sentences(capsys):
    text = said(["--search", "caption"], capsys)
    assert "caption_strategy" in text
    assert "instance_prompt" in text
    assert "lora_rank" not in text


def test_pending_gives_the_reasons(capsys):
    text = said(["--pending"], capsys)
    assert "crepa_enabled" in text
    assert "lora_type" in text
    assert "snr_gamma" not in text
    rows = json.loads(said(["--pending", "--json"], capsys))["options"]
    assert next(row for row in rows if row["option"] == "crepa_enabled")["pending"].endswith(".")


@pytest.mark.parametrize("words", [["snr_gama"], ["--search", "xyzzy"]])
def test_what_is_not_there_is_said(words):
    with pytest.raises(UserError):
        run(words)


def test_explain_shows_values_with_their_sources(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('model_family = "flux"\n[x]\nlora_rank = 4\nema_decay = 0.9')
    text = said(["--explain", "a.toml", "--seed", "3"], capsys)
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "lora_rank = 4 a.toml" in lines
    assert "seed = 3 command line" in lines
    assert "Notes" in lines
    assert any(line.startswith("tokenizer_max_length = 512 family default") for line in lines)

    document = json.loads(said(["--json", "--explain", "a.toml"], capsys))
    row = next(row for row in document["options"] if row["option"] == "lora_rank")
    assert row == {"option": "lora_rank", "value": 4, "source": "a.toml"}
    assert document["notes"][0]["option"] == "ema_decay"


def test_explain_of_a_wrong_config_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigErrors):
        run(["--explain", "nowhere"])


def test_explain_refuses_what_a_run_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--explain", "--model_family=flux", "--musubi_blocks_to_swap=1", "--ramtorch"]
    with pytest.raises(ConfigErrors, match="only one can move the weights"):
        run(words)


def test_explain_takes_every_way_to_name_a_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("config/mine", "config/examples/theirs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text('{"--model_family": "flux", "--seed": 7}')
    for words in (["mine"], ["env=mine"], ["--env", "mine"], ["-e", "mine"], ["--config_file=config/mine"],
                  ["example=theirs"], ["--example", "theirs"], ["env=examples/theirs"]):  # fmt: skip
        assert "seed = 7" in said(["--explain", *words], capsys)
