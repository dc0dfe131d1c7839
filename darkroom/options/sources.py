"""Read settings from every place they may stand in, and remember where each came from.

    resolved = resolve(["config/mine/config.toml", "--seed", "7"], os.environ, Path.cwd())
    resolved.config.seed           # 7
    resolved.sources["seed"]       # "command line"

Precedence: command line, config file, environment, what the family prefers, default. A `config.env` that lies beside
the config file counts as environment, below the variables of the process itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from darkroom.core import log
from darkroom.core.errors import ConfigError, ConfigErrors, missing_option
from darkroom.core.files import expand_home, is_file
from darkroom.core.registry import find_nearest
from darkroom.core.text import ESCAPES, TOML_ESCAPES, find_slip, iterate_texts, split_lines, strip_last_commas
from darkroom.options import compat, later, tiny
from darkroom.options.config import Config, every_option, find_idle_reason, not_offered, option_names
from darkroom.options.datasets.musubi import read_run_settings
from darkroom.options.field import OptionInfo
from darkroom.options.imports import refuse_foreign
from darkroom.options.imports.musubi.arguments import find_option, read_value
from darkroom.options.imports.musubi.options import LISTS, SWITCHES
from darkroom.options.imports.musubi.translate import MARKERS, MODEL, SHARED
from darkroom.options.imports.musubi.translate import translate as translate_musubi
from darkroom.options.imports.report import ImportedKey, Verdict
from darkroom.options.origins import ORIGINS, ConfigTraits, Origin, is_off, is_origin_default, recognize

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


DEFAULT, FAMILY_DEFAULT, COMMAND_LINE = "default", "family default", "command line"
_TRUE = frozenset({"true", "yes", "on", "1", "y", "t"})
_FALSE = frozenset({"false", "no", "off", "0", "n", "f"})
EXAMPLES = ("config/examples/", "simpletuner/examples/")
"""How SimpleTuner's configs write the folder of its examples."""
_FORMATS = ("json", "toml", "env")
_PROSE = frozenset(
    ("validation_prompt", "validation_negative_prompt", "instance_prompt", "model_card_note",
     "sana_complex_human_instruction")
)  # fmt: skip
"""Options whose text may have several lines; a line break in any other is a slip."""
_PLACEHOLDER = re.compile(r"\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


def is_default(source: str) -> bool:
    """Did a value with this source come from defaults, and not from the user?"""
    return source in (DEFAULT, FAMILY_DEFAULT) or is_origin_default(source)


FamilyDefaults = Callable[[str, str | None], dict[str, object]]


# options that a family may prefer, and what a person sets instead of them
YIELDS_TO = {
    "flow_schedule_auto_shift": "flow_schedule_shift",
    "max_train_steps": "num_train_epochs",
    "lr_warmup_steps": "lr_warmup_ratio",
    "validation_disable": "user_prompt_library",
}


@dataclass(frozen=True)
class Note:
    """A setting that was read and has no effect, or was read as something else, and why."""

    option: str
    value: object
    source: str
    reason: str
    ineffective: bool = True  # an error under `strict`

    def __str__(self) -> str:
        return f"{self.option} (from {self.source}): {self.reason}"


@dataclass(frozen=True)
class Resolved:
    """A finished configuration with the origin of every value."""

    config: Config
    sources: dict[str, str]  # option name to where its value came from
    notes: list[Note]
    path: Path | None = None  # the config file
    exports: dict[str, str] = field(default_factory=dict)  # variables of config.env files that are not options

    def explicit(self, name: str) -> bool:
        """Whether the user gave this option a value."""
        return not is_default(self.sources[name])


def resolve(
    argv: Sequence[str],
    environ: Mapping[str, str],
    cwd: Path,
    family_defaults: FamilyDefaults | None = None,
    *,
    partial: bool = False,
) -> Resolved:
    """Read everything. Raises ConfigErrors with all that is wrong at once.

    argv             the arguments after the command's name
    family_defaults  (family, flavour) to option values that suit it better than the general defaults
    partial          do not insist on the options that a run needs
    """
    return _OptionReader(environ, Path(cwd)).resolve(list(argv), family_defaults, partial)


@dataclass(frozen=True)
class _SourceValue:
    value: object
    source: str


class _OptionReader:
    """One call of `resolve`: gathers values, notes and errors layer by layer, later layers winning."""

    def __init__(self, environ: Mapping[str, str], cwd: Path):
        self.environ, self.cwd = dict(environ), cwd
        self.errors: list[ConfigError] = []
        self.notes: list[Note] = []
        self.values: dict[str, _SourceValue] = {}
        self.exports: dict[str, str] = {}
        self.musubi: dict[str, _SourceValue] = {}  # options of musubi-tuner that are called otherwise here
        self.foreign: dict[str, _SourceValue] = {}  # options of other programs that are not options here
        self.unsupported: list[ConfigError] = []
        self.variables: dict[str, _SourceValue] = {}  # of a config.env, those that are no settings
        self.mentioned: set[str] = set()  # variables that a {env:NAME} stood for
        self.keys: set[str] = set()  # as the user wrote them
        self.origin: Origin | None = None  # the program that the config was written for
        self.evidence = ""  # what shows that
        self.origin_defaults: dict[str, object] = {}  # of that program, where they were not taken
        self.unreadable = False  # the config could not be read, so nothing is known about what is missing

    def resolve(self, argv: list[str], family_defaults: FamilyDefaults | None, partial: bool) -> Resolved:
        line = parse_arguments(argv)
        self.errors += line.errors
        path = self._find(line)
        self._read_neighbours(path)
        self._read_environment()
        if path is not None:
            self._read_file(path)
        self._set_all(line.pairs, COMMAND_LINE)
        self._resolve_variables()
        self._locate_examples(path)
        self._translate_values()
        self._translate_musubi()
        self._resolve_foreign()
        self._resolve_unsupported()
        self._recognize(path)
        self._fit_to_tiny()
        self._read_dataset_settings()
        self._add_family_defaults(family_defaults)
        config = self._build(partial, path, line)
        return self._finish(config, path)

    # ---- layers ------------------------------------------------------------------------------------------------------

    def _find(self, line: Arguments) -> Path | None:
        try:
            return find_config(line, self.environ, self.cwd)
        except ConfigError as error:
            self.errors.append(error)
            self.unreadable = True
            return None

    def _read_neighbours(self, path: Path | None) -> None:
        """`config.env` files that apply beside the config file, the more special ones later."""
        folders = [self.cwd, self.cwd / "config", *([path.parent] if path else [])]
        visited: set[Path] = set()
        for folder in folders:
            candidate = folder / "config.env"
            if is_file(candidate) and candidate != path and candidate.resolve() not in visited:
                visited.add(candidate.resolve())
                self._read_env_file(candidate)

    def _read_environment(self) -> None:
        names = option_names()
        for variable, value in sorted(self.environ.items()):
            source = f"environment {variable}"
            if variable in compat.PROCESS_NAMES:
                self._set(compat.PROCESS_NAMES[variable], value, source)
            elif variable.startswith("DARKROOM_"):
                key = variable.removeprefix("DARKROOM_")
                if key.lower() in names:
                    self._set(key.lower(), value, source)
                elif key not in compat.SETTINGS_FREE_VARIABLES:
                    hint = find_nearest(key.lower(), names)
                    suggestion = f"; did you mean {', '.join(f'DARKROOM_{n.upper()}' for n in hint)}?" if hint else ""
                    self.notes.append(Note(variable, value, "environment", f"there is no such option{suggestion}"))

    def _read_file(self, path: Path) -> None:
        if path.suffix == ".env":
            self._read_env_file(path)
            return
        try:
            pairs, twice = read_json(path) if path.suffix == ".json" else read_toml(path)
        except _MalformedError as wrong:
            self._cannot_read(path, wrong)
            return
        for key in twice:
            reason = "it stands twice in this file and the later value counts"
            self.notes.append(Note(_plain(key), None, self._show(path), reason, ineffective=False))
        refuse_foreign(dict(pairs), self._show(path))
        self._set_all(pairs, self._show(path))

    def _read_env_file(self, path: Path) -> None:
        source = self._show(path)
        try:
            variables = parse_env_file(_text(path))
        except _MalformedError as wrong:
            self._cannot_read(path, wrong)
            return
        for name, value in variables.items():
            self._set_variable(name, value, source)

    def _cannot_read(self, path: Path, wrong: _MalformedError) -> None:
        self.errors.append(ConfigError("CONFIG", self._show(path), "the config file", wrong.problem, wrong.change))
        self.unreadable = True

    def _set_variable(self, name: str, value: str, source: str) -> None:
        """One line of a `config.env`."""
        plain = name.removeprefix("DARKROOM_").lower()
        self.keys.add(name)
        if name in compat.ENV_FILE_NAMES:
            self._set(compat.ENV_FILE_NAMES[name], value, source)
        elif name in compat.ENV_FILE_SWITCHES:
            key, on, off = compat.ENV_FILE_SWITCHES[name]
            name_to_set = on if value.strip().lower() in _TRUE else off
            if name_to_set is not None:
                self._set(key, name_to_set, source)
        elif name == "TRAINER_EXTRA_ARGS":
            self._set_extra_arguments(value, source)
        elif plain in option_names():
            self._set(plain, value, source)
        elif name in compat.LAUNCHER_VARIABLES:
            self.notes.append(Note(name, value, source, "only SimpleTuner's start script reads it", ineffective=False))
        elif _is_foreign(plain):
            self._set(plain, value, source)
        else:
            self.variables[name] = _SourceValue(value, source)
            self.environ.setdefault(name, value)

    def _resolve_variables(self) -> None:
        """Lines of a `config.env` that are no settings: exported to this process, without effect, or refused."""
        for name, variable in self.variables.items():
            if log.is_secret_variable(name):
                log.hide(variable.value)
            value = "***" if log.is_secret_variable(name) else variable.value
            if compat.PROTECTED_VARIABLES.fullmatch(name):
                reason = "no effect: a config.env never changes this variable; set it in your shell"
                self.notes.append(Note(name, value, variable.source, reason))
            elif compat.FOREIGN_VARIABLES.fullmatch(name) or _is_darkroom_variable(name):
                self.exports[name] = str(variable.value)
                reason = "it is exported to the libraries of this run"
                self.notes.append(Note(name, value, variable.source, reason, ineffective=False))
            elif name in self.mentioned or self._is_mentioned_by_datasets(name):
                self.exports[name] = str(variable.value)
            else:
                suggestion = _did_you_mean(name.removeprefix("DARKROOM_").lower())
                problem = f"This is no option, and no variable that a run reads{suggestion}"
                change = "Correct the name or take the line out; what only your shell needs, set there."
                self.errors.append(ConfigError(name, value, variable.source, problem, change))

    def _is_mentioned_by_datasets(self, name: str) -> bool:
        """Does the dataset file say {env:NAME}?"""
        file_value = self.values.get("data_backend_config")
        if file_value is None or not isinstance(file_value.value, str):
            return False
        try:
            text = (self.cwd / Path(file_value.value).expanduser()).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):
            return False
        return f"{{env:{name}}}" in text

    def _set_extra_arguments(self, value: str, source: str) -> None:
        """Options written as on a command line."""
        try:
            words = shlex.split(value)
        except ValueError as wrong:
            problem = f"This cannot be taken apart into words: {_lower(str(wrong))}."
            self.errors.append(ConfigError("TRAINER_EXTRA_ARGS", value, source, problem, "Close every quote."))
            return
        extra = parse_arguments(words, source)
        self.errors += extra.errors
        self._set_all(extra.pairs, source)

    # ---- keys --------------------------------------------------------------------------------------------------------

    def _set_all(self, pairs: Iterable[tuple[str, object]], source: str) -> None:
        for key, value in pairs:
            if source != COMMAND_LINE:
                self.keys.add(key)
            self._set(key, value, source)

    def _set(self, key: str, value: object, source: str) -> None:
        """Put one value under its option's name, or say why it has none."""
        name = _plain(key)
        info = option_names().get(name)
        if info is None:
            self._set_unknown(name, value, source)
            return
        value = self._substitute(name, value, source)
        if (slip := _slip(info, value)) is not None:
            self.errors.append(ConfigError(name, value, source, *slip))
            return
        if value is None or (isinstance(value, str) and value.strip() == "" and not info.empty):
            return
        self.values[info.name] = _SourceValue(self._parse_structured(info, value, source), source)

    def _set_unknown(self, name: str, value: object, source: str) -> None:
        if name == "vae_cache_preprocess":
            if str(value).strip().lower() in _FALSE:
                self._set("vae_cache_ondemand", True, source)
            return
        if find_option(name):
            self._set_musubi(find_option(name), value, source)
        elif name in compat.DATASET_KEYS:
            reason = "it belongs into the dataset file and is not read here"
            self.notes.append(Note(name, value, source, reason))
        elif name in compat.FORM_KEYS or name.startswith("__"):
            self.notes.append(Note(name, value, source, "only a web form reads it", ineffective=False))
        elif _is_foreign(name):
            self.foreign[name] = _SourceValue(value, source)
        else:
            problem = f"There is no option of this name{_did_you_mean(name)}"
            change = "Correct the name or take it out; `darkroom options --search WORD` finds options."
            self.errors.append(ConfigError(name, value, source, problem, change))

    def _substitute(self, name: str, value: object, source: str) -> object:
        """Replace `{env:NAME}` in texts, also inside objects and lists."""
        if isinstance(value, dict):
            return {key: self._substitute(name, item, source) for key, item in value.items()}
        if isinstance(value, list):
            return [self._substitute(name, item, source) for item in value]
        if not isinstance(value, str):
            return value

        def substitute(match: re.Match[str]) -> str:
            if match[1] not in self.environ:
                reason = f"the environment variable {match[1]} is not set, so its place stays empty"
                self.notes.append(Note(name, value, source, reason))
            replacement = self.environ.get(match[1], "")
            if log.is_secret_variable(match[1]):
                log.hide(replacement)
            self.mentioned.add(match[1])
            return replacement

        return _PLACEHOLDER.sub(substitute, value)

    def _parse_structured(self, info: OptionInfo, value: object, source: str) -> object:
        """The object behind a structured option that was given as the path of a JSON file."""
        if not info.json or not isinstance(value, str) or value.lstrip()[:1] in ("[", "{"):
            return value
        path = self.cwd / expand_home(value)
        if not is_file(path):
            if info.text or value.strip().lower() in ("none", "null"):
                return value
            problem = f"This is neither JSON nor a file; {path} does not exist."
            self.errors.append(ConfigError(info.name, value, source, problem, "Give JSON or the path of a JSON file."))
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as wrong:
            problem = f"{path} is not valid JSON: {wrong}."
            self.errors.append(ConfigError(info.name, value, source, problem, "Correct the file."))
            return None

    def _locate_examples(self, path: Path | None) -> None:
        """Paths below `config/examples/`, which SimpleTuner finds in its package too, to where the file is."""
        for name, item in self.values.items():
            written = str(item.value).replace("\\", "/")
            prefix = next((p for p in EXAMPLES if written.startswith(p)), None)
            if not isinstance(item.value, str) or prefix is None or (self.cwd / written).exists():
                continue
            candidates = (folder / written.removeprefix(prefix) for folder in example_folders(self.cwd, path))
            existing = next((candidate for candidate in candidates if candidate.exists()), None)
            if existing is not None:
                self.values[name] = _SourceValue(self._show(existing), item.source)

    # ---- values ------------------------------------------------------------------------------------------------------

    def _translate_values(self) -> None:
        """Values that a predecessor reads as another."""
        self._translate_names()
        self._translate_prompt_library()
        self._translate_new_controlnet()
        self._translate_shares()
        schedule = self.values.get("lr_scheduler")
        if schedule is None:
            return
        warmup = self.values.get("lr_warmup_steps")
        read_as = None
        if schedule.value == "cosine_with_warmup":
            read_as = "cosine"
        elif schedule.value == "constant" and warmup is not None and str(warmup.value).strip() not in ("0", "0.0"):
            read_as = "constant_with_warmup"
        if read_as:
            self.values["lr_scheduler"] = _SourceValue(read_as, schedule.source)
            reason = f"{schedule.value} is read as {read_as}"
            self.notes.append(Note("lr_scheduler", schedule.value, schedule.source, reason, ineffective=False))

    def _translate_shares(self) -> None:
        """Steps below 1 are a share of the run, as musubi-tuner and transformers write them; auto is the default."""
        for steps, ratio in (("lr_warmup_steps", "lr_warmup_ratio"), ("lr_decay_steps", "lr_decay_ratio")):
            item = self.values.get(steps)
            text = "" if item is None else str(item.value).strip()
            try:
                share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
            except ValueError:
                continue
            if item is not None and 0 < share < 1:
                del self.values[steps]
                self.values.setdefault(ratio, _SourceValue(share, item.source))
        dynamic = self.values.get("dynamo_dynamic")
        if dynamic and str(dynamic.value).strip().lower() == "auto":
            del self.values["dynamo_dynamic"]

    def _translate_names(self) -> None:
        """Choices that are called otherwise in another program."""
        for origin in ORIGINS.values():
            for option, names in origin.values.items():
                item = self.values.get(option)
                written = "" if item is None else str(item.value).strip().lower()
                here = names.get(written.replace("-", "_") if option == "model_family" else written)
                here = here or names.get(f"{self._family_name()}/{written}")
                if item is not None and here is not None:
                    self.values[option] = _SourceValue(here, item.source)
                    reason = f"{written} of {origin.title} is read as {here}"
                    self.notes.append(Note(option, item.value, item.source, reason, ineffective=False))

    def _translate_prompt_library(self) -> None:
        """A path in the switch for the built-in prompts is the user's own library."""
        item = self.values.get("validation_prompt_library")
        if item is None or not isinstance(item.value, str) or item.value.strip().lower() in _TRUE | _FALSE:
            return
        del self.values["validation_prompt_library"]
        if not is_off(item.value):
            self.values.setdefault("user_prompt_library", item)
            reason = "it is a path, and read as user_prompt_library"
            self.notes.append(Note("validation_prompt_library", item.value, item.source, reason, ineffective=False))

    def _translate_new_controlnet(self) -> None:
        """A LoRA is for a ControlNet that exists: a new one, on which SimpleTuner puts a LoRA, is trained whole."""
        values = {name: item.value for name, item in self.values.items()}
        is_new = is_off(values.get("controlnet_model_name_or_path"))
        is_lora = str(values.get("model_type", "lora")).strip().lower() == "lora"
        if is_off(values.get("controlnet")) or not is_new or not is_lora:
            return
        source = self.values["controlnet"].source
        self.values["model_type"] = _SourceValue("full", source)
        reason = (
            "a LoRA changes a ControlNet that exists, and controlnet_model_name_or_path names none: the new ControlNet"
            " is trained whole"
        )
        self.notes.append(Note("model_type", "lora", source, reason, ineffective=False))

    def _set_musubi(self, name: str, value: object, source: str) -> None:
        """An option of musubi-tuner that is called otherwise here; a later source wins."""
        self.keys.add(name)
        try:
            self.musubi[name] = _SourceValue(read_value(name, self._substitute(name, value, source), source), source)
        except ConfigError as error:
            self.errors.append(error)

    def _translate_musubi(self) -> None:
        """Options of musubi-tuner as those that they become here. An option of Darkroom's own counts before them."""
        musubi_values = {name: item.value for name, item in self.musubi.items()}
        shared = self._read_shared() if self._is_of_musubi() else {}
        try:
            rows = translate_musubi({**shared, **musubi_values}, family=self._family_name())
        except ConfigErrors as several:
            self.errors += several.errors
            return
        except ConfigError as error:
            self.errors.append(add_source(error, {name: item.source for name, item in self.musubi.items()}))
            return
        for row in rows:
            name = row.key.partition(" ")[0]
            if name in self.musubi or (name == MODEL and self._is_of_musubi()):
                self._apply(row, self.musubi[name].source if name in self.musubi else "musubi-tuner")
            elif name in shared and row.settings != {name: row.value}:
                self._apply(row, self.values.pop(name).source)

    def _read_shared(self) -> dict[str, object]:
        """Values of the options that both programs have under one name; a wrong one is reported as ours."""
        values = {}
        for name in SHARED & self.values.keys():
            with contextlib.suppress(ConfigError):
                values[name] = read_value(name, self.values[name].value)
        return values

    def _is_of_musubi(self) -> bool:
        return bool(self.musubi.keys() & MARKERS)

    def _apply(self, row: ImportedKey, source: str) -> None:
        """Set what an option of another program becomes, and say what is not the same."""
        counts = {name: self.values.setdefault(name, _SourceValue(value, source)).value
                  for name, value in row.settings.items()}  # fmt: skip
        became = " and ".join(f"{name} is {option_names()[name].show(value)}" for name, value in counts.items())
        if row.verdict is Verdict.NOT_OFFERED and row.trains:
            problem = f"This is an option of musubi-tuner that Darkroom does not offer: {row.remark}."
            change = "Take it out, or set ignore_unsupported to true to go on without it."
            self.unsupported.append(ConfigError(row.key, row.value, source, problem, change))
        elif ((became or row.remark) and row.value is not False) or row.settings:
            reason = "; ".join(part for part in (became, row.remark) if part)
            ineffective = not row.settings
            prefix = "no effect: " if ineffective else ""
            self.notes.append(Note(row.key, row.value, source, f"{prefix}{reason}", ineffective=ineffective))

    def _resolve_foreign(self) -> None:
        """Options of other programs: without effect, which is a note, or not offered."""
        for name, item in self.foreign.items():
            origin, row = next((o, row) for o in ORIGINS.values() if (row := o.find_foreign(name)) is not None)
            value, source = item.value, item.source
            if row.is_inert(name, value):
                reason = f"{origin.title} leaves it without effect with this value, and Darkroom has no such option"
                self.notes.append(Note(name, value, source, reason, ineffective=False))
            elif row.families and self._family_name() not in row.families:
                reason = f"it acts only in {' and '.join(row.families)}"
                self.notes.append(Note(name, value, source, f"no effect: {reason}"))
            elif row.switch and not self._is_on(row.switch):
                self.notes.append(Note(name, value, source, f"no effect: it acts only when {row.switch} is set"))
            elif row.ignored:
                self.notes.append(Note(name, value, source, f"no effect: {row.reason}"))
            else:
                problem = f"This is an option of {origin.title} that Darkroom does not offer. {row.reason}"
                change = f"{row.change or 'Take it out.'} Or set ignore_unsupported to true to go on without it."
                self.unsupported.append(ConfigError(name, value, source, problem, change))

    def _is_on(self, name: str) -> bool:
        """Does the config switch `name` on, an option here or of another program?"""
        if (item := self.foreign.get(name)) is not None:
            row = next(row for origin in ORIGINS.values() if (row := origin.find_foreign(name)) is not None)
            return not row.is_inert(name, item.value)
        return name in self.values and not is_off(self.values[name].value)

    def _resolve_unsupported(self) -> None:
        ignored = self.values.get("ignore_unsupported")
        if ignored is None or str(ignored.value).strip().lower() not in _TRUE:
            self.errors += self.unsupported
            return
        for error in self.unsupported:
            self.notes.append(Note(error.option, error.got, error.source, "Darkroom does not offer it yet"))

    def _recognize(self, path: Path | None) -> None:
        """Take the defaults of the program that the config was written for, or that `defaults` names."""
        values = {name: item.value for name, item in self.values.items()}
        recognized = recognize(ConfigTraits(frozenset(self.keys), values, path))
        chosen = str(values.get("defaults") or "auto").strip().lower()
        if recognized is not None:
            self.origin, self.evidence = recognized
            self._imply(self.origin)
        origin = ORIGINS.get(chosen) or (self.origin if chosen == "auto" else None)
        if origin is None:
            return
        defaults = origin.defaults_for(self._family_name(), cast("str | None", values.get("model_flavour")))
        if origin.holds or chosen == origin.name:
            self._imply(origin)
            self._prefer(defaults, origin.source)
        else:
            self.origin_defaults = defaults

    def _imply(self, origin: Origin) -> None:
        """Set what a config of this program means by the values that it has."""
        values = {name: item.value for name, item in self.values.items()}
        for name, value in origin.implied.items():
            if option_names()[name].is_active_with(values):
                self._prefer({name: value}, origin.source)

    def _family_name(self) -> str:
        family = self.values.get("model_family")
        return "" if family is None else str(family.value).replace("-", "_")

    def _prefer(self, defaults: Mapping[str, object], source: str) -> None:
        """Give options that have no value yet one that suits better than their default."""
        already_set = set(self.values)
        for key, value in defaults.items():
            if YIELDS_TO.get(key) not in already_set:
                self.values.setdefault(option_names()[key].name, _SourceValue(value, source))

    def _read_dataset_settings(self) -> None:
        """Settings of a run that musubi-tuner has in its dataset file, such as the indices of one-frame FramePack."""
        item = self.values.get("data_backend_config")
        if item is None or not isinstance(item.value, str):
            return
        path = self.cwd / expand_home(item.value)
        for name, value in read_run_settings(path, self._family_name()).items():
            self.values.setdefault(name, _SourceValue(value, self._show(path)))

    def _add_family_defaults(self, family_defaults: FamilyDefaults | None) -> None:
        family, flavour = self.values.get("model_family"), self.values.get("model_flavour")
        if family_defaults is None or family is None:
            return
        name = self._family_name()
        info = option_names()["model_family"]
        if name not in info.choices or name in info.pending_choices:
            return
        try:
            preferred = family_defaults(name, None if flavour is None else str(flavour.value))
        except ConfigErrors as several:
            self.errors += several.errors
            return
        except ConfigError as error:
            self.errors.append(error)
            return
        self._prefer(preferred, FAMILY_DEFAULT)

    def _fit_to_tiny(self) -> None:
        """Bring what is meant for published weights to what the `tiny` flavour has."""
        flavour = self.values.get("model_flavour")
        if flavour is None or not tiny.is_tiny(str(flavour.value)):
            return
        # what stands beside `tiny` on a command line is meant for it
        values = {name: item.value for name, item in self.values.items() if item.source != COMMAND_LINE}
        for name, (value, reason) in tiny.fit(values, lambda path: (self.cwd / expand_home(path)).exists()).items():
            item = self.values.pop(name)
            if value is not None:
                self.values[name] = _SourceValue(value, item.source)
            if not is_default(item.source):
                self.notes.append(Note(name, item.value, item.source, reason, ineffective=False))

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _build(self, partial: bool, path: Path | None, line: Arguments) -> Config | None:
        """The Config, or None without a usable model_family; wrong values are reported and left out."""
        values = {name: item.value for name, item in self.values.items() if item.value is not None}
        for name, wrong in invalid_values(values).items():
            item = self.values[name]
            self.errors.append(wrong_value(option_names()[name], item.value, item.source, wrong))
            del values[name]
        if not self.unreadable:
            self._miss_required(partial, path, line)
        return Config.model_validate(values) if "model_family" in values else None

    def _miss_required(self, partial: bool, path: Path | None, line: Arguments) -> None:
        """Name the options that a run cannot start without and nobody set."""
        for info in every_option():
            is_needed = info.name == "model_family" or (info.required and not partial)
            item = self.values.get(info.name)
            if is_needed and (item is None or item.value is None):
                hint = "" if path or line.config or self.errors else " No config file was given or found either."
                change = f"Write {info.name} into the config, or --{info.name} VALUE on the command line.{hint}"
                self.errors.append(missing_option(info.name, f"A run needs it: {_lower(info.help)}", change))

    def _finish(self, config: Config | None, path: Path | None) -> Resolved:
        if config is None:
            raise ConfigErrors(self.errors)
        sources = {i.name: DEFAULT for i in every_option()}
        sources.update({name: item.source for name, item in self.values.items() if item.value is not None})
        for info in every_option():
            if info.secret and isinstance(value := getattr(config, info.name), str):
                log.hide(value)
        self.notes += find_ineffective(config, sources)
        self.notes += self._note_origin(config, sources)
        config = self._resolve_pending(config, sources)
        if config.strict:
            self.errors += [_as_error(note) for note in self.notes if note.ineffective]
        if self.errors:
            raise ConfigErrors(self.errors)
        return Resolved(config, sources, self.notes, path, self.exports)

    def _resolve_pending(self, config: Config, sources: Mapping[str, str]) -> Config:
        """Refuse options that are not implemented yet, or under `ignore_unsupported` put them back to their default."""
        pending = not_offered(config, sources)
        noted = [error for error in pending if config.ignore_unsupported or _trains_nothing(error)]
        self.errors += [error for error in pending if error not in noted]
        for error in noted:
            reason = f"no effect: Darkroom does not offer it yet. {error.problem.removeprefix('Not offered yet. ')}"
            self.notes.append(Note(error.option, error.got, error.source, reason))
        return config.model_copy(update={e.option: option_names()[e.option].default for e in noted})

    def _note_origin(self, config: Config, sources: Mapping[str, str]) -> list[Note]:
        """What follows from the program that the config was written for."""
        if self.origin is None:
            return []
        differing = []
        for name, value in self.origin_defaults.items():
            info, here = option_names()[name], getattr(config, name)
            if is_default(sources[name]) and here != value and not info.applies(config):
                differing.append(f"{name} {info.show(value)} (here {info.show(here)})")
        implied = [
            f"{name} is {option_names()[name].show(getattr(config, name))}"
            for name in self.origin.implied
            if sources[name] == self.origin.source
        ]
        notes = []
        if implied:
            reason = f"the config is {self.origin.title}'s, because {self.evidence}, so {' and '.join(implied)}"
            notes.append(Note("defaults", config.defaults, self.origin.source, reason, ineffective=False))
        if differing:
            reason = (
                f"the config is {self.origin.title}'s, because {self.evidence}, and leaves out what has another default"
                f" there: {', '.join(differing)}; --defaults {self.origin.name} takes those"
            )
            notes.append(Note("defaults", config.defaults, self.origin.source, reason, ineffective=False))
        return notes

    def _show(self, path: Path) -> str:
        return str(path.relative_to(self.cwd)) if path.is_relative_to(self.cwd) else str(path)


