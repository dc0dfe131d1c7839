"""What the importers of configs share: rules from a key of another trainer to options here, as rows of a table.

RULES = {
    "network_dim": same("lora_rank"),
    "mixed_precision": choose("mixed_precision", {"no": "no", "bf16": "bf16"}),
    "clip_skip": missing("text is read from the layer that the model's own pipeline reads"),
}
rows = translate(RULES, {"network_dim": 32}, "sd-scripts")
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from darkroom.core.errors import ConfigError, ConfigErrors
from darkroom.core.registry import find_nearest
from darkroom.options.imports.report import ImportedKey, Verdict

Values = Mapping[str, object]
Settings = Mapping[str, object]
Make = Callable[[object, Values], "Settings | ImportedKey"]

# a key that is so like a known one is a slip; one that is less like it may be a real one that nobody here knows
SLIP = 0.85
OFF: tuple[object, ...] = (None, False, "", 0, "none", "None", [], {})
"""Values that switch a key of any trainer off."""


@dataclass(frozen=True)
class Rule:
    """What becomes of one key.

    make     from its value and all that was given to options of Darkroom, or to a whole row of the report
    verdict  of a value that is not off; one that is off needs nothing, whatever the key
    trains   whether leaving it out changes what is trained
    keeps    a value that is off is a setting too
    """

    make: Make
    verdict: Verdict = Verdict.EXACT
    remark: str = ""
    trains: bool = False
    keeps: bool = False


def same(option: str, keeps: bool = False) -> Rule:
    """An option of another name."""
    return Rule(lambda value, keys: {option: value}, keeps=keeps)


def number(option: str) -> Rule:
    """An option of another name whose number may be written as text."""
    return Rule(lambda value, keys: {option: float(str(value))})


def near(option: str, remark: str) -> Rule:
    """An option that does nearly the same; `remark` says what differs."""
    return Rule(lambda value, keys: {option: value}, Verdict.APPROXIMATED, remark)


def fixed(remark: str = "", verdict: Verdict = Verdict.EXACT, **settings: object) -> Rule:
    """A switch that becomes these settings."""
    return Rule(lambda value, keys: settings, verdict, remark)


def choose(option: str, table: Mapping[str, object]) -> Rule:
    """A value of a table, whatever its case; another one is not offered."""

    def make(value: object, keys: Values) -> Settings | ImportedKey:
        chosen_name = {key.lower(): chosen for key, chosen in table.items()}
        if str(value).lower() not in chosen_name:
            offered = ", ".join(table)
            return ImportedKey("", value, Verdict.NOT_OFFERED, {}, f"{option} knows {offered}", trains=True)
        chosen = chosen_name[str(value).lower()]
        return {} if chosen is None else {option: chosen}

    return Rule(make, keeps=True)


def compute(make: Make, remark: str = "", verdict: Verdict = Verdict.EXACT, keeps: bool = False) -> Rule:
    """Whatever `make` says."""
    return Rule(make, verdict, remark, keeps=keeps)


def nothing(remark: str) -> Rule:
    """A key that needs no setting here; `remark` says why."""
    return Rule(lambda value, keys: {}, Verdict.EXACT, remark)


def missing(remark: str, trains: bool = True) -> Rule:
    """A key without a counterpart; `remark` says why, or what to do instead."""
    return Rule(lambda value, keys: {}, Verdict.NOT_OFFERED, remark, trains)


@dataclass
class Translation:
    """Rows of a report, and the settings that they amount to."""

    rows: list[ImportedKey] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, object]:
        """Options of Darkroom; of several rows that set one, the first counts."""
        return {name: value for row in reversed(self.rows) for name, value in row.settings.items()}


def translate(rules: Mapping[str, Rule], keys: Values, program: str) -> list[ImportedKey]:
    """One row per key, in the order of the config. Raises ConfigErrors for keys that are misspelt."""
    rows, errors = [], []
    for key, value in keys.items():
        rule = rules.get(key)
        if rule is not None:
            rows.append(_apply(rule, key, value, keys))
        elif near := difflib.get_close_matches(key, rules, n=3, cutoff=SLIP):
            problem = f"{program} has no such key; did you mean {' or '.join(near)}?"
            errors.append(ConfigError(key, value, "", problem, "Correct it, or take it out."))
        else:
            rows.append(ImportedKey(key, value, Verdict.NOT_OFFERED, {}, "nothing is known of this key here"))
    if errors:
        raise ConfigErrors(errors)
    return rows


def _apply(rule: Rule, key: str, value: object, keys: Values) -> ImportedKey:
    if value in OFF and not rule.keeps:
        return ImportedKey(key, value, Verdict.EXACT, {}, "off, as it is without it")
    try:
        result = rule.make(value, keys)
    except (TypeError, ValueError, OverflowError, LookupError, AttributeError) as cause:
        problem = f"It is not what this key holds ({type(cause).__name__}: {cause})."
        raise ConfigErrors([ConfigError(key, value, "", problem, "Correct it.")]) from cause
    if isinstance(result, ImportedKey):
        return ImportedKey(key, value, result.verdict, result.settings, result.remark, result.trains)
    return ImportedKey(key, value, rule.verdict, result, rule.remark, rule.trains)


def about_dataset(place: str, row: ImportedKey) -> ImportedKey:
    """A row about a dataset: what it sets is in the dataset file, and not among the options."""
    words = ", ".join(f"{name} = {value}" for name, value in row.settings.items())
    remark = "; ".join(part for part in (words, row.remark) if part)
    return ImportedKey(f"{place} {row.key}", row.value, row.verdict, {}, remark, row.trains)


def flatten(document: Values, separator: str = ".") -> dict[str, object]:
    """Nested tables as keys with dots; lists stay as they are.

    >>> flatten({"train": {"lr": 1e-4, "ema": {"use_ema": True}}})
    {'train.lr': 0.0001, 'train.ema.use_ema': True}
    """
    flat: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            inner = flatten(value, separator)
            flat |= {f"{key}{separator}{name}": item for name, item in inner.items()}
        else:
            flat[str(key)] = value
    return flat


def write_defaults(rows: list[ImportedKey], defaults: Settings, program: str) -> list[ImportedKey]:
    """The rows, and one for each default of the program that is another one here and that nothing sets."""
    settings = {name for row in rows for name in row.settings}
    left = [
        ImportedKey(f"({name})", value, Verdict.EXACT, {name: value}, f"the default of {program}")
        for name, value in defaults.items()
        if name not in settings
    ]
    return [*rows, *left]


OPTIMIZERS: Mapping[str, str] = {
    "adamw": "torch-adamw",
    "adam": "torch-adam",
    "adamw8bit": "bnb-adamw8bit",
    "adam8bit": "bnb-adam8bit",
    "adamw_8bit": "bnb-adamw8bit",
    "adam_8bit": "bnb-adam8bit",
    "pagedadamw8bit": "bnb-adamw8bit-paged",
    "pagedadamw": "bnb-adamw-paged",
    "lion": "optimi-lion",
    "lion8bit": "bnb-lion8bit",
    "lion_8bit": "bnb-lion8bit",
    "pagedlion8bit": "bnb-lion8bit-paged",
    "sgd": "torch-sgd",
    "sgdnesterov": "torch-sgd",
    "adafactor": "torch-adafactor",
    "adagrad": "torch-adagrad",
    "adagrad_8bit": "bnb-adagrad8bit",
    "rmsprop": "torch-rmsprop",
    "prodigy": "prodigy",
    "prodigyplusschedulefree": "prodigy",
    "prodigy_plus_schedule_free": "prodigy",
    "adamwschedulefree": "adamw_schedulefree",
    "schedule_free_adamw": "adamw_schedulefree",
    "adamw_optimi": "optimi-adamw",
    "stableadamw": "optimi-stableadamw",
    "adamw8bitkahan": "bnb-adamw8bit",
    "muon": "muon",
    "soap": "soap",
    "came": "sdnq-came",
    "ademamix": "bnb-ademamix",
    "ademamix_8bit": "bnb-ademamix8bit",
}
"""Optimizers of other trainers, in lower case, and the ones here."""

_LIKE = {
    "prodigy": "by ProdigyPlus, which is schedule-free",
    "adafactor": "by torch's class, without relative steps",
    "adamw8bitkahan": "without Kahan summation",
    "sgdnesterov": "without Nesterov's momentum, unless optimizer_config says nesterov",
    "lion": "by optimi's class",
    "came": "by SDNQ's class",
}


def choose_optimizer(value: object, keys: Values) -> ImportedKey:
    """An optimizer's name, with or without its package; a path to a class of its own is imported as it is."""
    name = str(value)
    plain = name.rpartition(".")[2].lower().replace("-", "_")
    chosen_name = OPTIMIZERS.get(plain) or OPTIMIZERS.get(plain.replace("_", ""))
    if chosen_name:
        remark = _LIKE.get(plain, "")
        verdict = Verdict.APPROXIMATED if remark else Verdict.EXACT
        return ImportedKey("", value, verdict, {"optimizer": chosen_name}, remark)
    if "." in name:
        return ImportedKey("", value, Verdict.EXACT, {"optimizer": name})
    hint = find_nearest(plain, OPTIMIZERS)
    remark = f"there is no such optimizer here{f'; near it is {hint[0]}' if hint else ''}; the default trains"
    return ImportedKey("", value, Verdict.NOT_OFFERED, {}, remark, trains=True)


