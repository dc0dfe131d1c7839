"""An optimizer's state into a checkpoint and back: in the dtype it had, with the hyperparameters of now."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor

from darkroom.optim.base import Optimizer
from darkroom.train.pack import restore

# of a parameter group: the scheduler's, and how an update is computed rather than what it does
_RATES = frozenset({"params", "lr", "base_lr", "initial_lr"})
_EXECUTION = frozenset({"foreach", "fused", "capturable", "differentiable"})


def collect_hyperparameters(optimizer: Optimizer) -> list[dict[str, object]]:
    """Those of each group, as JSON has them. Asked before the first step, they are what the settings say."""
    groups = [{k: v for k, v in group.items() if k not in _RATES} for group in optimizer.param_groups]
    return [{k: v for k, v in group.items() if _is_plain(v)} for group in groups]


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def load(
    optimizer: Optimizer,
    saved: object,
    tensors: dict[str, Tensor],
    built_then: Sequence[Mapping[str, object]] | None,
    built_now: Sequence[Mapping[str, object]],
) -> None:
    """Put back what `flatten` made of a state_dict.

    `built_then` and `built_now` are the hyperparameters that the settings gave then and give now: those that differ
    are taken from now, all others, which an optimizer may have changed itself, from the checkpoint. The learning rates
    are those of now. Raises ValueError for a hyperparameter whose other value means a state of another form.
    """
    state = cast("dict[str, object]", restore(saved, tensors))
    changed = _find_changes(built_then or built_now, built_now)
    rates = [{"base_lr": group["base_lr"]} if "base_lr" in group else {} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    _restore_dtypes(optimizer, state)
    for group, rate, change in zip(optimizer.param_groups, rates, changed, strict=True):
        group.update(rate | change)


def _find_changes(
    saved: Sequence[Mapping[str, object]], current: Sequence[Mapping[str, object]]
) -> list[dict[str, object]]:
    """Of each group, the hyperparameters that the settings of now give another value."""
    if len(saved) != len(current):
        raise ValueError(f"its optimizer has {len(saved)} groups of parameters, and this run's has {len(current)}")
    changes = []
    for before, after in zip(saved, current, strict=True):
        change = {k: v for k, v in after.items() if k in before and _as_lists(before[k]) != _as_lists(v)}
        for name, value in change.items():
            if name not in _EXECUTION and not _have_same_form(name, before[name], value):
                raise ValueError(
                    f"the optimizer's {name} was {before[name]!r} then and is {value!r} now, which keeps another state"
                )
        changes.append(change)
    return changes


def _have_same_form(name: str, before: object, after: object) -> bool:
    """Does an optimizer keep the same tensors with both values? Numbers only enter an update, but for no momentum."""
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        return len(before) == len(after) and all(
            _have_same_form(name, a, b) for a, b in zip(before, after, strict=True)
        )
    are_numbers = not any(isinstance(v, bool) or not isinstance(v, int | float) for v in (before, after))
    return are_numbers and ("momentum" not in name or (before == 0) == (after == 0))


def _as_lists(value: object) -> object:
    return [_as_lists(v) for v in value] if isinstance(value, list | tuple) else value


def _restore_dtypes(optimizer: Optimizer, saved: object) -> None:
    """torch casts the state to the weights' dtype when it loads it; here it is put back as it was saved."""
    originals = {path: tensor for path, tensor, _ in _iterate_tensors(saved)}
    for path, loaded, put in _iterate_tensors(optimizer.state_dict()):
        original = originals.get(path)
        if original is not None and original.dtype != loaded.dtype:
            put(original.to(loaded.device))


def _iterate_tensors(
    value: object, path: str = "", put: Callable[[Tensor], None] = lambda tensor: None
) -> Iterator[tuple[str, Tensor, Callable[[Tensor], None]]]:
    """Every tensor of a state_dict with its path, and what puts another in its place."""
    if isinstance(value, Tensor):
        yield path, value, put
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _iterate_tensors(inner, f"{path}/{name}", functools.partial(value.__setitem__, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _iterate_tensors(inner, f"{path}/{number}", functools.partial(value.__setitem__, number))
