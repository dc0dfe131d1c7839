"""Read settings from every place they may stand in, and remember where each came from.

    resolved = resolve(["config/mine/config.toml", "--seed", "7"], os.environ, Path.cwd())
    resolved.config.seed           # 7
    resolved.sources["seed"]       # "command line"

Precedence: command line, config file, environment, what the family prefers, default. A `config.env` that lies beside
the config file counts as environment, below the variables of the process itself.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from darkroom.core import log
from darkroom.core.errors import ConfigError, ConfigErrors, missing_option
from darkroom.core.files import expand_home, is_file
from darkroom.core.registry import find_nearest
from darkroom.core.text import ESCAPES, find_slip, iterate_texts
from darkroom.options import compat, later, tiny
from darkroom.options.command_line import COMMAND_LINE, FALSE_WORDS, TRUE_WORDS, Arguments, parse_arguments
from darkroom.options.config import Config, every_option, find_idle_reason, not_offered, option_names
from darkroom.options.config_files import (
    MalformedError,
    lower_first,
    parse_env_file,
    plain_name,
    read_json,
    read_toml,
    read_utf8,
)
from darkroom.options.datasets.musubi import read_run_settings
from darkroom.options.field import OptionInfo
from darkroom.options.imports import refuse_foreign
from darkroom.options.imports.musubi.arguments import find_option, read_value
from darkroom.options.imports.musubi.translate import MARKERS, MODEL, SHARED
from darkroom.options.imports.musubi.translate import translate as translate_musubi
from darkroom.options.imports.report import ImportedKey, Verdict
from darkroom.options.locate import example_folders, find_config
from darkroom.options.origins import ORIGINS, ConfigTraits, Origin, is_off, is_origin_default, recognize

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


DEFAULT, FAMILY_DEFAULT = "default", "family default"
EXAMPLES = ("config/examples/", "simpletuner/examples/")
"""How SimpleTuner's configs write the folder of its examples."""
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
        except MalformedError as wrong:
            self._cannot_read(path, wrong)
            return
        for key in twice:
            reason = "it stands twice in this file and the later value counts"
            self.notes.append(Note(plain_name(key), None, self._show(path), reason, ineffective=False))
        refuse_foreign(dict(pairs), self._show(path))
        self._set_all(pairs, self._show(path))

    def _read_env_file(self, path: Path) -> None:
        source = self._show(path)
        try:
            variables = parse_env_file(read_utf8(path))
        except MalformedError as wrong:
            self._cannot_read(path, wrong)
            return
        for name, value in variables.items():
            self._set_variable(name, value, source)

    def _cannot_read(self, path: Path, wrong: MalformedError) -> None:
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
            name_to_set = on if value.strip().lower() in TRUE_WORDS else off
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
            problem = f"This cannot be taken apart into words: {lower_first(str(wrong))}."
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
        name = plain_name(key)
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
            if str(value).strip().lower() in FALSE_WORDS:
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
        if item is None or not isinstance(item.value, str) or item.value.strip().lower() in TRUE_WORDS | FALSE_WORDS:
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
        if ignored is None or str(ignored.value).strip().lower() not in TRUE_WORDS:
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
                self.errors.append(missing_option(info.name, f"A run needs it: {lower_first(info.help)}", change))

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
