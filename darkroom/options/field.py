"""How an option is declared, and what can be read back from the declaration.

    class LossOptions(Section):
        "How the difference between prediction and target becomes one number."
        page, title = "loss", "Loss"
        snr_gamma: float | None = option(None, "Cap on the weight of nearly clean steps.", ge=0, level="advanced")

The declaration is the only place where an option's type, default, range, choices, other names and sentence stand.
Readers, help, pages, web forms and messages all walk `OptionInfo`, which `describe` makes from it.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Level = Literal["basic", "advanced", "expert"]
Resume = Literal["refuse", "warn", "free"]
Cached = Literal["", "text"]
Kind = Literal["bool", "integer", "number", "string", "choice", "json"]

SET = "(set)"
"""In `when`: the other option has any value but none, zero or false."""

_EXTRA = "darkroom"
_NONE_WORDS = frozenset({"none", "null"})
IMPORT_PATH = r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+"
"""Pattern of `package.module.Class`, for options that also accept a class of the user's."""


def plugin_names(group: str) -> set[str]:
    """The names that installed packages offer under an entry point group; none is imported."""
    return {point.name for point in importlib.metadata.entry_points(group=group)}


if TYPE_CHECKING:
    FilledInt = int
else:
    FilledInt = int | None
"""An option that may be left out because every family fills it: None only before the settings are resolved."""


def option(
    default: object,
    help: str,
    *,
    resume: Resume,
    cached: Cached = "",
    aliases: Iterable[str] = (),
    choices: Iterable[str] | None = None,
    also: str = "",
    also_words: str = "",
    many: bool = False,
    computed: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    level: Level = "basic",
    families: Iterable[str] = (),
    when: Mapping[str, object] | None = None,
    pending: str = "",
    pending_choices: Mapping[object, str] | None = None,
    secret: bool = False,
    json: bool = False,
    text: bool = False,
    empty: bool = False,
    off: bool = False,
    required: bool = False,
) -> Any:
    """Declare one option of a `Section`. Pass `...` as the default of an option that must be given.

    resume           what another value means to a run that goes on from a checkpoint: "refuse" where it makes another
                     model or another order of data, "warn" where it enters what a step computes, else "free"
    cached           "text" where the cached embeddings of captions depend on it: it is part of their cache key
    aliases          other names that mean the same
    choices          for a `str` whose choices are computed; a `Literal` annotation says its own
    also             pattern of further accepted texts, described by `also_words`
    many             a comma-separated list of the choices
    computed         the choices depend on the installation, so pages do not list them
    families         the option has an effect in these families only
    when             other options that give this one its effect: {"use_ema": True}, a tuple of values, or SET
    pending          why the option is not available yet; it is refused unless it has its default
    pending_choices  the same for single choices
    secret           never shown, stored or logged
    json             a structured value: inline JSON, the path of a JSON file, or an object
    text             with json: a text that is neither JSON nor a file is the value itself
    empty            an empty text is a value and not the same as leaving the option out
    off              0 and -1 leave the option out where its range has no place for them, as in SimpleTuner
    required         a run cannot start without it
    """
    extra: dict[str, Any] = {
        "resume": resume,
        "cached": cached,
        "aliases": list(aliases),
        "choices": list(choices) if choices is not None else None,
        "also": also,
        "also_words": also_words,
        "many": many,
        "computed": computed,
        "level": level,
        "families": list(families),
        "when": dict(when or {}),
        "pending": pending,
        "pending_choices": dict(pending_choices or {}),
        "secret": secret,
        "json": json,
        "text": text,
        "empty": empty,
        "off": off,
        "required": required,
    }
    return Field(default, description=help, ge=ge, gt=gt, le=le, lt=lt, json_schema_extra={_EXTRA: extra})


class Section(BaseModel):
    """A group of options that share a page. Frozen; a name that is not declared is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    page: ClassVar[str] = ""
    title: ClassVar[str] = ""

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name is not None
        return coerce(_describe_cached(cls, info.field_name), value)


class ModelSettings(Protocol):
    """Options, of which the model's family is always there."""

    @property
    def model_family(self) -> str: ...