def _is_foreign(name: str) -> bool:
    """Is this an option of another program, and none here?"""
    return any(origin.find_foreign(name) is not None for origin in ORIGINS.values())


def _is_darkroom_variable(variable: str) -> bool:
    """Is this a variable of Darkroom or SimpleTuner that is no option?"""
    prefix, _, name = variable.partition("_")
    return prefix in ("DARKROOM", "SIMPLETUNER") and name in compat.SETTINGS_FREE_VARIABLES


def add_source(error: ConfigError, sources: Mapping[str, str]) -> ConfigError:
    """The error with where its option's value came from, if whoever raised it could not know."""
    if error.source or error.option not in sources:
        return error
    return ConfigError(error.option, error.got, sources[error.option], error.problem, error.change)


def find_ineffective(config: Config, sources: Mapping[str, str]) -> list[Note]:
    """The options that were set to something other than their default and change nothing in this run."""
    notes = []
    for info in every_option():
        source = sources.get(info.name, DEFAULT)
        value = getattr(config, info.name)
        if is_default(source) or value == info.default:
            continue
        reason = find_idle_reason(info, config)
        if reason:
            notes.append(Note(info.name, info.safe(value), source, f"no effect: {reason}"))
    return notes


def invalid_values(values: Mapping[str, object]) -> dict[str, ErrorDetails]:
    """What pydantic finds wrong with the values that are there: option name to its first finding."""
    stand_in = {"model_family": option_names()["model_family"].choices[0]}
    wrong_values: dict[str, ErrorDetails] = {}
    try:
        Config.model_validate({**stand_in, **values})
    except ValidationError as invalid:
        for wrong in invalid.errors(include_url=False):
            wrong_values.setdefault(str(wrong["loc"][0]), wrong)
    return wrong_values


