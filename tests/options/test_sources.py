"""Where settings are looked for, which place wins, and what is said when something is wrong."""

import json

import pytest

from darkroom.core.errors import ConfigErrors, missing_option
from darkroom.core.log import redact
from darkroom.options.config_files import parse_env_file
from darkroom.options.sources import resolve
from tests.rows import each_row

NEEDED = ["--model_family", "flux", "--data_backend_config", "data.json"]
NEEDED_JSON = {"model_family": "flux", "data_backend_config": "data.json"}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refused(words, folder, environ=None, **more):
    """The errors of a resolve that must fail, by option."""
    with pytest.raises(ConfigErrors) as caught:
        resolve(words, environ or {}, folder, **more)
    return {error.option: error for error in caught.value.errors}


# ---- precedence ------------------------------------------------------------------------------------------------------


def test_the_later_place_wins_and_is_remembered(tmp_path):
    write(tmp_path / "run.json", {**NEEDED_JSON, "seed": 2, "lora_rank": 2, "train_batch_size": 2})
    write(tmp_path / "config.env", "SEED=9\nLORA_RANK=9\nTRAIN_BATCH_SIZE=9\nVAE_BATCH_SIZE=9\nMAX_WORKERS=9")
    environ = {f"DARKROOM_{n}": "3" for n in ("SEED", "LORA_RANK", "VAE_BATCH_SIZE")}

    def preferred(family, flavour):
        return {"seed": 5, "vae_batch_size": 5, "image_processing_batch_size": 5}

    made = resolve(["run.json", "--seed", "1"], environ, tmp_path, preferred)
    got = {
        n: (getattr(made.config, n), made.sources[n])
        for n in (
            "seed",
            "lora_rank",
            "train_batch_size",
            "vae_batch_size",
            "max_workers",
            "image_processing_batch_size",
            "num_eval_images",
        )
    }
    assert got == {
        "seed": (1, "command line"),
        "lora_rank": (2, "run.json"),
        "train_batch_size": (2, "run.json"),
        "vae_batch_size": (3, "environment DARKROOM_VAE_BATCH_SIZE"),
        "max_workers": (9, "config.env"),
        "image_processing_batch_size": (5, "family default"),
        "num_eval_images": (4, "default"),
    }
    assert made.path == tmp_path / "run.json"
    assert made.explicit("seed")
    assert not made.explicit("image_processing_batch_size")


def test_family_defaults_hear_family_and_flavour(tmp_path):
    heard = []
    resolve([*NEEDED, "--model_flavour", "dev"], {}, tmp_path, lambda *asked: heard.append(asked) or {})
    assert heard == [("flux", "dev")]


def test_an_error_of_the_family_is_reported_with_the_others(tmp_path):
    def preferred(family, flavour):
        raise ConfigErrors([missing_option("model_flavour", "No such flavour.", "Choose dev.")])

    assert set(refused([*NEEDED, "--lora_rank", "x"], tmp_path, family_defaults=preferred)) == {
        "model_flavour",
        "lora_rank",
    }


# ---- finding the file ------------------------------------------------------------------------------------------------


@each_row(
    "words, environ",
    [
        (["config/mine/config.json"], {}),
        (["config/mine"], {}),
        (["mine"], {}),
        (["mine.json"], {}),
        (["--env", "mine"], {}),
        (["--env=mine"], {}),
        (["env=mine"], {}),
        (["-e", "mine"], {}),
        (["--config_file", "config/mine/config"], {}),
        (["--config_file=config/mine/config.json"], {}),
        ([], {"SIMPLETUNER_ENVIRONMENT": "mine"}),
        ([], {"DARKROOM_ENV": "mine"}),
        ([], {"ENV": "mine"}),
        ([], {"CONFIG_PATH": "config/mine"}),
    ],
)
def test_ways_to_name_a_config(words, environ, tmp_path):
    write(tmp_path / "config/mine/config.json", {**NEEDED_JSON, "seed": 7})
    made = resolve(words, environ, tmp_path)
    assert (made.config.seed, made.sources["seed"]) == (7, "config/mine/config.json")


