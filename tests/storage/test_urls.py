"""Lists of links: tables that are wrong, and servers that fail in every way that real ones do."""

from __future__ import annotations

import csv
import os
import socket
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from darkroom.core.errors import DataError
from darkroom.options.datasets.locations import LinkList
from darkroom.storage import Missing, Refused, Unreachable, urls
from darkroom.storage.urls import LinkStore
from tests.rows import each_row
from tests.storage.conftest import body, png, quick, status

PICTURE = png()
ENDINGS = frozenset({".png", ".jpg"})


class Listed:
    """A folder with a table, and the store over it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: list[list[str]] = []

    def where(self, **keys) -> LinkList:
        given = {"csv_file": self.folder / "t.csv", "csv_cache_dir": self.folder / "kept", "csv_caption_column": "text"}
        return LinkList.model_validate(given | keys)

    def write(self, *rows: tuple[str, str], header: tuple[str, ...] = ("url", "text")) -> None:
        with (self.folder / "t.csv").open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([header, *rows])

    def store(self, *links: str, retry=None, **keys) -> LinkStore:
        if links:
            self.write(*((link, f"caption {n}") for n, link in enumerate(links)))
        return LinkStore(self.where(), retry or quick(), **keys)

    def kept(self) -> list[str]:
        return sorted(file.name for file in (self.folder / "kept").iterdir()) if (self.folder / "kept").exists() else []


@pytest.fixture
def listed(tmp_path) -> Listed:
    return Listed(tmp_path)


@pytest.fixture
def closed() -> str:
    """A URL where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def good(web, name: str = "/good.png") -> str:
    return web.add(name, body(PICTURE))


# ---------------------------------------------------------------------- tables


def test_of_equal_links_the_last_row_counts(listed, web) -> None:
    url = good(web)
    listed.write((url, "first"), (url, "second"))
    store = listed.store()

    assert len(store.find(ENDINGS)) == 1
    assert store.rows().column("captions").to_pylist() == [["second"]]
    assert web.asked["/good.png"] == 1


def test_an_empty_caption_is_no_caption(listed, web) -> None:
    listed.write((good(web), "  "))
    store = listed.store()
    store.find(ENDINGS)
    assert store.rows().column("captions").to_pylist() == [[]]