@dataclass(frozen=True)
class OptionInfo:
    """One option as every reader sees it."""

    name: str
    kind: Kind
    default: object
    help: str
    section: str
    page: str
    resume: Resume = "free"
    cached: Cached = ""
    choices: tuple[object, ...] = ()
    nullable: bool = False
    listing: bool = False  # json value that is a list, so that a single object is wrapped
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    aliases: tuple[str, ...] = ()
    also: str = ""
    also_words: str = ""
    many: bool = False
    computed: bool = False
    level: Level = "basic"
    families: tuple[str, ...] = ()
    when: Mapping[str, object] = field(default_factory=dict)
    pending: str = ""
    pending_choices: Mapping[object, str] = field(default_factory=dict)
    secret: bool = False
    json: bool = False
    text: bool = False
    empty: bool = False
    off: bool = False
    required: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)

    @property
    def flags(self) -> tuple[str, ...]:
        """`--name` and its aliases, as on the command line."""
        return tuple(f"--{name}" for name in self.names)

    @property
    def env_name(self) -> str:
        """The environment variable: DARKROOM_SNR_GAMMA."""
        return f"DARKROOM_{self.name.upper()}"

    @property
    def range(self) -> str:
        """`1 or more`, `0 to 1`, `above 0`, or nothing."""
        low = f"{self.ge:g}" if self.ge is not None else ""
        if self.ge is not None and self.le is not None:
            return f"{self.ge:g} to {self.le:g}"
        parts = [f"{low} or more"] if low else []
        parts += [f"above {self.gt:g}"] if self.gt is not None else []
        parts += [f"below {self.lt:g}"] if self.lt is not None else []
        parts += [f"{self.le:g} or less"] if self.le is not None else []
        return " and ".join(parts)

    @property
    def accepts(self) -> str:
        """What may be written, as words that follow 'This is not ...'."""
        if self.kind == "choice":
            listed = ", ".join(str(c) for c in self.choices)
            words = f"one or several (comma-separated) of {listed}" if self.many else f"one of {listed}"
            return f"{words}, or {self.also_words}" if self.also_words else words
        words = {
            "bool": "true or false",
            "integer": "a whole number",
            "number": "a number",
            "string": "text",
            "json": "JSON (or the path of a JSON file)",
        }[self.kind]
        words = f"{words} ({self.range})" if self.range else words
        return f"{words}, or {self.also_words}" if self.also_words else words

    def show(self, value: object) -> str:
        """`value` as it is written in a config."""
        if value is None:
            return "not set"
        if self.secret:
            return "(hidden)"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            return f"{value:g}"
        if isinstance(value, str):
            return value or '""'
        return json.dumps(value, ensure_ascii=False)

    def conditions(self) -> list[tuple[str, str]]:
        """`when` as words: [("use_ema", "true")]."""
        return [(name, _words(expected)) for name, expected in self.when.items()]

    def safe(self, value: object) -> object:
        """`value` as it may stand in a message: secrets are not shown."""
        return "(hidden)" if self.secret and value is not None else value

    def is_active_with(self, values: Mapping[str, object]) -> bool:
        """Do the `values` of other options meet what this one needs to have an effect?"""
        return all(name in values and _meets(values[name], expected) for name, expected in self.when.items())

    def applies(self, settings: ModelSettings) -> str:
        """Why this option has no effect beside the other `settings` (a Config), or an empty text."""
        if self.families and settings.model_family not in self.families:
            return f"it acts only in {_either(self.families)}, and this run trains {settings.model_family}"
        for name, expected in self.when.items():
            if not _meets(getattr(settings, name), expected):
                return f"it acts only when {name} is {_words(expected)}"
        return ""


def _meets(value: object, expected: object) -> bool:
    if expected == SET:
        return value not in (None, 0, 0.0, False, "", "none")
    return value in expected if isinstance(expected, list | tuple) else value == expected


def _words(expected: object) -> str:
    if expected == SET:
        return "set"
    if expected is None:
        return "left out"
    if isinstance(expected, bool):
        return "true" if expected else "false"
    return _either([str(w) for w in expected]) if isinstance(expected, list | tuple) else str(expected)


def _either(names: Iterable[str]) -> str:
    *head, last = names
    return f"{', '.join(head)} or {last}" if head else last


# ---- reading a declaration -------------------------------------------------------------------------------------------

_descriptions: dict[tuple[type, str], OptionInfo] = {}


def _describe_cached(section: type[Section], name: str) -> OptionInfo:
    key = (section, name)
    if key not in _descriptions:
        _descriptions[key] = describe(section, name)
    return _descriptions[key]