@each_row("name", ["config.json", "config.toml", "config.env", "config/config.json", "config/config.env"])
def test_the_usual_places_need_no_name(name, tmp_path):
    texts = {"json": json.dumps({**NEEDED_JSON, "seed": 7}), "env": "MODEL_FAMILY=flux\nDATALOADER_CONFIG=d\nSEED=7"}
    texts["toml"] = 'model_family = "flux"\ndata_backend_config = "d"\n[training]\nseed = 7'
    write(tmp_path / name, texts[name.rsplit(".", 1)[1]])
    assert resolve([], {}, tmp_path).config.seed == 7


def test_the_backend_chooses_the_kind_of_file(tmp_path):
    write(tmp_path / "config/config.json", {**NEEDED_JSON, "seed": 1})
    write(tmp_path / "config/config.toml", 'model_family = "flux"\ndata_backend_config = "d"\nseed = 2')
    assert resolve([], {}, tmp_path).config.seed == 1
    assert resolve([], {"SIMPLETUNER_CONFIG_BACKEND": "toml"}, tmp_path).config.seed == 2
    assert resolve(NEEDED, {"CONFIG_TYPE": "cmd"}, tmp_path).path is None


def test_an_unrelated_env_variable_is_left_alone(tmp_path):
    assert resolve(NEEDED, {"ENV": "production"}, tmp_path).path is None


@pytest.mark.parametrize("words", [["nowhere"], ["--env", "nowhere"], ["--config_file", "nowhere"]])
def test_a_missing_config_names_every_path_that_was_tried(words, tmp_path):
    error = refused(words, tmp_path)["CONFIG"]
    for kind in ("json", "toml", "env"):
        assert str(tmp_path / "config" / "nowhere" / f"config.{kind}") in str(error)
    assert "command line" in str(error)


def test_no_config_at_all_says_what_a_run_needs(tmp_path):
    errors = refused([], tmp_path)
    assert set(errors) == {"model_family", "data_backend_config"}
    assert "--model_family" in str(errors["model_family"])
    assert "No config file" in str(errors["model_family"])


def test_a_partial_configuration_needs_the_family_only(tmp_path):
    assert resolve(["model_family=flux"], {}, tmp_path, partial=True).config.data_backend_config is None
    assert set(refused([], tmp_path, partial=True)) == {"model_family"}


@pytest.mark.parametrize("words", [["a.json", "b.json"], ["a.json", "--config_file", "b.json"]])
def test_two_configs_are_refused(words, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json", NEEDED_JSON)
    assert any("already given" in str(error) for error in refused(words, tmp_path).values())


# ---- malformed files -------------------------------------------------------------------------------------------------


@each_row(
    "name, text, words",
    [
        ("a.json", '{"seed": 1,\n "lora_rank": 4,,\n}', "Line 3, column 1"),
        ("a.json", '{"seed": 1\n "lora_rank": 4}', "Line 2, column 2"),
        ("a.json", "", "The file is empty"),
        ("a.json", "[1, 2]", "does not hold an object"),
        ("a.json", b"\xff\xfe{}", "not UTF-8"),
        ("a.toml", "seed = 1\nlora_rank = = 4", "Line 2, column 13"),
        ("a.toml", "seed = True", "Line 1, column 8"),
        ("a.env", "SEED=1\nthis is nothing", "Line 2"),
    ],
)
def test_a_malformed_file_is_explained_without_further_guesses(name, text, words, tmp_path):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    errors = refused([name], tmp_path)
    assert set(errors) == {"CONFIG"}
    assert errors["CONFIG"].got == name
    assert words in str(errors["CONFIG"])
    assert errors["CONFIG"].change


def test_a_file_of_another_kind_is_refused(tmp_path):
    write(tmp_path / "run.yaml", "seed: 1")
    assert ".toml" in str(refused(["run.yaml"], tmp_path)["CONFIG"])


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(NEEDED_JSON).encode())
    assert resolve(["a.json"], {}, tmp_path).config.model_family == "flux"


