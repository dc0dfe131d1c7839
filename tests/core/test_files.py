"""Writes that happen completely or not at all."""

from __future__ import annotations

import errno

import pytest

from darkroom.core import files
from darkroom.core.errors import DiskFullError
from tests.rows import each_row


def test_a_write_replaces_the_old_file(tmp_path):
    path = tmp_path / "deep" / "file.txt"

    files.write_text(path, "old")
    files.write_text(path, "new")

    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with files.write_atomically(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()

    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize(
    "cause",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["full", "quota", "safetensors"],
)
def test_a_full_disk_is_said_in_words(tmp_path, cause):
    path = tmp_path / "file.txt"
    path.write_text("old")

    with pytest.raises(DiskFullError, match=r"file\.txt could not be written") as caught, files.write_atomically(path):
        raise cause

    assert "Nothing that was saved before is damaged" in str(caught.value)
    assert path.read_text() == "old"


def test_other_system_errors_pass_through(tmp_path):
    with pytest.raises(PermissionError), files.explain_disk_full(tmp_path, "x"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_equal_values_give_equal_json(tmp_path):
    files.write_json(tmp_path / "a", {"b": 1, "a": "é"})
    files.write_json(tmp_path / "b", {"a": "é", "b": 1})

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1})


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")

    assert files.sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_free_space_is_asked_of_the_nearest_folder_that_exists(tmp_path):
    assert files.free_bytes(tmp_path / "not" / "there") > 0


@each_row(
    "text, name",
    [("a cat, sleeping!", "a_cat_sleeping"), ("../../etc", "etc"), ("猫", "unnamed"), ("a" * 99, "a" * 80)],
)
def test_names_become_parts_of_file_names(text, name):
    assert files.safe_name(text) == name


@pytest.mark.parametrize("name", ["../x", "/etc/hosts", "a/../../x"])
def test_names_that_lead_outside_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leads outside"):
        files.join_inside(tmp_path, name)


def test_names_inside_are_resolved(tmp_path):
    assert files.join_inside(tmp_path, "a/b.txt") == (tmp_path / "a" / "b.txt").resolve()