@pytest.mark.parametrize(
    ("header", "option"), [(("link", "text"), "csv_url_column"), (("url", "a"), "csv_caption_column")]
)
def test_a_missing_column_is_named_with_those_that_are_there(listed, header, option) -> None:
    listed.write(("x", "y"), header=header)
    with pytest.raises(DataError, match=f"it has: {', '.join(header)}") as caught:
        listed.store().find(ENDINGS)
    assert option in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no columns at all"),
        (b"url,text\nx,caf\xe9\n", "not UTF-8"),
        (b'url,text\nx,"open\n', "cannot be read as a table"),
        (b'url,text\nx,"a" b\n', "double quotes"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(listed, content, told) -> None:
    (listed.folder / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=told):
        listed.store().find(ENDINGS)


def test_a_table_that_is_not_there_is_named(listed) -> None:
    with pytest.raises(DataError, match=r"There is no table .*t\.csv"):
        listed.store().find(ENDINGS)


def test_local_rows_are_beside_the_table_absolute_or_file_urls(listed, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    places = [tmp_path / "beside.png", tmp_path / "elsewhere/a b.png", tmp_path / "elsewhere/c.png"]
    for place in places:
        place.write_bytes(PICTURE)
    links = ["beside.png", str(places[1]), places[2].as_uri(), "gone.png", "zero\0byte.png", "ftp://host/x.png", ""]
    store = listed.store(*links)
    found = store.find(ENDINGS)

    assert found.paths == sorted(links[:3])
    assert found.problems == {"missing": 1, "unreadable": 1, "unknown kind of link": 1, "empty link": 1}
    assert [store.local(link) for link in links[:3]] == places
    assert listed.kept() == []


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("path", "kind", "ending"),
    [
        ("/a/cat.JPG?width=100", "text/plain", ".jpg"),
        ("/picture", "image/webp", ".webp"),
        ("/picture", "image/jpeg; charset=binary", ".jpg"),
        ("/show.php?id=7", "application/octet-stream", ".png"),
        ("/no-type", None, ".png"),
        ("/..%2f..%2fetc%2fpasswd.png", "image/png", ".png"),
        ("/" + "long" * 200, "image/png", ".png"),
    ],
)
def test_names_are_safe_and_carry_the_ending(listed, web, path, kind, ending) -> None:
    store = listed.store(web.add(path, body(PICTURE, kind)))
    found = store.find(frozenset({".jpg", ".png", ".webp"}))

    assert listed.kept() == found.paths
    assert found.paths[0].endswith(ending)
    assert len(found.paths[0]) < 80
    assert set(found.paths[0]) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_links_of_other_kinds_are_not_downloaded(listed, web) -> None:
    found = listed.store(web.add("/film.mp4", body(b"x")), good(web)).find(ENDINGS)
    assert (len(found), found.other_files, web.asked["/film.mp4"]) == (1, {".mp4": 1}, 0)


# ---------------------------------------------------------------------- downloads


def test_files_are_downloaded_once_and_kept(listed, web) -> None:
    urls_ = [good(web, f"/{n}.png") for n in range(50)]
    told: list[tuple[int, int]] = []
    first = listed.store(*urls_)
    found = first.find(ENDINGS, lambda done, total: told.append((done, total)))
    again = listed.store(*urls_).find(ENDINGS)

    assert len(found) == 50
    assert told[-1] == (50, 50)
    assert (again.paths, again.stamps) == (found.paths, found.stamps)
    assert set(web.asked.values()) == {1}


def test_a_file_that_was_deleted_is_downloaded_when_it_is_read(listed, web) -> None:
    store = listed.store(good(web))
    (name,) = store.find(ENDINGS).paths
    (listed.folder / "kept" / name).unlink()

    assert store.read(name) == PICTURE
    assert web.asked["/good.png"] == 2


@pytest.mark.parametrize(
    "first",
    [
        status(500),
        status(503),
        status(429, Retry_After="0"),
        status(429, Retry_After=formatdate(usegmt=True)),
        status(429, Retry_After="soon"),
        body(PICTURE[:20], length=len(PICTURE)),
        lambda handler: _hang_up(handler),
    ],
    ids=["500", "503", "429", "429-date", "429-words", "truncated", "closed"],
)
def test_what_fails_and_then_works_is_whole(listed, web, first) -> None:
    store = listed.store(web.add("/x.png", first, first, body(PICTURE)))
    (name,) = store.find(ENDINGS).paths

    assert store.read(name) == PICTURE
    assert web.asked["/x.png"] == 3
    assert listed.kept() == [name]


def test_a_server_that_stalls_is_left_and_asked_again(listed, web, monkeypatch) -> None:
    monkeypatch.setattr(urls, "STALL", 0.2)

    def stall(handler) -> None:
        body(PICTURE[:20], length=len(PICTURE))(handler)
        handler.wfile.flush()
        time.sleep(0.6)

    store = listed.store(web.add("/x.png", stall, body(PICTURE)))
    (name,) = store.find(ENDINGS).paths
    assert store.read(name) == PICTURE


def test_the_wait_that_a_server_asks_for_is_kept(listed, web) -> None:
    slept: list[float] = []
    store = listed.store(
        web.add("/x.png", status(429, Retry_After="7"), body(PICTURE)), retry=quick(sleep=slept.append)
    )
    assert len(store.find(ENDINGS)) == 1
    assert slept == [7.0]


@pytest.mark.parametrize(
    ("answer", "problem", "detail"),
    [
        (status(404), "gone from the web", "404"),
        (status(410), "gone from the web", "410"),
        (status(403), "refused", "403"),
        (status(401), "refused", "401"),
        (status(204), "refused", "204"),
        (status(302, Location="ftp://host/x.png"), "refused", "other than http"),
        (status(302, Location="file:///etc/passwd"), "refused", "other than http"),
        (status(302, Location="/bad.png"), "refused", "redirects more than"),
        (body(b"<!doctype html><p>log in", "text/html; charset=utf-8"), "refused", "web page"),
        (status(500), "server does not answer", "500"),
    ],
)
def test_what_cannot_be_had_is_counted_and_the_rest_is_used(listed, web, answer, problem, detail) -> None:
    bad = web.add("/bad.png", answer)
    store = listed.store(good(web), f"{bad}?password=hidden")
    web.answers["/bad.png?password=hidden"] = answer
    found = store.find(ENDINGS)

    assert len(found) == 1
    assert found.problems == {problem: 1}
    assert detail in found.notes[0]
    assert "/bad.png" in found.notes[0]
    assert "hidden" not in found.notes[0]
    assert len(listed.kept()) == 1
    assert len(store.rows()) == 1


def test_what_a_killed_download_left_is_swept_away(listed, web) -> None:
    (listed.folder / "kept").mkdir()
    for name in (".old.png.1.tmp", ".new.png.2.tmp"):
        (listed.folder / "kept" / name).write_bytes(b"half")
    os.utime(listed.folder / "kept/.old.png.1.tmp", (1, 1))
    listed.store(good(web)).find(ENDINGS)

    assert listed.kept()[0] == ".new.png.2.tmp"
    assert len(listed.kept()) == 2


def test_redirects_are_followed(listed, web) -> None:
    target = good(web)
    store = listed.store(web.add("/from.png", status(302, Location="/between")), web.url + "/unused.png")
    web.add("/between", status(301, Location=target))
    assert store.read(next(iter(store.find(ENDINGS).paths))) == PICTURE


@pytest.mark.parametrize("length", [None, 10])
def test_a_file_that_is_too_large_is_refused(listed, web, length) -> None:
    data = b"\x89PNG\r\n\x1a\n" + bytes(5_000_000)
    web.add("/large.png", body(data) if length is None else _without_length(data))
    found = listed.store(web.url + "/large.png", max_bytes=2_000_000).find(ENDINGS)

    assert found.problems == {"refused": 1}
    assert "1.9 MiB" in found.notes[0]
    assert listed.kept() == []


def _without_length(data: bytes):
    def answer(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "image/png")
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def test_an_unknown_kind_of_file_is_refused(listed, web) -> None:
    found = listed.store(web.add("/thing", body(b"what is this", "application/x-thing"))).find(ENDINGS)
    assert found.problems == {"refused": 1}
    assert "application/x-thing" in found.notes[0]


def test_a_dead_server_among_good_ones_is_counted(listed, web, closed) -> None:
    found = listed.store(*(good(web, f"/{n}.png") for n in range(9)), f"{closed}/a.png", f"{closed}/b.png").find(
        ENDINGS
    )
    assert len(found) == 9
    assert found.problems == {"server does not answer": 2}
    # at the next start only the dead ones are asked for: the network is not to blame
    again = listed.store().find(ENDINGS)
    assert (len(again), again.problems) == (9, found.problems)


def test_no_network_at_all_is_an_error_with_a_remedy(listed, closed) -> None:
    with pytest.raises(Unreachable, match=r"does not answer after .*\n.*what was downloaded is kept"):
        listed.store(f"{closed}/a.png", f"{closed}/b.png").find(ENDINGS)


def test_a_good_server_that_goes_away_ends_the_scan(listed, web) -> None:
    links = [good(web, f"/{n}.png") for n in range(6)]
    listed.store(*links[:3]).find(ENDINGS)
    store = listed.store(*links)
    web.stop()

    with pytest.raises(Unreachable):
        store.find(ENDINGS)
    assert len(listed.kept()) == 3


def test_a_good_server_that_comes_back_late_loses_nothing(listed, web) -> None:
    links = [good(web, f"/{n}.png") for n in range(5)]
    listed.store(links[0]).find(ENDINGS)
    listed.write(*((link, "") for link in links))
    for n in range(1, 5):  # away for the three attempts of the first and for the only one of each other
        web.add(f"/{n}.png", *[_hang_up] * (3 if n == 1 else 1), body(PICTURE))
    store = LinkStore(listed.where(connections=1), quick(total=0.0))

    assert len(store.find(ENDINGS)) == 5


def _hang_up(handler) -> None:
    handler.connection.close()


def test_reading_says_missing_or_refused(listed, web) -> None:
    url = good(web)
    store = listed.store(url)
    (name,) = store.find(ENDINGS).paths
    (listed.folder / "kept" / name).unlink()
    web.add("/good.png", status(404))
    with pytest.raises(Missing):
        store.read(name)
    web.add("/good.png", status(403))
    with pytest.raises(Refused):
        store.open(name)
    with pytest.raises(Missing, match="is not in"):
        store.read("cat-0123456789abcdef.png")


def test_a_full_disk_is_reported_as_such(listed, web, monkeypatch) -> None:
    import errno

    from darkroom.core import files
    from darkroom.core.errors import DiskFullError

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = listed.store(good(web))
    monkeypatch.setattr(files, "fsync", full)
    with pytest.raises(DiskFullError, match="kept"):
        store.find(ENDINGS)
    assert listed.kept() == []


# ---------------------------------------------------------------------- where redirects may lead


def redirect(to: str):
    """An answer that sends the asker elsewhere."""

    def answer(handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.7", "0.0.0.0"],
)
def test_a_redirect_to_this_machine_or_its_network_is_refused(listed, web, host) -> None:
    port = web.url.rpartition(":")[2]
    web.add("/secret.png", body(PICTURE))
    link = web.add("/a.png", redirect(f"http://{host}:{port}/secret.png"))
    found = listed.store(link, web.add("/good.png", body(PICTURE))).find(ENDINGS)
    assert (len(found), found.problems) == (1, {"refused": 1})
    assert "not a public address; if that is meant, name the host in the list" in found.notes[0]
    assert web.asked["/secret.png"] == 0


def test_a_redirect_to_a_host_that_the_list_names_is_followed(listed, web) -> None:
    port = web.url.rpartition(":")[2]
    web.add("/b.png", body(PICTURE))
    links = [
        web.add("/a.png", redirect(web.url + "/b.png")),
        web.add("/c.png", redirect(f"http://localhost:{port}/b.png")),
    ]
    found = listed.store(*links, f"http://localhost:{port}/b.png").find(ENDINGS)
    assert (len(found), found.problems) == (3, {})


@each_row(
    "address, is_public",
    [("8.8.8.8", True), ("2606:4700::1", True), ("100.64.0.1", False), ("fe80::1", False), ("fd00::1", False),
     ("::ffff:8.8.8.8", True), ("::ffff:10.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False)],
)  # fmt: skip
def test_an_address_inside_an_address_counts(address, is_public) -> None:
    assert urls._is_public(address) == is_public
