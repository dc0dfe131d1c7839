"""Six readers, one meaning: every option can be given in every place and arrives the same."""

import json

import pytest

from darkroom.options import sources
from darkroom.options.config import every_option
from darkroom.options.field import OptionInfo
from darkroom.options.sources import resolve
from tests.rows import each_row

pytestmark = pytest.mark.smoke

SPECIAL = {
    "resume_from_checkpoint": "checkpoint-12",
    "disk_low_threshold": "20G",
    "validation_resolution": "768x512,1024",
    "optimizer_config": {"d_coef": 0.1, "betas": [0.9, 0.99]},
    "modelspec_comment": ["one", "two"],
    "custom_text_encoder_intermediary_layers": [9, 18, 27],
    "magcache_mag_ratios": [1.0, 1.1],
    "framepack_clean_indices": [0, 10],
    "validation_guidance_skip_layers": [7, 8],
    "webhook_config": [{"webhook_url": "https://example.org"}],
    "publishing_config": [{"provider": "s3"}],
    "peft_lora_target_modules": ["to_q", "to_k"],
    "validation_adapter_config": {"runs": ["a.safetensors"]},
    "report_to": "wandb,tensorboard",
}
BASE = {"model_family": "flux", "data_backend_config": "data.json"}


def example(info: OptionInfo):
    """A valid value that is not the default."""
    if info.name in SPECIAL:
        return SPECIAL[info.name]
    if info.kind == "bool":
        return not info.default
    if info.kind == "choice":
        others = [choice for choice in info.choices if choice != info.default]
        return others[-1] if others else info.default
    if info.kind in ("integer", "number"):
        return next(v for v in candidates(info) if v != info.default)
    return {"key": [1, True, "text"]} if info.kind == "json" else "some text"


def candidates(info: OptionInfo):
    """Numbers inside the option's range."""
    steps = (1, 2, 3, 64, 128) if info.kind == "integer" else (0.5, 0.25, 1.5)
    for value in steps:
        low = (info.ge is None or value >= info.ge) and (info.gt is None or value > info.gt)
        if low and (info.le is None or value <= info.le) and (info.lt is None or value < info.lt):
            yield value