def wrong_value(info: OptionInfo, value: object, source: str, wrong: ErrorDetails) -> ConfigError:
    """The message for a value that is not of the option's type, range or choices."""
    detail = str(wrong.get("msg", "")).removeprefix("Value error, ")
    if info.kind == "choice":
        words = [str(c) for c in info.choices]
        hint = find_nearest(str(value), words)
        problem = "There is no such choice" + (f"; did you mean {' or '.join(hint)}?" if hint else ".")
    elif wrong.get("type") == "value_error":
        problem = f"{detail[:1].upper()}{detail[1:].rstrip('.')}."
    else:
        problem = f"This is not {info.accepts}."
    fallback = "" if info.required else f", or leave it out for the default ({info.show(info.default)})"
    # a check of our own says what to write in its own words
    advice = "Correct it" if wrong.get("type") == "value_error" and info.kind != "choice" else f"Write {info.accepts}"
    return ConfigError(info.name, info.safe(value), source, problem, f"{advice}{fallback}.")


def _trains_nothing(error: ConfigError) -> bool:
    """Is this about a part that trains nothing, so that a run goes on without it?"""
    return any(error.problem.endswith(reason) for reason in later.TRAINS_NOTHING)


def _as_error(note: Note) -> ConfigError:
    change = "Take it out, or run without strict to have it reported only."
    return ConfigError(note.option, note.value, note.source, f"{note.reason[:1].upper()}{note.reason[1:]}.", change)


