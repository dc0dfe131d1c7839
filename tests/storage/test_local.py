"""Folders of this machine: links, names and files that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from darkroom.core.errors import DataError
from darkroom.options.datasets.locations import JsonLines, LocalFiles
from darkroom.storage import Missing, Refused
from darkroom.storage.jsonl import JsonlStore
from darkroom.storage.local import LocalStore
from tests.rows import each_row

ENDINGS = frozenset({".png", ".txt"})


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.png", "a.txt", "b/c.png", "b/notes.pdf", ".hidden.png", ".thumbs/x.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(b"x")
    return tmp_path / "pictures"


def store(folder: Path, **keys) -> LocalStore:
    return LocalStore(LocalFiles(root=folder, **keys))


def test_a_folder_is_searched_deeply_or_not(folder) -> None:
    deep, flat = store(folder).find(ENDINGS), store(folder, recursive=False).find(ENDINGS)

    assert deep.paths == ["a.png", "a.txt", "b/c.png"]
    assert (deep.folders, deep.other_files.total()) == (2, 1)
    assert flat.paths == ["a.png", "a.txt"]
    assert store(folder).identity() != store(folder, recursive=False).identity()


def test_links_in_circles_end_and_are_counted(folder, tmp_path) -> None:
    (folder / "b/up").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to("self")
    (tmp_path / "else").mkdir()
    (tmp_path / "else/far.png").write_bytes(b"x")
    (folder / "far").symlink_to(tmp_path / "else", target_is_directory=True)
    found = store(folder).find(ENDINGS)

    assert found.paths == ["a.png", "a.txt", "b/c.png", "far/far.png"]
    assert found.problems["link loop"] == 2
    assert any("leads back to a folder above it" in note for note in found.notes)


def test_what_cannot_be_listed_is_counted_by_reason(folder, monkeypatch) -> None:
    (folder / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = store(folder).find(ENDINGS)

    assert found.problems == {"broken link": 1, "not a file": 1, "unreadable folder": 1}
    assert len(found.notes) == 3
    assert found.paths == ["a.png", "a.txt", "b/c.png"]


def test_names_that_are_not_utf8_are_counted(folder) -> None:
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert store(folder).find(ENDINGS).problems == {"file name is not UTF-8": 1}


def test_a_folder_is_not_a_file(folder) -> None:
    with pytest.raises(Refused):
        store(folder).read("b")
    with pytest.raises(Missing):
        store(folder).read("a.png/x.png")
    with pytest.raises(DataError, match="There is no folder"):
        store(folder / "a.png").find(ENDINGS)


def test_a_failed_write_leaves_the_old_file(folder, monkeypatch) -> None:
    def broken(self, data):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(Refused, match="cannot be written: Permission denied"):
        store(folder).write("a.png", b"other")
    assert (folder / "a.png").read_bytes() == b"x"
    assert sorted(path.name for path in folder.iterdir()) == [".hidden.png", ".thumbs", "a.png", "a.txt", "b"]


# ---------------------------------------------------------------------- JSON lines


def lines(tmp_path: Path, text: str, **keys) -> JsonlStore:
    (tmp_path / "l.jsonl").write_text(text, encoding="utf-8")
    return JsonlStore(JsonLines(file=tmp_path / "l.jsonl", **keys))


def test_controls_carry_the_names_of_what_they_belong_to(folder, tmp_path) -> None:
    text = (
        '{"image_path": "pictures/a.png", "caption": "one", "control_path": "pictures/b/c.png"}\n'
        '{"image_path": "pictures/b/c.png", "caption": ""}\n'
    )
    control = lines(tmp_path, text, key="control_path")
    assert control.find(ENDINGS).paths == ["pictures/a.png"]
    assert control.local("pictures/a.png") == folder / "b/c.png"
    plain = lines(tmp_path, text)
    assert plain.find(ENDINGS).paths == ["pictures/a.png", "pictures/b/c.png"]
    assert plain.rows().column("captions").to_pylist() == [["one"], []]
    assert control.identity() != plain.identity()


def test_named_files_that_are_not_there_are_counted(folder, tmp_path) -> None:
    text = '{"image_path": "pictures/gone.png"}\n{"image_path": "pictures/b.png"}\n{"image_path": "pictures/x.pdf"}'
    (folder / "b.png").mkdir()
    found = lines(tmp_path, text).find(ENDINGS)
    assert found.problems == {"missing": 1, "not a file": 1}
    assert found.other_files == {".pdf": 1}


@each_row(
    "text, told",
    [
        ('{"image_path": "a.png"}\n\n{"image_path": "b.png"}', "Line 2 of .* is blank"),
        ('{"image_path": "a.png"', "Line 1 of .* is not JSON"),
        ('{"path": "a.png"}', "has no text under 'image_path'; it has: path"),
        ("[1]", "it is not an object"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, text, told) -> None:
    with pytest.raises(DataError, match=told):
        lines(tmp_path, text).find(ENDINGS)


@each_row(
    "line, words",
    [
        (r'{"image_path": "D:\train\new.png"}', r"under 'image_path': It holds a tab"),
        (r'{"image_path": "a\u0000.png"}', "It holds a NUL character"),
        (r'{"image_path": "a.png", "caption": "\ud800"}', "under 'caption': It holds half a character"),
        ("[" * 5000, "is not JSON"),
        ('{"image_path": "' + "x" * 5000 + '.png"}', ""),
    ],
)
def test_a_slip_in_a_line_is_named_with_its_number(tmp_path, line, words) -> None:
    store = lines(tmp_path, line)
    if not words:
        assert store.find(ENDINGS).problems.total() == 1
        return
    with pytest.raises(DataError, match=r"Line 1 of .*l\.jsonl") as caught:
        store.find(ENDINGS)
    assert words in str(caught.value)
