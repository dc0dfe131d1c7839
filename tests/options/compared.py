"""SimpleTuner's options beside ours: the table of values, and the page about its configs.

`python -m tests.options.compared` writes docs/simpletuner.md. `test_compared.py` holds both to the reader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from darkroom import families
from darkroom.options.config import option_names
from darkroom.options.origins.base import ForeignOptions
from darkroom.options.origins.simpletuner import ATTENTION, FAMILIES, FLAVOURS, ORIGIN

PAGE = Path(__file__).parents[2] / "docs/simpletuner.md"


class Compared(NamedTuple):
    """One option: what a config says (nothing where it is left out), and the value that follows from it."""

    option: str
    written: Any  # LEFT_OUT where the config does not have it
    there: Any
    here: Any
    reason: str = ""  # why they differ


LEFT_OUT = "(left out)"

_WORKS = "SimpleTuner's value teaches an adapter next to nothing"
_OWN_SCHEDULER = "the model card's own value"

COMPARED: tuple[Compared, ...] = (
    # -- left out: other defaults
    Compared("learning_rate", LEFT_OUT, 4e-7, 1e-4, f"by model type and optimizer; {_WORKS}"),
    Compared("lr_end", LEFT_OUT, 4e-7, 0.0, "4e-7 is not below the default rate there, which stops the run"),
    Compared("train_batch_size", LEFT_OUT, 4, 1, "fits most devices, and small datasets"),
    Compared("lora_dropout", LEFT_OUT, 0.1, 0.0, "PEFT's own default; dropout is a choice"),
    Compared("vae_dtype", LEFT_OUT, "bf16", "default", "the format that the family's VAE is known to need"),
    Compared("ema_device", LEFT_OUT, "cpu", "auto", "an adapter's average is small, and faster on the device"),
    Compared("validation_guidance", LEFT_OUT, 7.5, 3.0, _OWN_SCHEDULER),
    Compared("validation_num_inference_steps", LEFT_OUT, 30, 28, _OWN_SCHEDULER),
    Compared("validation_resolution", LEFT_OUT, "256", None, "the size that is trained"),
    Compared("flow_schedule_shift", LEFT_OUT, 3.0, 3.0),
    Compared("set_grads_to_none", LEFT_OUT, False, True, "saves memory and time, and gives the same weights"),
    Compared("model_type", LEFT_OUT, "full", "lora", "what most people train, and what fits"),
    Compared("write_batch_size", LEFT_OUT, 128, 64, "the documented value; its form shows another"),
    # -- left out: the same defaults
    Compared("adam_weight_decay", LEFT_OUT, 0.01, 0.01),
    Compared("adam_beta1", LEFT_OUT, 0.9, 0.9),
    Compared("adam_beta2", LEFT_OUT, 0.999, 0.999),
    Compared("adam_epsilon", LEFT_OUT, 1e-8, 1e-8),
    Compared("max_grad_norm", LEFT_OUT, 2.0, 2.0),
    Compared("grad_clip_method", LEFT_OUT, "value", "value"),
    Compared("optimizer", LEFT_OUT, "adamw_bf16", "adamw_bf16"),
    Compared("lr_scheduler", LEFT_OUT, "constant_with_warmup", "constant_with_warmup"),
    Compared("lr_power", LEFT_OUT, 0.8, 0.8),
    Compared("lora_rank", LEFT_OUT, 16, 16),
    Compared("mixed_precision", LEFT_OUT, "bf16", "bf16"),
    Compared("gradient_checkpointing", LEFT_OUT, True, True),
    Compared("caption_dropout_probability", LEFT_OUT, 0.1, 0.1),
    Compared("checkpoint_step_interval", LEFT_OUT, 500, 500),
    Compared("checkpoints_total_limit", LEFT_OUT, 5, 5),
    Compared("resolution_type", LEFT_OUT, "pixel_area", "pixel_area"),
    Compared("ema_decay", LEFT_OUT, 0.995, 0.995),
    Compared("loss_type", LEFT_OUT, "l2", "l2"),
    Compared("flow_sigmoid_scale", LEFT_OUT, 1.0, 1.0),
    Compared("vae_batch_size", LEFT_OUT, 4, 4),
    Compared("masked_loss_probability", LEFT_OUT, 1.0, 1.0),
    # -- written: how a value is read
    Compared("minimum_image_size", 0, None, None),
    Compared("seed", -1, None, None),
    Compared("checkpoint_epoch_interval", 0, None, None),
    Compared("gradient_checkpointing_interval", 0, None, None),
    Compared("skip_file_discovery", False, None, None),
    Compared("use_ema", "false", False, False),
    Compared("max_train_steps", "100", 100, 100),
    Compared("lora_alpha", None, None, None),
    Compared("compat_lr_schedules", LEFT_OUT, True, True),
    Compared("attention_mechanism", "flash-attn-3-hub", "flash-attn-3-hub", "diffusers",
             "kernels are not fetched from the hub; PyTorch takes the fastest that it has"),
    Compared("model_flavour", "dev", "dev", "dev"),
    Compared("ramtorch_target_modules", ["blocks.*", "proj"], "blocks.*,proj", "blocks.*,proj"),
)  # fmt: skip


# -- the page ---------------------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Configs of SimpleTuner

A config of SimpleTuner is trained as it is: JSON with or without dashes before its keys, TOML, `config.env`, or the
command line. This page says how such a config is recognized, what trains differently, and what becomes of keys that
Darkroom has not. It is written by `python -m tests.options.compared`.

```bash
darkroom train env=my-environment          # config/my-environment/config.json, .toml or .env
darkroom train example=flux.peft-lora      # an example of SimpleTuner, from a checkout or its package
darkroom plan env=my-environment --model_flavour tiny   # tried in seconds, unchanged, with random weights
darkroom options --explain env=my-environment           # every value and where it came from
```

A config counts as SimpleTuner's when its keys are written with two dashes, when it has a key or a `config.env` variable
that only SimpleTuner has, when its dataset file is a `multidatabackend*.json` or below `config/examples/`, or when it
is a JSON file with keys that SimpleTuner's forms write, such as `hub_model_id` or `lora_type`. A note says which of
these it was. Paths below `config/examples/` are looked for in a checkout, beside the config and in its package.

A setting without effect is a note and never a refusal; `--strict` makes errors of such notes. A key that nobody has is
an error with the nearest names.

## What trains differently

`lr_scheduler` `cosine` of SimpleTuner is a wave: it starts at the full rate, half a period takes `lr_warmup_steps`
(1000 when that is 0), and it swings between the rate and `lr_end` without end. Its `cosine_with_restarts` counts
updates modulo -1 and stays at the full rate. Both hold for a config of SimpleTuner's and can be switched with
`compat_lr_schedules`; `cosine_wave` is the wave by a name of its own. SimpleTuner rounds the rates of its waves down to
whole 1e-9, which Darkroom does not.

A ControlNet with `model_type` `lora` and no `controlnet_model_name_or_path` is trained whole, as a LoRA would change
something that does not exist where it is used.

## Other defaults

Darkroom's defaults hold for what a config leaves out; a note names those that differ from SimpleTuner's, and
`--defaults simpletuner` takes these instead.
"""