def _plain(key: str) -> str:
    """The option name in `--learning-rate`, `learning_rate` or `--learning_rate`."""
    return key.strip().lstrip("-").replace("-", "_")


def _slip(info: OptionInfo, value: object) -> tuple[str, str] | None:
    """What in a value cannot be meant, and what to change; None if nothing is."""
    single_line = info.kind == "string" and info.name not in _PROSE
    for _, text in iterate_texts(value):
        if problem := find_slip(text, single_line):
            return problem, "Take it out." if "NUL" in problem or "half" in problem else ESCAPES
    if single_line and isinstance(value, str) and value.startswith("~") and str(expand_home(value)).startswith("~"):
        return "There is no home folder of this name.", "Correct the name behind ~."
    return None


def _did_you_mean(name: str) -> str:
    foreign = [key for origin in ORIGINS.values() for row in origin.foreign for key in row.keys]
    hint = find_nearest(name, option_names()) or find_nearest(name, foreign)
    return f"; did you mean {' or '.join(hint)}?" if hint else "."


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


# ---- the command line ------------------------------------------------------------------------------------------------


@dataclass
class Arguments:
    """A command line taken apart."""

    config: str | None = None  # the positional argument or --config_file
    environment: str | None = None  # --env
    example: str | None = None  # --example
    pairs: list[tuple[str, object]] = field(default_factory=list)
    errors: list[ConfigError] = field(default_factory=list)