SCHEDULES: Mapping[str, object] = {
    "constant": "constant",
    "constant_with_warmup": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "inverse_sqrt": "inverse_sqrt",
}
PRECISIONS: Mapping[str, object] = {
    **dict.fromkeys(("no", "fp32", "float32", "float"), "no"),
    **dict.fromkeys(("fp16", "float16"), "fp16"),
    **dict.fromkeys(("bf16", "bfloat16"), "bf16"),
}


def drop_launcher(words: Sequence[str]) -> list[str]:
    """Words from the script on, without `accelerate launch` and the launcher's own flags."""
    script = next((number for number, word in enumerate(words) if word.endswith(".py")), 0)
    return list(words[script:])


def read_arguments(words: Sequence[str], switches: frozenset[str], source: str) -> tuple[list[str], dict[str, object]]:
    """Words of a command line as words without dashes, and values by name; a flag with several values has a list.

    `switches` take no value. Raises ConfigErrors for a flag without one.
    """
    plain: list[str] = []
    values: dict[str, object] = {}
    name: str | None = None
    for word in words:
        if word.startswith("--"):
            _require_value(name, values, source)
            flag, sign, value = word[2:].partition("=")
            name = flag.replace("-", "_")
            if sign:
                values[name], name = read_word(value), None
            elif name in switches:
                values[name], name = True, None
        elif name is None:
            plain.append(word)
        elif name in values:
            held = values[name]
            values[name] = [*held, read_word(word)] if isinstance(held, list) else [held, read_word(word)]
        else:
            values[name] = read_word(word)
    _require_value(name, values, source)
    return plain, values


def _require_value(name: str | None, values: Values, source: str) -> None:
    if name is not None and name not in values:
        raise ConfigErrors([ConfigError(f"--{name}", None, source, "It has no value.", "Write it behind the flag.")])


def read_word(word: str) -> object:
    """A word of a command line as a number or a truth value, if it is one.

    >>> [read_word(word) for word in ("1e-4", "16", "true", "bf16")]
    [0.0001, 16, True, 'bf16']
    """
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