# ---- wrong keys and values -------------------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    document = {**NEEDED_JSON, "snr_gama": 5, "lora_rank": "many", "model_type": "lorra", "crepa_enabled": True}
    write(tmp_path / "a.json", document)
    errors = refused(["a.json", "--ema_decay", "2", "--scale_weight_norms", "3"], tmp_path)
    assert set(errors) == {"snr_gama", "lora_rank", "model_type", "crepa_enabled", "ema_decay", "scale_weight_norms"}


@each_row(
    "words, option, said",
    [
        (["--snr_gama", "5"], "snr_gama", "did you mean snr_gamma"),
        (["--trian_batch_size=2"], "trian_batch_size", "did you mean train_batch_size"),
        (["learning-rat=2"], "learning_rat", "did you mean learning_rate"),
        (["--train_batch_size", "two"], "train_batch_size", "a whole number (1 or more)"),
        (["--train_batch_size", "0"], "train_batch_size", "a whole number (1 or more)"),
        (["--train_batch_size", "1.5"], "train_batch_size", "a whole number"),
        (["--ema_decay", "1"], "ema_decay", "(0 to 0.9999)"),
        (["--use_ema=maybe"], "use_ema", "true or false"),
        (["--mixed_precision", "bf61"], "mixed_precision", "did you mean bf16"),
        (["--optimizer", "adamw_bf61"], "optimizer", "did you mean adamw_bf16"),
        (["--report_to", "wandb,tensorbord"], "report_to", "tensorboard"),
        (["--aspect_bucket_alignment", "33"], "aspect_bucket_alignment", "8, 16, 24, 32, 64"),
        (["--disk_low_threshold", "lots"], "disk_low_threshold", "100G"),
        (["--validation_resolution", "wide"], "validation_resolution", "768x512"),
        (["--optimizer_config", "d_coef"], "optimizer_config", "name=value"),
        (["--peft_lora_target_modules", "[to_q]"], "peft_lora_target_modules", "not valid JSON"),
        (["--peft_lora_target_modules", "gone.json"], "peft_lora_target_modules", "does not exist"),
        (["--peft_lora_target_modules", '{"a": 1}'], "peft_lora_target_modules", "JSON"),
        (["--learning_rate", "nan"], "learning_rate", "a number"),
        (["--model_family", "fluxx"], "model_family", "did you mean flux"),
        (["--seed"], "--seed", "needs a value"),
        (["-x"], "argument", "not understood"),
    ],
)  # fmt: skip
def test_a_wrong_setting_names_option_value_source_and_remedy(words, option, said, tmp_path):
    error = refused([*NEEDED, *words], tmp_path)[option]
    assert said in str(error)
    assert error.change
    if option != "--seed":
        assert error.source == "command line"
        assert str(error.got) in " ".join(words)


def test_a_file_is_named_as_the_source(tmp_path):
    write(tmp_path / "config/mine/config.toml", '[x]\nmodel_family = "flux"\n[y]\nlora_rank = "many"')
    message = str(refused(["mine"], tmp_path)["lora_rank"])
    assert message.startswith("lora_rank = 'many' (from config/mine/config.toml)")


def test_a_variable_is_named_as_the_source(tmp_path):
    assert refused(NEEDED, tmp_path, {"DARKROOM_SEED": "x"})["seed"].source == "environment DARKROOM_SEED"


def test_secrets_do_not_appear_in_messages(tmp_path):
    document = {**NEEDED_JSON, "webhook_config": [{"webhook_url": "https://secret"}]}
    write(tmp_path / "a.json", document)
    assert "secret" not in str(refused(["a.json"], tmp_path)["webhook_config"])
    document["webhook_config"] = [7, "secret"]
    write(tmp_path / "a.json", document)
    assert "secret" not in str(refused(["a.json"], tmp_path)["webhook_config"])


# ---- not offered -----------------------------------------------------------------------------------------------------