def parse_arguments(argv: Sequence[str], source: str = COMMAND_LINE) -> Arguments:
    """Take `[CONFIG] [--env NAME] [--flag] [--option VALUE] [--option=VALUE] [key=value]` apart."""
    line = Arguments()
    words = list(argv)
    while words:
        word = words.pop(0)
        if word.startswith("--") and len(word) > 2:
            _parse_option(line, word[2:], words, source)
        elif re.match(r"^[A-Za-z_][\w-]*=", word):
            key, _, value = word.partition("=")
            _add_pair(line, key, value, source)
        elif word == "-e" and words:
            line.environment = words.pop(0)
        elif word.startswith("-"):
            problem = "This is not understood."
            line.errors.append(ConfigError("argument", word, source, problem, "Write --OPTION VALUE."))
        elif line.config is None:
            line.config = word
        else:
            problem = f"A config was already given: {line.config}."
            line.errors.append(ConfigError("CONFIG", word, source, problem, "Give one, and options as --OPTION VALUE."))
    return line


def _parse_option(line: Arguments, text: str, words: list[str], source: str) -> None:
    """One `--option`, taking its value from `words` when it stands there."""
    key, equals, value = text.partition("=")
    if equals:
        _add_pair(line, key, value, source)
        return
    info = option_names().get(_plain(key))
    following = words[0] if words else None
    if (info is not None and info.kind == "bool") or find_option(key) in SWITCHES:
        if following is not None and following.lower() in _TRUE | _FALSE:
            value = words.pop(0)
        _add_pair(line, key, value or "true", source)
        return
    if following is None or following.startswith("--"):
        if info is None and _plain(key) not in ("env", "example", "config_file"):
            _add_pair(line, key, "true", source)
        else:
            change = f"Write --{key} VALUE."
            line.errors.append(missing_option(f"--{key}", "It needs a value and none follows.", change))
        return
    if find_option(key) in LISTS and info is None:
        line.pairs.append((key, _take_words(words)))
        return
    _add_pair(line, key, words.pop(0), source)


