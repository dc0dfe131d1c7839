"""Tables of named things."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import pytest

from darkroom.core.registry import Table, find_nearest, import_path
from tests.rows import each_row


def animals() -> Table[int]:
    table: Table[int] = Table("animal")
    table.add("cat", 1, aliases=["kitty"])
    table.add("dog", 2)
    return table


def test_rows_are_found_by_name_and_alias():
    assert (animals()["cat"], animals()["kitty"], "kitty" in animals()) == (1, 1, True)


def test_aliases_are_not_listed():
    assert (list(animals()), len(animals())) == (["cat", "dog"], 2)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(KeyError, match="no animal 'catt'; did you mean cat"):
        animals()["catt"]


@each_row("name, aliases", [("cat", []), ("kitty", []), ("cow", ["dog"]), ("cow", ["kitty"])])
def test_a_name_stands_only_once(name, aliases):
    with pytest.raises(ValueError, match="registered twice"):
        animals().add(name, 3, aliases)


def test_installed_packages_bring_rows_by_entry_point(monkeypatch):
    found = [SimpleNamespace(name="owl", load=lambda: 9), SimpleNamespace(name="cat", load=lambda: 9)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found if group == "zoo" else [])
    table: Table[int] = Table("animal", entry_points="zoo")
    table.add("cat", 1)

    assert dict(table) == {"cat": 1, "owl": 9}


@pytest.mark.parametrize("path", ["collections.OrderedDict", "collections:OrderedDict"])
def test_objects_are_imported_by_path(path):
    assert import_path(path).__name__ == "OrderedDict"


@pytest.mark.parametrize("path", ["collections.Nothing", "no_such_package.Thing", "plain"])
def test_a_path_to_nothing_is_an_import_error(path):
    with pytest.raises(ImportError):
        import_path(path)


def test_nearest_names_come_best_first():
    assert find_nearest("torch-adamww", ["torch-sgd", "torch-adam", "torch-adamw"])[0] == "torch-adamw"