@each_row(
    "name, value",
    [("crepa_enabled", True), ("lora_type", "lycoris"), ("lora_init_type", "loftq"), ("num_processes", 2),
     ("push_to_hub", True)],
)  # fmt: skip
def test_what_is_pending_is_refused_with_its_reason(name, value, tmp_path):
    write(tmp_path / "a.json", {**NEEDED_JSON, name: value})
    error = refused(["a.json"], tmp_path)[name]
    assert "Not offered yet" in str(error)
    assert "release" in str(error)
    assert error.source == "a.json"


@each_row(
    "name, value",
    [("crepa_enabled", False), ("lora_type", "standard"), ("base_model_precision", "no_change"), ("num_processes", 1),
     ("crepa_lambda", 0.5), ("push_to_hub", "false"), ("webhook_config", None)],
)  # fmt: skip
def test_the_default_of_what_is_pending_is_accepted(name, value, tmp_path):
    write(tmp_path / "a.json", {**NEEDED_JSON, name: value})
    assert [note for note in resolve(["a.json"], {}, tmp_path).notes if note.option == name] == []


# ---- predecessors ----------------------------------------------------------------------------------------------------


def test_what_musubi_tuner_trains_and_darkroom_does_not_is_refused_and_can_be_ignored(tmp_path):
    text = 'model_family = "flux"\ndata_backend_config = "d"\n[training]\nnetwork_dim = 20\nscale_weight_norms = 8'
    write(tmp_path / "a.toml", text)
    errors = refused(["--config_file", "a.toml"], tmp_path)
    assert set(errors) == {"scale_weight_norms"}
    assert "musubi-tuner" in str(errors["scale_weight_norms"])
    assert "ignore_unsupported" in str(errors["scale_weight_norms"])

    made = resolve(["--config_file", "a.toml", "--ignore_unsupported"], {}, tmp_path)
    assert made.config.lora_rank == 20
    assert ("scale_weight_norms", 8, "a.toml") in [(note.option, note.value, note.source) for note in made.notes]


@each_row(
    "document, option, value",
    [
        ({"blocks_to_swap": 20}, "musubi_blocks_to_swap", 20),
        ({"fp8_base": True}, "base_model_precision", "fp8-cast"),
        ({"fp8_base": True, "fp8_scaled": True}, "base_model_precision", "fp8-block"),
        ({"fp8_scaled": True, "fp8_base": True}, "base_model_precision", "fp8-block"),
        ({"fp8_base": True, "base_model_precision": "int8-quanto"}, "base_model_precision", "int8-quanto"),
        ({"fp8_base": False}, "base_model_precision", "no_change"),
        ({"fp8_vl": True}, "text_encoder_1_precision", "fp8-cast"),
        ({"cuda_allow_tf32": False}, "disable_tf32", True),
        ({"cuda_allow_tf32": True}, "disable_tf32", False),
    ],
)
def test_switches_of_musubi_tuner_are_values_here(document, option, value, tmp_path):
    write(tmp_path / "a.json", {**NEEDED_JSON, **document})
    made = resolve(["a.json"], {}, tmp_path)

    assert getattr(made.config, option) == value
    for note in made.notes:
        assert not note.ineffective
        assert note.reason == f"{option} is {str(value).lower()}"


def test_switches_of_musubi_tuner_need_no_value_on_the_command_line(tmp_path):
    write(tmp_path / "a.json", NEEDED_JSON)
    made = resolve(["--fp8_base", "a.json"], {}, tmp_path)

    assert made.config.base_model_precision == "fp8-cast"
    assert made.sources["base_model_precision"] == "command line"


@pytest.mark.parametrize("name", ["split_attn", "cuda_cudnn_benchmark", "fp8_fast"])
def test_switches_that_change_nothing_here_are_said_to(name, tmp_path):
    write(tmp_path / "a.json", {**NEEDED_JSON, name: True})
    assert [note.option for note in resolve(["a.json"], {}, tmp_path).notes if note.ineffective] == [name]

    write(tmp_path / "a.json", {**NEEDED_JSON, name: False})
    assert resolve(["a.json"], {}, tmp_path).notes == []