def _take_words(words: list[str]) -> list[str]:
    """Every word up to the next option: the value of a list of musubi-tuner's."""
    taken = []
    while words and not words[0].startswith("--"):
        taken.append(words.pop(0))
    return taken


def _add_pair(line: Arguments, key: str, value: str, source: str) -> None:
    name = _plain(key)
    if name in ("env", "environment"):
        line.environment = value
    elif name == "example":
        line.example = value
    elif name == "config_file":
        if line.config is not None:
            problem = f"A config was already given: {line.config}."
            line.errors.append(ConfigError("config_file", value, source, problem, "Give only one of them."))
        line.config = value
    else:
        line.pairs.append((key, value))


# ---- finding the file ------------------------------------------------------------------------------------------------


def find_config(line: Arguments, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """The config file that the command line or the environment asks for, or the usual one, or None.

    Raises ConfigError naming every path that was tried when one was asked for and is not there.
    """
    format_name = _first(environ, "CONFIG_BACKEND", "CONFIG_TYPE")
    formats = (format_name,) if format_name in _FORMATS else _FORMATS
    if line.config is not None:
        return _find_named(line.config, "command line", formats, cwd)
    if line.example is not None:
        return _find_example(line.example.removeprefix("examples/"), formats, cwd)
    if line.environment is not None:
        return _find_environment(line.environment, "command line", formats, cwd)
    if format_name == "cmd":
        return None
    if environ.get("CONFIG_PATH"):
        return _find_named(environ["CONFIG_PATH"], "environment CONFIG_PATH", formats, cwd)
    for variable in ("DARKROOM_ENVIRONMENT", "DARKROOM_ENV", "SIMPLETUNER_ENVIRONMENT", "SIMPLETUNER_ENV"):
        if environ.get(variable):
            return _find_environment(environ[variable], f"environment {variable}", formats, cwd)
    # ENV is a common name for other things, so it counts only when it names an environment that exists
    folders = [cwd / "config" / environ["ENV"]] if environ.get("ENV") else []
    return _find_existing([folder / f"config.{f}" for folder in [*folders, cwd, cwd / "config"] for f in formats])


def _find_named(name: str, source: str, formats: Sequence[str], cwd: Path) -> Path:
    """A file, a folder, a file without its ending, or the name of an environment."""
    path = cwd / expand_home(name)
    if is_file(path):
        if path.suffix.lstrip(".") in _FORMATS:
            return path
        problem, change = (
            f"{path.name} is none of the kinds of config that can be read.",
            "Give a .json, .toml or .env file.",
        )
        if path.suffix in (".yaml", ".yml"):
            change += f" For a job of ai-toolkit: darkroom import ai-toolkit {name}"
        raise ConfigError("CONFIG", name, source, problem, change)
    tried = [path / f"config.{f}" for f in formats]
    tried += [path.with_name(f"{path.name}.{f}") for f in formats] if path.name else []
    tried += _environment_paths(name, formats, cwd)
    return _require(name, source, [path, *tried])


def _find_environment(name: str, source: str, formats: Sequence[str], cwd: Path) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9._/-]+", name):
        raise ConfigError("env", name, source, "This is no name of an environment.", "Use letters, digits, . _ and -.")
    return _require(name, source, _environment_paths(name, formats, cwd))


