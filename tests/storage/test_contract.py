"""What every kind of store promises."""

from __future__ import annotations

import json
import logging

import pytest

from darkroom.core.errors import DataError
from darkroom.storage import ANY, STORES, Missing, Refused, open_store
from tests.rows import each_row

ENDINGS = frozenset({".jpg", ".png"})


def test_it_lists_its_files_sorted_with_sizes_and_without_hidden_ones(place) -> None:
    found = place.open().find(ENDINGS)

    assert found.paths == sorted(place.files)
    if not place.open().remote or place.where.type != "huggingface":
        assert found.sizes == [len(place.files[path]) for path in found.paths]
    assert all(size > 0 for size in found.sizes)
    assert all(0 <= stamp < 2**63 for stamp in found.stamps)
    assert not found.problems


def test_other_endings_are_counted_and_not_listed(place) -> None:
    found = place.open().find(frozenset({".nothing"}))

    assert found.paths == []
    assert found.other_files.total() >= len(place.files)


def test_all_files_can_be_asked_for(place) -> None:
    assert set(place.files) <= set(place.open().find(ANY).paths)


def test_it_tells_progress(place) -> None:
    told: list[tuple[int, int]] = []

    place.open().find(ENDINGS, lambda done, total: told.append((done, total)))

    assert all(total == 0 or done <= total for done, total in told)
    assert told or place.where.type == "local"


def test_every_listed_file_is_read_whole(place) -> None:
    store = place.open()
    store.find(ENDINGS)

    assert {path: store.read(path) for path in place.files} == place.files


def test_files_are_opened_and_read_at_any_place(place) -> None:
    store = place.open()
    sizes = dict(zip(*(lambda f: (f.paths, f.sizes))(store.find(ENDINGS)), strict=True))
    for path, data in place.files.items():
        for size in (None, sizes[path] if sizes[path] == len(data) else None):
            with store.open(path, size) as file:
                assert file.read(3) == data[:3]
                assert file.seek(-4, 2) == len(data) - 4
                assert file.read() == data[-4:]
                assert file.read(1) == b""
                file.seek(len(data) // 2)
                assert file.read() == data[len(data) // 2 :]
                file.seek(0)
                assert file.read() == data


@each_row("path", ["gone.jpg", "99.png", "a b/gone/x.jpg", "plain.jpg/x.jpg"])
def test_a_file_that_is_not_there_is_missing(place, path) -> None:
    store = place.open()

    with pytest.raises(Missing):
        store.read(path)
    with pytest.raises(Missing):
        store.open(path).read()
    with pytest.raises((Missing, Refused)):
        store.delete(path)


@each_row("path", ["../x.jpg", "/etc/hosts", "a/../../x.jpg", ""])
def test_no_name_leads_out_of_the_store(place, path) -> None:
    store = place.open()

    for work in (store.read, store.open, store.delete, lambda p: store.write(p, b"x")):
        with pytest.raises((Missing, Refused)):
            work(path)


def test_writing_and_deleting_work_or_are_refused(place, tmp_path) -> None:
    store = place.open()
    (tmp_path / "source").write_bytes(b"from a file" * 1000)
    if not store.writable:
        for work in (
            lambda: store.write("new.jpg", b"x"),
            lambda: store.delete(min(place.files)),
            lambda: store.upload("new.jpg", tmp_path / "source"),
        ):
            with pytest.raises(Refused, match="can only be read"):
                work()
        return
    for path in ("new.jpg", "new folder/ü #%.jpg"):
        store.write(path, b"first")
        store.write(path, b"second")
        assert store.read(path) == b"second"
        store.upload(path, tmp_path / "source")
        assert store.read(path) == b"from a file" * 1000
    assert {"new.jpg", "new folder/ü #%.jpg"} <= set(store.find(ENDINGS).paths)
    assert len(store.find(ANY)) == len(place.files) + 3
    store.delete("new.jpg")
    with pytest.raises(Missing):
        store.read("new.jpg")
    with pytest.raises(Missing):
        store.delete("new.jpg")


def test_a_stamp_stays_until_the_content_changes(place) -> None:
    before, again = place.open().find(ENDINGS), place.open().find(ENDINGS)
    place.change()
    after = place.open().find(ENDINGS)

    assert before.stamps == again.stamps
    changed = [n for n, (old, new) in enumerate(zip(before.stamps, after.stamps, strict=True)) if old != new]
    name = next((n for n, path in enumerate(before.paths) if path.endswith("plain.jpg")), 0)
    assert name in changed


def test_the_identity_stays_and_says_no_secret(place) -> None:
    first, second = place.open(), place.open()
    first.find(ENDINGS)

    assert json.loads(json.dumps(first.identity())) == second.identity()
    for secret in place.secrets:
        assert secret not in json.dumps(first.identity()) + first.name


def test_no_message_says_a_secret(place, caplog) -> None:
    caplog.set_level(logging.DEBUG, "darkroom")
    store = place.open()
    found = store.find(ENDINGS)
    with pytest.raises(Missing) as caught:
        store.read("gone.jpg")

    said = " ".join([str(caught.value), *found.notes, caplog.text])
    assert not [secret for secret in place.secrets if secret in said]


def test_a_local_path_holds_what_is_read(place) -> None:
    store = place.open()
    store.find(ENDINGS)
    for path, data in place.files.items():
        here = store.local(path)
        assert here is None or here.read_bytes() == data


def test_rows_name_files_that_are_listed(place) -> None:
    store = place.open()
    found = store.find(ENDINGS)
    rows = store.rows()

    if rows is None:
        return
    assert set(rows.column("path").to_pylist()) == set(found.paths)
    assert all(captions[0].startswith("caption") for captions in rows.column("captions").to_pylist())


def test_every_kind_of_place_can_be_opened(place) -> None:
    store = open_store(place.where)

    assert store.name
    assert store.connections >= 1
    assert isinstance(store.remote, bool)


def test_every_row_of_the_table_is_tested() -> None:
    import typing

    from darkroom.options.datasets.locations import Location

    models = typing.get_args(typing.get_args(Location)[0])
    assert {model.model_fields["type"].default for model in models} == set(STORES)


def test_a_folder_that_is_not_there_is_an_error_that_names_it(tmp_path, bucket) -> None:
    from darkroom.options.datasets.locations import LocalFiles, UrlFiles

    for where in (
        LocalFiles(root=tmp_path / "nowhere"),
        UrlFiles(url="memory://nowhere/at/all"),
        bucket.where("x", aws_bucket_name="no-such-bucket"),
    ):
        with pytest.raises(DataError, match=r"nowhere|no-such-bucket"):
            open_store(where).find(ENDINGS)


def test_importing_it_is_cheap() -> None:
    import subprocess
    import sys

    heavy = "{'pyarrow', 'pyarrow.fs', 'datasets', 'httpx2', 'fsspec', 'torch', 'numpy', 'PIL'}"
    code = (
        "import sys, darkroom.storage, darkroom.storage.local, darkroom.storage.remote, darkroom.storage.s3, "
        "darkroom.storage.urls, darkroom.storage.hub, darkroom.storage.jsonl, darkroom.storage.mirror; "
        f"sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