def test_newer_keys_of_simpletuner_say_so(tmp_path):
    assert "SimpleTuner" in str(refused([*NEEDED, "--mixflow_enabled", "true"], tmp_path)["mixflow_enabled"])
    assert set(refused([*NEEDED, "--context_parallel_size=2"], tmp_path)) == {"context_parallel_size"}


def test_dataset_and_form_keys_are_dropped_with_a_note(tmp_path):
    write(tmp_path / "a.json", {**NEEDED_JSON, "crop_style": "center", "__active_tab__": "x", "configs_dir": "y"})
    made = resolve(["a.json"], {}, tmp_path)
    assert {note.option for note in made.notes} == {"crop_style", "__active_tab__", "configs_dir"}


@each_row(
    "given, name, meant",
    [
        ({"checkpointing_steps": 7}, "checkpoint_step_interval", 7),
        ({"--validation_steps": 7}, "validation_step_interval", 7),
        ({"save_total_limit": 7}, "checkpoints_total_limit", 7),
        ({"lr_scheduler": "cosine_with_warmup"}, "lr_scheduler", "cosine"),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 5}, "lr_scheduler", "constant_with_warmup"),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 0}, "lr_scheduler", "constant"),
        ({"vae_cache_preprocess": True}, "vae_cache_ondemand", False),
        ({"lora_alpha": None}, "lora_alpha", None),
        ({"max_train_steps": ""}, "max_train_steps", None),
        ({"use_ema": "false"}, "use_ema", False),
        ({"gradient_checkpointing": "false"}, "gradient_checkpointing", False),
    ],
)
def test_older_names_and_values_are_understood(given, name, meant, tmp_path):
    write(tmp_path / "a.json", {**NEEDED_JSON, **given})
    assert getattr(resolve(["a.json"], {}, tmp_path).config, name) == meant


def test_the_old_preprocess_switch_is_translated(tmp_path):
    write(tmp_path / "a.json", {**NEEDED_JSON, "vae_cache_preprocess": False})
    assert resolve(["a.json"], {}, tmp_path).config.vae_cache_ondemand is True


ENV_FILE = """
# a comment
export MODEL_FAMILY=flux
DATALOADER_CONFIG="config/data.json"
MODEL_NAME='some/model'   # trailing words
TRAINING_SEED=11
MAX_NUM_STEPS=30
LR_SCHEDULE=cosine
CHECKPOINTING_STEPS=5
CHECKPOINTING_LIMIT=2
VALIDATION_STEPS=4
VALIDATION_PROMPT="a lamp # not a comment"
MINIMUM_RESOLUTION=256
USE_EMA=true
USE_BITFIT=false
ALLOW_TF32=true
USE_XFORMERS=false
TRAINING_NUM_PROCESSES=1
TRAINING_DYNAMO_BACKEND=no
TRAINER_EXTRA_ARGS="--lora_rank 4"
TRAINER_EXTRA_ARGS+=" --vae_batch_size=2"
ACCELERATE_EXTRA_ARGS="--multi_gpu"
HF_ENDPOINT=https://example.org
LORA_RANK=
"""


def test_the_variables_of_an_env_file(tmp_path):
    write(tmp_path / "config/mine/config.env", ENV_FILE)
    made = resolve(["--env", "mine"], {}, tmp_path)
    c = made.config
    assert (c.model_family, c.data_backend_config, c.pretrained_model_name_or_path) == (
        "flux", "config/data.json", "some/model",
    )  # fmt: skip
    assert (c.seed, c.max_train_steps, c.lr_scheduler, c.checkpoint_step_interval) == (11, 30, "cosine", 5)
    assert (c.checkpoints_total_limit, c.validation_step_interval, c.minimum_image_size) == (2, 4, 256)
    assert c.validation_prompt == "a lamp # not a comment"
    assert (c.use_ema, c.layer_freeze_strategy, c.disable_tf32, c.lora_rank, c.vae_batch_size) == (
        True,
        "none",
        False,
        4,
        2,
    )
    assert made.exports == {}
    assert [note.option for note in made.notes] == ["ACCELERATE_EXTRA_ARGS", "HF_ENDPOINT", "defaults", "defaults"]
    assert "never changes this variable" in made.notes[1].reason