def _environment_paths(name: str, formats: Sequence[str], cwd: Path) -> list[Path]:
    name = name.removesuffix(".json")
    folders = [cwd / "config" / name]
    if name.startswith("examples/"):
        folders += [folder / name.removeprefix("examples/") for folder in example_folders(cwd)]
    return [folder / f"config.{f}" for folder in folders for f in formats]


def _find_example(name: str, formats: Sequence[str], cwd: Path) -> Path:
    """The config of one of SimpleTuner's examples."""
    tried = [folder / name / f"config.{f}" for folder in example_folders(cwd) for f in formats]
    return _require(name, COMMAND_LINE, tried)


def example_folders(cwd: Path, config: Path | None = None) -> list[Path]:
    """Where SimpleTuner's examples may be: its folder of configs, a checkout, beside the config, its package."""
    folders = [cwd / "config/examples", cwd / "examples", cwd / "simpletuner/examples"]
    if config is not None:
        folders.append(config.parent.parent)
    package = importlib.util.find_spec("simpletuner")
    places = package.submodule_search_locations if package is not None else None
    return folders + [Path(place) / "examples" for place in places or ()]


def _require(name: str, source: str, tried: Sequence[Path]) -> Path:
    existing = _find_existing(tried)
    if existing is None:
        listed = "".join(f"\n    {path}" for path in dict.fromkeys(tried))
        problem = f"There is no such config. These were tried:{listed}"
        raise ConfigError("CONFIG", name, source, problem, "Give a .json, .toml or .env file, or a folder in config/.")
    return existing


