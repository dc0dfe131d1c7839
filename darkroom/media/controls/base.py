"""What every generator of control images has: parameters, and a call that makes one image from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np

from darkroom.core.registry import find_nearest

Kind = Literal["whole", "number", "flag", "text", "choice"]

_WORDS = {"whole": "a whole number", "number": "a number", "flag": "true or false", "text": "a text"}


@dataclass(frozen=True)
class Param:
    """One parameter: default, kind, bounds and what it does. With `many`, a list of such values, with at least one."""

    default: object
    kind: Kind
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    many: bool = False
    length: int | None = None

    @property
    def expectation(self) -> str:
        """What may be written, in words."""
        words = "one of " + ", ".join(self.choices) if self.kind == "choice" else _WORDS[self.kind]
        if self.above is not None:
            words += f" above {self.above:g}"
        if self.low is not None and self.high is not None:
            words += f" from {self.low:g} to {self.high:g}"
        elif self.low is not None:
            words += f" of {self.low:g} or more"
        if self.many:
            words = f"a list of {self.length or 'one or more'}, each {words}"
        return words + (", or null" if self.default is None else "")

    def read(self, value: object) -> object:
        """The value as the generator takes it. Raises ValueError when it is of another kind or out of bounds."""
        if value is None and self.default is None:
            return None
        if not self.many:
            return self._coerce_item(value)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ValueError
        if self.length is not None and len(value) != self.length:
            raise ValueError
        return tuple(self._coerce_item(item) for item in value)

    def _coerce_item(self, value: object) -> object:
        if self.kind == "flag":
            if isinstance(value, bool):
                return value
        elif self.kind in ("text", "choice"):
            if isinstance(value, str) and value != "" and (not self.choices or value in self.choices):
                return value
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and self._within(value):
            if self.kind == "number":
                return value
            if value == int(value):
                return int(value)
        raise ValueError

    def _within(self, value: float) -> bool:
        return (
            np.isfinite(value).item()
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
        )


class Control:
    """Makes a control image, uint8 (H, W, 3), from an image of the same shape.

    Equal images, parameters and states of the generator of random numbers give equal images. `params` of a call are
    complete: they come from `check`.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    params: ClassVar[Mapping[str, Param]] = {}
    needs_model: ClassVar[bool] = False
    """Weights of a network are loaded, and a GPU helps: it runs in the main process."""
    seeded: ClassVar[bool] = False
    """Random numbers are drawn."""
    needs_clip: ClassVar[bool] = False
    """Only a clip can be used: what it shows is in no single image."""

    @property
    def defaults(self) -> dict[str, object]:
        """Every parameter with its default."""
        return {name: param.default for name, param in self.params.items()}

    def validate_params(self, values: Mapping[str, object]) -> dict[str, object]:
        """Every parameter, given or default. Raises ValueError: names the parameter, what is wrong and the remedy."""
        params = self.defaults
        for name, value in values.items():
            if name not in self.params:
                hint = find_nearest(name, self.params)
                names = ", ".join(self.params) if self.params else "it takes none"
                raise ValueError(
                    f"{self.name} has no parameter '{name}'; "
                    + (f"did you mean {' or '.join(hint)}?" if hint else f"take it out (parameters: {names})")
                )
            param = self.params[name]
            try:
                params[name] = param.read(value)
            except (ValueError, OverflowError):
                raise ValueError(f"{name} = {value!r} does not suit {self.name}; give {param.expectation}") from None
        self.validate_together(params)
        return params

    def validate_together(self, params: Mapping[str, object]) -> None:
        """What no parameter shows on its own. Raises ValueError."""

    def __call__(self, image: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        """The control image uint8 (H, W, 3) of `picture` uint8 (H, W, 3)."""
        raise TypeError(f"{type(self).__name__} must define __call__")

    def clip(self, frames: np.ndarray, params: Mapping[str, object], generator: np.random.Generator) -> np.ndarray:
        """The control clip of `frames`, both uint8 (F, H, W, 3); frame by frame unless a generator knows better."""
        return np.stack([self(frame, params, generator) for frame in frames])


def get_number(params: Mapping[str, object], name: str) -> float:
    """A parameter of kind number, which `validate_params` has read."""
    return cast(float, params[name])


def get_numbers(params: Mapping[str, object], name: str) -> tuple[float, ...]:
    """A parameter that is several numbers."""
    return cast("tuple[float, ...]", params[name])


def get_count(params: Mapping[str, object], name: str) -> int:
    """A parameter of kind whole."""
    return cast(int, params[name])


def get_counts(params: Mapping[str, object], name: str) -> tuple[int, ...]:
    """A parameter that is several whole numbers."""
    return cast("tuple[int, ...]", params[name])


def get_text(params: Mapping[str, object], name: str) -> str:
    """A parameter of kind text or choice."""
    return cast(str, params[name])


def get_texts(params: Mapping[str, object], name: str) -> tuple[str, ...]:
    """A parameter that is several texts or choices."""
    return cast("tuple[str, ...]", params[name])


def validate_order(params: Mapping[str, object], low: str, high: str) -> None:
    """Two parameters that bound a range. Raises ValueError when the lower is above the higher."""
    if get_number(params, low) > get_number(params, high):
        raise ValueError(
            f"{low} = {params[low]} is above {high} = {params[high]}; lower {low} or raise {high} until it is not"
        )