@each_row(
    "name",
    ["LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "PYTHONSTARTUP", "HF_ENDPOINT", "AWS_ENDPOINT_URL",
     "HTTPS_PROXY", "REQUESTS_CA_BUNDLE", "GIT_SSH_COMMAND", "CXX"],
)  # fmt: skip
def test_an_env_file_never_changes_where_programs_and_downloads_come_from(tmp_path, name):
    write(tmp_path / "config/mine/config.env", f"{name}=/evil\nMODEL_FAMILY=flux\nDATA_BACKEND_CONFIG=d.json")
    made = resolve(["--env", "mine"], {}, tmp_path)

    assert made.exports == {}
    assert [(note.option, note.ineffective) for note in made.notes] == [(name, True)]


def test_an_env_file_says_what_it_exports_to_the_libraries_and_hides_secrets(tmp_path):
    lines = "CUDA_VISIBLE_DEVICES=1\nWANDB_API_KEY=abcdefgh1\nMODEL_FAMILY=flux\nDATA_BACKEND_CONFIG=d.json"
    write(tmp_path / "config/mine/config.env", lines)
    made = resolve(["--env", "mine"], {}, tmp_path)

    assert made.exports == {"CUDA_VISIBLE_DEVICES": "1", "WANDB_API_KEY": "abcdefgh1"}
    assert [note.option for note in made.notes] == ["CUDA_VISIBLE_DEVICES", "WANDB_API_KEY"]
    assert "abcdefgh1" not in "".join(map(str, made.notes))
    assert redact("it is abcdefgh1 here") == "it is *** here"


@pytest.mark.parametrize("name", ["LERNING_RATE", "DARKROOM_LERNING_RATE"])
def test_a_misspelt_name_in_an_env_file_is_an_error_with_the_nearest(tmp_path, name):
    write(tmp_path / "config/mine/config.env", f"{name}=9\nMODEL_FAMILY=flux\nDATA_BACKEND_CONFIG=d.json")

    with pytest.raises(ConfigErrors, match="did you mean learning_rate") as caught:
        resolve(["--env", "mine"], {}, tmp_path)

    assert "config/mine/config.env" in str(caught.value)


def test_a_variable_of_an_env_file_that_the_datasets_mention_is_no_stranger(tmp_path):
    write(tmp_path / "d.json", '[{"id": "a", "instance_data_dir": "{env:MY_PHOTOS}/a"}]')
    write(tmp_path / "config/mine/config.env", "MY_PHOTOS=/mnt\nMODEL_FAMILY=flux\nDATA_BACKEND_CONFIG=d.json")

    assert resolve(["--env", "mine"], {}, tmp_path).exports == {"MY_PHOTOS": "/mnt"}


def test_the_value_of_a_secret_variable_is_never_shown(tmp_path):
    document = {**NEEDED_JSON, "validation_prompt": "say {env:MY_HUB_TOKEN} twice", "tracker_run_name": "{env:PLAIN}"}
    write(tmp_path / "c.json", document)
    resolve(["c.json"], {"MY_HUB_TOKEN": "qwertz-77", "PLAIN": "an-ordinary-name"}, tmp_path)

    assert redact("say qwertz-77 twice to an-ordinary-name") == "say *** twice to an-ordinary-name"


def test_an_env_file_beside_another_config_counts_less(tmp_path):
    write(tmp_path / "config/config.env", "SEED=2\nLORA_RANK=2\nWORD=from-the-file")
    write(tmp_path / "config/mine/config.env", "LORA_RANK=3")
    document = {**NEEDED_JSON, "seed": 1, "validation_prompt": "{env:WORD}"}
    write(tmp_path / "config/mine/config.json", document)
    made = resolve(["mine"], {}, tmp_path)
    assert (made.config.seed, made.config.lora_rank, made.config.validation_prompt) == (1, 3, "from-the-file")
    assert made.sources["lora_rank"] == "config/mine/config.env"