def _find_existing(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if is_file(path)), None)


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    for name in names:
        for prefix in ("DARKROOM_", "SIMPLETUNER_", ""):
            if environ.get(prefix + name):
                return environ[prefix + name].strip().lower()
    return None


# ---- reading a file --------------------------------------------------------------------------------------------------


class _MalformedError(Exception):
    """A file that cannot be understood: what is wrong, and what to change."""

    def __init__(self, problem: str, change: str):
        self.problem, self.change = problem, change
        super().__init__(problem)


Pairs = list[tuple[str, object]]


def read_json(path: Path) -> tuple[Pairs, list[str]]:
    """The pairs of a flat JSON object, in order, and the keys that stand in it twice."""
    twice: list[str] = []

    def collect(pairs: Pairs) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        twice.extend(key for key in dict.fromkeys(keys) if keys.count(key) > 1)
        return dict(pairs)

    text = _text(path)
    if not text.strip():
        raise _MalformedError("The file is empty.", 'Write { "option": value, ... }.')
    try:
        document = json.loads(strip_last_commas(text), object_pairs_hook=collect)
    except RecursionError:
        raise _MalformedError("The file is nested too deeply.", 'Write { "option": value, ... }.') from None
    except json.JSONDecodeError as wrong:
        problem = f"Line {wrong.lineno}, column {wrong.colno}: {_lower(wrong.msg)}."
        change = "Correct it; JSON has double quotes, no comments, and a comma between two entries."
        raise _MalformedError(problem, ESCAPES if "escape" in wrong.msg else change) from None
    except ValueError as wrong:  # a number of thousands of digits
        raise _MalformedError(f"{wrong}.", "Correct the number.") from None
    if not isinstance(document, dict):
        raise _MalformedError("The file does not hold an object.", 'Write { "option": value, ... }.')
    return list(document.items()), twice


def read_toml(path: Path) -> tuple[Pairs, list[str]]:
    """The pairs of a TOML file with its sections flattened, and the keys that stand in several sections."""
    try:
        document = tomllib.loads(_text(path))
        pairs = _flatten(document)
    except RecursionError:
        raise _MalformedError("The file is nested too deeply.", "Write lines as option = value.") from None
    except tomllib.TOMLDecodeError as wrong:
        match = re.search(r"\(at line (\d+), column (\d+)\)", str(wrong))
        position = f"Line {match[1]}, column {match[2]}: " if match else ""
        problem = re.sub(r"\s*\(at .*\)$", "", str(wrong))
        change = "Correct it; in TOML texts are quoted and true is lower case."
        raise _MalformedError(
            f"{position}{_lower(problem) if position else problem}.", TOML_ESCAPES if "\\" in problem else change
        ) from None
    except ValueError as wrong:  # a number of thousands of digits, a date that is none
        raise _MalformedError(f"{wrong}.", "Correct the value.") from None
    keys = [_plain(key) for key, _ in pairs]
    return pairs, [key for key in dict.fromkeys(keys) if keys.count(key) > 1]


def _flatten(table: Mapping[str, object]) -> Pairs:
    """Sections mean nothing: their entries count as if they stood at the top."""
    pairs: Pairs = []
    for key, value in table.items():
        info = option_names().get(_plain(key))
        if isinstance(value, dict) and not (info is not None and info.json):
            pairs += _flatten(value)
        else:
            pairs.append((key, value))
    return pairs


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise _MalformedError(f"The file is not UTF-8 text (byte {wrong.start}).", "Save it as UTF-8.") from None
    except OSError as wrong:
        raise _MalformedError(f"The file cannot be read: {wrong.strerror}.", "Check its permissions.") from None


def parse_env_file(text: str) -> dict[str, str]:
    """`KEY=value` lines with comments, `export`, quotes, and `KEY+=value` to append. Later lines win."""
    variables: dict[str, str] = {}
    for number, line in enumerate(split_lines(text), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.match(r"^(?:export\s+)?([A-Za-z_]\w*)\s*(\+?=)\s*(.*)$", line)
        if match is None:
            raise _MalformedError(f"Line {number}: this is not NAME=value.", "Write lines as NAME=value.")
        name, sign, value = match[1], match[2], _unquote(match[3])
        variables[name] = f"{variables[name]} {value}" if sign == "+=" and variables.get(name) else value
    return variables


def _unquote(text: str) -> str:
    """The value without its quotes, or up to a comment when it has none."""
    if text[:1] in ("'", '"'):
        end = text.find(text[0], 1)
        while end > 0 and text[0] == '"' and text[end - 1] == "\\":
            end = text.find('"', end + 1)
        if end > 0:
            inner = text[1:end]
            return re.sub(r'\\(["\\$`])', r"\1", inner) if text[0] == '"' else inner
    return re.split(r"\s+#", text, maxsplit=1)[0].strip()
