"""Cache files that live in a store and are used here."""

from __future__ import annotations

import pytest

from darkroom.core.errors import DataError
from darkroom.options.datasets.locations import UrlFiles
from darkroom.storage import Refused, Unreachable
from darkroom.storage.mirror import Mirror
from darkroom.storage.remote import UrlStore
from darkroom.storage.s3 import S3Store
from tests.storage.conftest import quick
from tests.storage.test_remote import Flaky


@pytest.fixture(params=["s3", "memory"])
def store(request, tmp_path):
    if request.param == "s3":
        return S3Store(request.getfixturevalue("bucket").where(f"mirror-{tmp_path.name}"), quick())
    return UrlStore(UrlFiles(url=f"memory://mirror-{tmp_path}"), quick())


def test_what_one_machine_pushes_another_pulls(store, tmp_path) -> None:
    one, two = Mirror(store, tmp_path / "one"), Mirror(store, tmp_path / "two")
    (tmp_path / "one").mkdir()
    for name, data in {"0.shard": b"a" * 300_000, "1.shard": b"", "index.json": b"{}"}.items():
        (tmp_path / "one" / name).write_bytes(data)
        one.push(name)
    told: list[tuple[int, int]] = []

    assert two.pull(on_progress=lambda done, total: told.append((done, total))) == ["0.shard", "1.shard", "index.json"]
    assert (tmp_path / "two/0.shard").read_bytes() == b"a" * 300_000
    assert told[-1] == (3, 3)
    assert two.pull() == []
    two.remove("1.shard")
    two.remove("1.shard")
    assert Mirror(store, tmp_path / "three").pull(lambda name: name.endswith(".shard")) == ["0.shard"]


def test_a_file_that_is_torn_here_is_fetched_again(store, tmp_path) -> None:
    store.write("x.shard", b"whole")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/x.shard").write_bytes(b"who")

    assert Mirror(store, tmp_path / "here").pull() == ["x.shard"]
    assert (tmp_path / "here/x.shard").read_bytes() == b"whole"
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["x.shard"]


def flaky(tmp_path, times: int, cause: Exception) -> Mirror:
    store = UrlStore(UrlFiles(url=f"memory://flaky-{tmp_path}"), quick())
    store.write("x.shard", b"whole")
    store.fs = Flaky(store.fs, times, cause)
    return Mirror(store, tmp_path)


def test_failures_that_pass_cost_nothing(tmp_path) -> None:
    mirror = flaky(tmp_path, 2, OSError("reset"))
    assert mirror.pull() == ["x.shard"]
    mirror.push("x.shard")


def test_failures_that_stay_are_errors_and_leave_nothing_torn(tmp_path) -> None:
    mirror = flaky(tmp_path, 10**9, OSError("reset"))
    with pytest.raises(Unreachable):
        mirror.pull()
    (tmp_path / "y.shard").write_bytes(b"y")
    with pytest.raises(Unreachable):
        mirror.push("y.shard")
    assert [file.name for file in tmp_path.iterdir()] == ["y.shard"]


def test_a_store_that_may_not_be_written_says_so(tmp_path) -> None:
    mirror = flaky(tmp_path, 10**9, PermissionError("read-only key"))
    (tmp_path / "y.shard").write_bytes(b"y")
    with pytest.raises(DataError, match=r"does not take 'y\.shard'.*read-only key"):
        mirror.push("y.shard")


def test_only_finished_files_inside_the_folder_are_pushed(tmp_path) -> None:
    mirror = flaky(tmp_path, 0, OSError())
    with pytest.raises(FileNotFoundError):
        mirror.push("none.shard")
    with pytest.raises(ValueError, match="outside"):
        mirror.push("../none.shard")
    with pytest.raises(Refused):
        mirror.store.upload("../x", tmp_path)
