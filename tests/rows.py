"""Tables of many cheap rows as one test each, in which every row is a subtest of pytest."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

Test = Callable[..., None]
Row = dict[str, Any]


def each_row(
    names: str | Sequence[str], values: Iterable[Any], ids: Callable[[Any], str] | Iterable[str] | None = None
) -> Callable[[Test], Test]:
    """As `pytest.mark.parametrize`, but one test: it goes through all rows and reports each that fails.

    Several of them make the product of their rows. Fixtures are made once for all rows, but each row has a `tmp_path`
    and a `monkeypatch` of its own. For rows of which each takes a moment and none is skipped.
    """
    columns = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    listed = list(values)
    titles = list(ids) if isinstance(ids, Iterable) else [None] * len(listed)
    title = ids if callable(ids) else _title
    made = [_row(columns, value, title, own) for value, own in zip(listed, titles, strict=True)]
    assert made, f"no rows of {names}"

    def decorate(test: Test) -> Test:
        plain, others = getattr(test, "rows", (test, [("", {})]))
        rows = [
            ("-".join(filter(None, (title, other))), {**row, **further})
            for (other, further), (title, row) in itertools.product(others, made)
        ]
        return _loop(test, plain, rows)

    return decorate


def _title(value: Any) -> str:
    return getattr(value, "__name__", None) or " ".join(str(value).split())


def _row(columns: list[str], value: Any, title: Callable[[Any], str], own: str | None) -> tuple[str, Row]:
    """(title, argument by name) of one row."""
    if isinstance(value, type(pytest.param())):
        own, values = str(value.id) if value.id else own, value.values
    else:
        values = value if len(columns) > 1 else (value,)
    row = dict(zip(columns, values, strict=True))
    return own or "-".join(map(title, values)), row


def _loop(test: Test, plain: Test, rows: list[tuple[str, Row]]) -> Test:
    """One test named as `test`, that calls `plain` for every row and asks pytest for all that the rows lack."""
    fixtures = [name for name in inspect.signature(plain).parameters if name not in rows[0][1]]

    @functools.wraps(test)
    def through_all(subtests: pytest.Subtests, **given: Any) -> None:
        for number, (title, row) in enumerate(rows):
            # xdist sends titles as UTF-8
            shown = title[:100].encode(errors="backslashreplace").decode()
            with subtests.test(shown), ExitStack() as stack:
                own = dict(given)
                if "tmp_path" in own:
                    own["tmp_path"] = _folder(given["tmp_path"] / str(number))
                if "monkeypatch" in own:
                    own["monkeypatch"] = stack.enter_context(pytest.MonkeyPatch.context())
                plain(**own, **row)

    asked = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("subtests", *fixtures)]
    vars(through_all).update(__signature__=inspect.Signature(asked), rows=(plain, rows))
    return through_all


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