def test_env_file_lines():
    text = 'A=1\nexport B = two words\nC=\'x y\'\nD="say \\"hi\\""\nA+=2\nE+=first\nF=a#b # c\n'
    assert parse_env_file(text) == {
        "A": "1 2", "B": "two words", "C": "x y", "D": 'say "hi"', "E": "first", "F": "a#b",
    }  # fmt: skip


def test_seed_variables_without_prefix_are_read_from_the_environment(tmp_path):
    made = resolve(NEEDED, {"TRAINING_NUM_PROCESSES": "1", "RESOLUTION": "7"}, tmp_path)
    assert made.sources["num_processes"] == "environment TRAINING_NUM_PROCESSES"
    assert made.config.resolution == 1024


def test_a_mistyped_variable_is_reported(tmp_path):
    environ = {"DARKROOM_LEARNIG_RATE": "1", "DARKROOM_LOG_LEVEL": "DEBUG"}
    notes = resolve(NEEDED, environ, tmp_path).notes
    assert [note.option for note in notes] == ["DARKROOM_LEARNIG_RATE"]
    assert "DARKROOM_LEARNING_RATE" in notes[0].reason


# ---- values from elsewhere -------------------------------------------------------------------------------------------


def test_placeholders_are_filled_from_the_environment(tmp_path):
    write(tmp_path / "a.json", {**NEEDED_JSON, "tracker_run_name": "run-{env:JOB}", "modelspec_comment": ["{env:JOB}"]})
    made = resolve(["a.json"], {"JOB": "42"}, tmp_path)
    assert (made.config.tracker_run_name, made.config.modelspec_comment) == ("run-42", ["42"])


def test_a_placeholder_without_a_variable_is_reported(tmp_path):
    write(tmp_path / "a.json", {**NEEDED_JSON, "tracker_run_name": "run-{env:JOB}"})
    made = resolve(["a.json"], {}, tmp_path)
    assert made.config.tracker_run_name == "run-"
    assert "JOB is not set" in made.notes[0].reason


def test_structured_values_come_from_a_file_an_object_or_text(tmp_path):
    write(tmp_path / "targets.json", ["to_q", "to_k"])
    write(tmp_path / "broken.json", "[")
    for value in ("targets.json", str(tmp_path / "targets.json"), '["to_q", "to_k"]'):
        made = resolve([*NEEDED, "--peft_lora_target_modules", value], {}, tmp_path)
        assert made.config.peft_lora_target_modules == ["to_q", "to_k"]
    words = [*NEEDED, "--peft_lora_target_modules", "broken.json"]
    assert "not valid JSON" in str(refused(words, tmp_path)["peft_lora_target_modules"])


# ---- command line ----------------------------------------------------------------------------------------------------


@each_row("words", [["--use_ema"], ["--use_ema", "true"], ["--use_ema=true"], ["use_ema=true"],
                                   ["--use-ema"], ["--use_ema", "--seed", "3"], ["--use_ema", "1"]])  # fmt: skip
def test_ways_to_raise_a_flag(words, tmp_path):
    assert resolve([*NEEDED, *words], {}, tmp_path).config.use_ema is True


def test_a_flag_does_not_swallow_the_config(tmp_path):
    write(tmp_path / "a.json", NEEDED_JSON)
    made = resolve(["--use_ema", "a.json"], {}, tmp_path)
    assert made.config.use_ema
    assert made.path == tmp_path / "a.json"


def test_a_negative_number_is_a_value(tmp_path):
    assert "0 or more" in str(refused([*NEEDED, "--lr_end", "-1"], tmp_path)["lr_end"])


def test_the_last_of_two_equal_options_wins(tmp_path):
    assert resolve([*NEEDED, "--seed", "1", "--seed", "2"], {}, tmp_path).config.seed == 2


# ---- ineffective settings --------------------------------------------------------------------------------------------