def describe(section: type[Section], name: str) -> OptionInfo:
    """The option `name` of a section class."""
    declared: FieldInfo = section.model_fields[name]
    assert isinstance(declared.json_schema_extra, dict), f"{name} is not declared with option()"
    extra: dict[str, Any] = dict(typing.cast(dict[str, Any], declared.json_schema_extra[_EXTRA]))
    inner, nullable = _without_none(declared.annotation)
    computed_choices = extra.pop("choices")
    literal = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
    choices = tuple(computed_choices) if computed_choices is not None else literal
    return OptionInfo(
        name=name,
        kind=_kind(inner, bool(choices), extra["json"]),
        default=None if declared.default is PydanticUndefined else declared.default,
        help=declared.description or "",
        section=section.title,
        page=section.page,
        choices=choices,
        nullable=nullable,
        listing=typing.get_origin(inner) is list,
        aliases=tuple(extra.pop("aliases")),
        families=tuple(extra.pop("families")),
        **_bounds(declared),
        **extra,
    )


def _without_none(annotation: object) -> tuple[object, bool]:
    """`float | None` to (float, True)."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation, False
    parts = [a for a in typing.get_args(annotation) if a is not type(None)]
    return (parts[0] if len(parts) == 1 else annotation), len(parts) < len(typing.get_args(annotation))


def _kind(inner: object, has_choices: bool, structured: bool) -> Kind:
    if structured:
        return "json"
    if has_choices:
        return "choice"
    kinds: dict[object, Kind] = {bool: "bool", int: "integer", float: "number", str: "string"}
    return kinds[inner]


def _bounds(declared: FieldInfo) -> dict[str, Any]:
    """The ge, gt, le and lt that pydantic keeps in the field's metadata."""
    bounds = {}
    for constraint in declared.metadata:
        for name in ("ge", "gt", "le", "lt"):
            limit = getattr(constraint, name, None)
            if limit is not None:
                bounds[name] = limit
    return bounds


# ---- reading a value -------------------------------------------------------------------------------------------------


def coerce(info: OptionInfo, value: object) -> object:
    """Bring the forms in which the readers deliver a value to one; pydantic checks type and range afterwards."""
    if isinstance(value, str) and info.nullable and value.strip().lower() in _NONE_WORDS and value not in info.choices:
        return None
    if value is None or (info.nullable and _is_nothing(info, value)):
        return None
    if info.kind == "json":
        return _coerce_json(info, value)
    if info.kind == "choice":
        return _coerce_choice(info, value)
    if info.kind in ("integer", "number"):
        return _coerce_number(info, value)
    if info.kind == "string" and isinstance(value, list | tuple):  # SimpleTuner takes either
        return ",".join(map(str, value))
    return value


def _is_nothing(info: OptionInfo, value: object) -> bool:
    """Does SimpleTuner read `value` as leaving the option out: an empty list or object, false for a text, or 0?"""
    if isinstance(value, list | dict):
        return not value
    if value is False:
        return info.kind in ("string", "choice", "json")
    return info.off and _is_off(info, value)


def _is_off(info: OptionInfo, value: object) -> bool:
    """Is `value` 0 or -1, and outside the option's range?"""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
    below = (info.ge is not None and number < info.ge) or (info.gt is not None and number <= info.gt)
    return below and number in (0, -1) and not isinstance(value, bool)


def _coerce_json(info: OptionInfo, value: object) -> object:
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as cause:
            raise ValueError(f"it is not valid JSON: {cause}") from None
    return [value] if info.listing and isinstance(value, dict) else value


def _coerce_number(info: OptionInfo, value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")
    if info.kind == "integer" and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else value
    return value


def _coerce_choice(info: OptionInfo, value: object) -> object:
    if info.many:
        words = value if isinstance(value, list | tuple) else str(value).split(",")
        return ",".join(str(_coerce_single_choice(info, str(word).strip())) for word in words)
    return _coerce_single_choice(info, value)


def _coerce_single_choice(info: OptionInfo, value: object) -> object:
    """The declared choice that `value` means: whatever its letter case, and for numbers also as text."""
    if value in info.choices and not isinstance(value, bool):
        return value
    if value is False and "no" in info.choices:  # `mixed_precision: no` read by something that knows yes and no
        return "no"
    for choice in info.choices:
        if not isinstance(value, bool) and str(choice).lower() == str(value).strip().lower():
            return choice
    if info.also and isinstance(value, str) and re.fullmatch(info.also, value.strip()):
        return value.strip()
    raise ValueError("there is no such choice")