def page() -> str:
    """docs/simpletuner.md."""
    parts = [
        INTRODUCTION,
        _table(("Option", "SimpleTuner", "Here"), _default_rows()),
        "In single families:",
        _table(("Family", "Option", "SimpleTuner", "Here"), _family_rows()),
        "## Names",
        _table(("In SimpleTuner", "Here"), _name_rows()),
        "The flavour `turbo-ostris-v2` is `turbo`; name the adapter that undoes its distillation in "
        "`assistant_lora_path`.",
        "## Keys that are not here",
        "Each is accepted at the value at which it does nothing. At another it is refused, or accepted with a note "
        "where it changes nothing that is trained. `ignore_unsupported` goes on without any of them.",
        _table(("Keys", "At rest", "Otherwise"), [_foreign_row(row) for row in ORIGIN.foreign]),
        "## Values compared",
        "For `model_family` `flux` with `model_flavour` `dev`, without further settings.",
        _table(("Option", "Written", "SimpleTuner", "Here", "Why"), [_compared_row(row) for row in COMPARED]),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _code(value: object) -> str:
    if value == LEFT_OUT:
        return LEFT_OUT
    if value is None:
        return "not set"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _default_rows() -> list[tuple[str, ...]]:
    rows = []
    for name, there in ORIGIN.defaults.items():
        here = option_names()[name].default
        words = "by model type and optimizer" if name == "learning_rate" else _code(here)
        if here != there:
            rows.append((f"`{name}`", _code(there), words if here is not None else "the family's own"))
    return rows


def _family_rows() -> list[tuple[str, ...]]:
    rows = []
    for family in families.names():
        there, here = ORIGIN.defaults_for(family, None), families.defaults(family, None)
        for name in ("flow_schedule_shift", "tokenizer_max_length", "aspect_bucket_alignment", "max_grad_norm"):
            value = here.get(name, option_names()[name].default)
            words = "by image size" if name == "flow_schedule_shift" and here.get("flow_schedule_auto_shift") else None
            if name in there and (there[name] != value or words):
                rows.append((f"`{family}`", f"`{name}`", _code(there[name]), words or _code(value)))
    return rows


def _name_rows() -> list[tuple[str, ...]]:
    rows = [(f"`model_family` `{there}`", f"`{here}`") for there, here in FAMILIES.items()]
    rows += [(f"`model_flavour` `{there}`", f"`{here}`") for there, here in FLAVOURS.items()]
    kernels = ", ".join(f"`{name}`" for name in ATTENTION)
    return [*rows, (f"`attention_mechanism` {kernels}", "`diffusers`")]


def _foreign_row(row: ForeignOptions) -> tuple[str, ...]:
    values = list(dict.fromkeys(_code(value) for value in row.keys.values()))
    at_rest = values[0] if len(values) == 1 else ", ".join(_code(value) for value in row.keys.values())
    where = [f"acts only with `{row.switch}`"] if row.switch else []
    where += [f"acts only in {', '.join(f'`{name}`' for name in row.families)}"] if row.families else []
    words = f"a note: {row.reason}" if row.ignored else row.reason
    return ", ".join(f"`{name}`" for name in row.keys), at_rest, "; ".join([*where, words])


def _compared_row(row: Compared) -> tuple[str, ...]:
    return f"`{row.option}`", _code(row.written), _code(row.there), _code(row.here), row.reason


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