@each_row(
    "words, option, said",
    [
        (["--ema_decay", "0.9"], "ema_decay", "use_ema is true"),
        (["--lr_power", "2"], "lr_power", "lr_scheduler is polynomial"),
        (["--lora_rank", "4", "--model_type", "full"], "lora_rank", "model_type is lora"),
        (["--sd3_t5_uncond_behaviour", "zero"], "sd3_t5_uncond_behaviour", "acts only in sd3"),
        (["--validation_seed", "1", "--validation_randomize"], "validation_seed", "validation_randomize is false"),
        (["--flux_lora_target", "nano", "--peft_lora_target_modules", "[]"], "flux_lora_target", "left out"),
        (["--noise_offset", "0.2"], "noise_offset", "offset_noise is true"),
        (["--disk_low_action", "wait"], "disk_low_action", "disk_low_threshold is set"),
    ],
)
def test_a_setting_without_effect_is_reported_and_refused_under_strict(words, option, said, tmp_path):
    notes = resolve([*NEEDED, *words], {}, tmp_path).notes
    assert [(note.option, note.source) for note in notes] == [(option, "command line")]
    assert said in notes[0].reason
    assert set(refused([*NEEDED, *words, "--strict"], tmp_path)) == {option}


@pytest.mark.parametrize("words", [["--ema_decay", "0.995"], ["--ema_decay", "0.9", "--use_ema"], ["--snr_gamma", "0"]])
def test_defaults_and_settings_with_effect_are_not_reported(words, tmp_path):
    assert resolve([*NEEDED, *words], {}, tmp_path).notes == []


def test_a_key_that_stands_twice_is_reported(tmp_path):
    write(tmp_path / "a.toml", 'model_family = "flux"\ndata_backend_config = "d"\n[a]\nseed = 1\n[b]\nseed = 2')
    made = resolve(["a.toml"], {}, tmp_path)
    assert made.config.seed == 2
    assert [note.option for note in made.notes] == ["seed"]
    write(tmp_path / "a.json", '{"model_family": "flux", "data_backend_config": "d", "seed": 1, "seed": 2}')
    assert [note.option for note in resolve(["a.json"], {}, tmp_path).notes] == ["seed"]


@each_row(
    "name, text, words",
    [
        ("c.json", r'{"model_family": "flux", "output_dir": "D:\train\new"}', r"It holds a tab (\t)."),
        (
            "c.json",
            r'{"model_family": "flux", "output_dir": "D:\data"}',
            "In double quotes a backslash starts an escape",
        ),
        ("c.toml", 'model_family = "flux"\noutput_dir = "D:\\train"', r"It holds a tab (\t)."),
        ("c.toml", 'model_family = "flux"\noutput_dir = "D:\\data"', "Single quotes"),
        ("c.json", r'{"model_family": "flux", "output_dir": "a\u0000"}', "It holds a NUL character."),
        ("c.json", r'{"model_family": "flux", "output_dir": "a\ud800"}', "half a character"),
        ("c.json", '{"model_family": "flux", "output_dir": "~nobody-of-this-name/x"}', "There is no home folder"),
        ("c.json", r'{"model_family": "flux", "a\ud800": 1}', "There is no option of this name"),
        ("c.json", '{"seed": ' + "[" * 5000, "nested too deeply"),
        ("c.toml", "seed = " + "[" * 5000, "nested too deeply"),
        ("c.json", '{"seed": 1' + "0" * 5000 + "}", "Correct the number."),
        ("c.toml", "seed = 1" + "0" * 5000, "Correct the value."),
    ],
)
def test_a_slip_in_a_config_is_an_error_that_names_it(tmp_path, name, text, words):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigErrors) as caught:
        resolve([name], {}, tmp_path, partial=True)
    assert words in str(caught.value)
    str(caught.value).encode("utf-8")


def test_prompts_may_have_several_lines(tmp_path):
    (tmp_path / "c.json").write_text('{"model_family": "flux", "validation_prompt": "a\\nb"}')
    assert resolve(["c.json"], {}, tmp_path, partial=True).config.validation_prompt == "a\nb"


@each_row("name", ["x" * 5000, "/", "~nobody/x", "a\0b"])
def test_a_config_of_an_impossible_name_is_not_there(tmp_path, name):
    with pytest.raises(ConfigErrors, match="no such config"):
        resolve([name], {}, tmp_path, partial=True)