def as_text(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def as_toml(value) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


def by_json(folder, name, value, dashes=""):
    path = folder / "config.json"
    document = {**BASE, name: value}
    path.write_text(json.dumps({f"{dashes}{key}": item for key, item in document.items()}))
    return resolve([str(path)], {}, folder)


def by_toml(folder, name, value):
    path = folder / "config.toml"
    lines = [f"{key} = {as_toml(item)}" for key, item in BASE.items() if key != name]
    path.write_text("\n".join([*lines, "[a_section]", f"{name} = {as_toml(value)}"]))
    return resolve([str(path)], {}, folder)


def by_env_file(folder, name, value):
    path = folder / "config.env"
    lines = [f"{key.upper()}={item}" for key, item in {**BASE, name: as_text(value)}.items()]
    path.write_text("\n".join(line.replace("={", "='{") + "'" if "={" in line else line for line in lines))
    return resolve([str(path)], {}, folder)


def by_environment(folder, name, value):
    variables = {f"DARKROOM_{key.upper()}": as_text(item) for key, item in {**BASE, name: value}.items()}
    return resolve([], variables, folder)


def by_command_line(folder, name, value):
    words = [word for key, item in {**BASE, name: value}.items() for word in (f"--{key}", as_text(item))]
    return resolve(words, {}, folder)


def by_key_value(folder, name, value):
    return resolve([f"{key}={as_text(item)}" for key, item in {**BASE, name: value}.items()], {}, folder)


@pytest.fixture
def everything_offered(monkeypatch):
    monkeypatch.setattr(sources, "not_offered", lambda config, origins: [])


@each_row("page", sorted({info.page for info in every_option()}))
def test_six_readers_agree(page, tmp_path, everything_offered):
    for info in (i for i in every_option() if i.page == page):
        value = example(info)
        ways = {
            "json": lambda folder, i=info, v=value: by_json(folder, i.name, v),
            "dashes": lambda folder, i=info, v=value: by_json(folder, i.name, v, dashes="--"),
            "toml": lambda folder, i=info, v=value: by_toml(folder, i.name, v),
            "env": lambda folder, i=info, v=value: by_env_file(folder, i.name, v),
            "environment": lambda folder, i=info, v=value: by_environment(folder, i.name, v),
            "line": lambda folder, i=info, v=value: by_command_line(folder, i.name, v),
            "key=value": lambda folder, i=info, v=value: by_key_value(folder, i.name, v),
        }
        configs = {}
        for way, read in ways.items():
            folder = tmp_path / info.name / way.replace("=", "-")
            folder.mkdir(parents=True)
            configs[way] = read(folder).config
        assert all(made == configs["json"] for made in configs.values()), info.name
        if info.default != value:
            assert getattr(configs["json"], info.name) != info.default, info.name


@each_row("name", [name for info in every_option() for name in info.aliases])
def test_aliases_mean_the_option(name, tmp_path):
    info = next(i for i in every_option() if name in i.names)
    value = True if info.kind == "bool" else 7
    assert by_json(tmp_path, name, value).config == by_command_line(tmp_path / "x", info.name, value).config


@each_row(
    "given, backend, dynamic",
    [
        ({"compile": True}, "inductor", False),
        ({"compile": "true", "compile_backend": "cudagraphs", "compile_dynamic": "true"}, "cudagraphs", True),
        ({"compile_backend": "cudagraphs", "compile": False, "compile_dynamic": "auto"}, "no", False),
        ({"compile": True, "dynamo_backend": "eager"}, "eager", False),
    ],
)
def test_musubis_switch_for_compiling_is_read(given, backend, dynamic, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_family": "flux", **given}))
    read = resolve([str(tmp_path / "config.json")], {}, tmp_path, partial=True)
    assert (read.config.dynamo_backend, read.config.dynamo_dynamic) == (backend, dynamic)
    assert ("compile_backend" in {note.option for note in read.notes}) == (backend == "no")


@each_row("text", ["true", "True", "1", "yes", "on"])
def test_ways_to_say_yes(text, tmp_path):
    assert by_command_line(tmp_path, "use_ema", text).config.use_ema is True
    assert by_environment(tmp_path, "use_ema", text).config.use_ema is True


@each_row("text", ["false", "False", "0", "no", "off"])
def test_ways_to_say_no(text, tmp_path):
    assert by_command_line(tmp_path, "gradient_checkpointing", text).config.gradient_checkpointing is False
    assert by_json(tmp_path, "gradient_checkpointing", text).config.gradient_checkpointing is False


@each_row(
    "name, value, meant",
    [
        ("learning_rate", "1e-4", 1e-4),
        ("max_train_steps", "1e3", 1000),
        ("max_train_steps", 1000.0, 1000),
        ("validation_resolution", 1024, "1024"),
        ("aspect_bucket_alignment", "32", 32),
        ("mixed_precision", False, "no"),
        ("mixed_precision", "BF16", "bf16"),
        ("report_to", "wandb, tensorboard", "wandb,tensorboard"),
        ("report_to", "my.module.Tracker", "my.module.Tracker"),
        ("optimizer", "torch-adamw", "torch-adamw"),
        ("optimizer", "my.module.Optimizer", "my.module.Optimizer"),
        ("optimizer_config", "d_coef=0.1,betas=(0.9,0.99),foreach=true,name=x", None),
        ("optimizer_config", ["d_coef=0.1", "betas=(0.9,0.99)", "foreach=true", "name=x"], None),
        ("model_family", "z-image", "z_image"),
        ("snr_gamma", "none", None),
        ("resume_from_checkpoint", "", None),
        ("resume_from_checkpoint", "none", None),
        ("validation_negative_prompt", "", ""),
        ("modelspec_comment", "just words", "just words"),
    ],
)
def test_forms_of_a_value(name, value, meant, tmp_path, everything_offered):
    if name == "optimizer_config":
        meant = {"d_coef": 0.1, "betas": (0.9, 0.99), "foreach": True, "name": "x"}
    assert getattr(by_json(tmp_path, name, value).config, name) == meant
