"""Networks that fail: what is repeated, what is given up, and how many requests a file costs."""

from __future__ import annotations

import io
import logging
import random
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from darkroom.core.errors import DataError
from darkroom.options.datasets.locations import UrlFiles
from darkroom.storage import Missing, Refused, Unreachable
from darkroom.storage.remote import HEAD, UrlStore, open_ranges
from darkroom.storage.s3 import S3Store, _endpoint, _region
from tests.rows import each_row
from tests.storage.conftest import KEY, SECRET, TOKEN, Bucket, quick

ENDINGS = frozenset({".jpg"})


class Asked:
    """Bytes in memory, and the ranges that were asked for."""

    def __init__(self, data: bytes):
        self.data, self.sizes = data, 0
        self.ranges: list[tuple[int, int]] = []

    def part(self, start: int, end: int) -> bytes:
        self.ranges.append((start, end))
        return self.data[start:end]

    def length(self) -> int:
        self.sizes += 1
        return len(self.data)

    def open(self, size: int | None = None):
        return open_ranges(self.part, self.length, "x.bin", size)


def noisy_jpeg(edge: int) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((edge, edge), 80).save(out, "jpeg", quality=95)
    return out.getvalue()


@pytest.mark.parametrize("known", [True, False])
def test_the_header_of_a_large_jpeg_costs_one_request(known) -> None:
    asked = Asked(noisy_jpeg(1500))
    assert len(asked.data) > 4 * HEAD

    with Image.open(asked.open(len(asked.data) if known else None)) as image:
        assert image.size == (1500, 1500)

    assert asked.ranges == [(0, HEAD)]
    assert asked.sizes == 0


def test_a_film_with_its_index_at_the_end_costs_a_few_requests(tmp_path) -> None:
    av = pytest.importorskip("av")
    import numpy as np

    file = tmp_path / "film.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(file), "w") as out:
        stream = out.add_stream("mpeg4", rate=10, width=640, height=480, bit_rate=20_000_000)
        for _ in range(40):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (480, 640, 3), np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    asked = Asked(file.read_bytes())
    assert asked.data.find(b"moov") > asked.data.find(b"mdat")
    assert len(asked.data) > 20 * HEAD

    with asked.open(len(asked.data)) as source, av.open(source) as film:
        assert film.streams.video[0].frames == 40

    assert len(asked.ranges) <= 5
    assert sum(end - start for start, end in asked.ranges) < len(asked.data) / 2


@given(st.data())
def test_reading_in_any_order_gives_the_same_bytes(data) -> None:
    content = random.Random(data.draw(st.integers(0, 5))).randbytes(data.draw(st.sampled_from([0, 1, HEAD, 900_000])))
    asked = Asked(content)
    plain, file = io.BytesIO(content), asked.open(data.draw(st.sampled_from([None, len(content)])))
    for _ in range(data.draw(st.integers(1, 8))):
        at, count = data.draw(st.integers(0, 1_000_000)), data.draw(st.integers(0, 300_000))
        assert file.seek(at) == plain.seek(at)
        assert file.read(count) == plain.read(count)
    assert asked.sizes <= 1


def test_reading_through_doubles_the_blocks() -> None:
    asked = Asked(bytes(30 << 20))
    assert len(asked.open(len(asked.data)).read()) == len(asked.data)
    assert len(asked.ranges) < 12


def test_a_file_that_became_shorter_is_refused() -> None:
    asked = Asked(b"x" * 100)
    with pytest.raises(Refused, match="changed while it was read"):
        asked.open(200).read()


# ---------------------------------------------------------------------- any file system of fsspec


class Flaky:
    """The memory file system, failing the first `times` calls of each method."""

    def __init__(self, fs, times: int, cause: Exception):
        self.fs, self.times, self.cause = fs, times, cause
        self.failed: dict[str, int] = {}

    def __getattr__(self, name: str):
        real = getattr(self.fs, name)

        def method(*args, **keys):
            self.failed[name] = self.failed.get(name, 0) + 1
            if self.failed[name] <= self.times:
                raise self.cause
            return real(*args, **keys)

        return method


def store_that_fails(times: int, cause: Exception) -> UrlStore:
    store = UrlStore(UrlFiles(url="memory://flaky", options={"password": SECRET}), quick())
    store.write("a.jpg", b"content")
    store.fs = Flaky(store.fs, times, cause)
    return store


@pytest.mark.parametrize("cause", [OSError("reset"), TimeoutError(), ConnectionResetError("gone")])
def test_every_operation_survives_a_few_failures(cause) -> None:
    store = store_that_fails(2, cause)

    assert store.find(ENDINGS).paths == ["a.jpg"]
    assert store.read("a.jpg") == b"content"
    with store.open("a.jpg") as file:
        assert file.read() == b"content"
    store.write("a.jpg", b"other")
    store.delete("a.jpg")


def test_trouble_without_end_names_the_store_and_the_remedy_but_no_secret(caplog) -> None:
    caplog.set_level(logging.DEBUG, "darkroom")
    store = store_that_fails(10**9, OSError(f"no route for {SECRET}"))

    for work in (lambda: store.read("a.jpg"), lambda: store.find(ENDINGS), lambda: store.write("a.jpg", b"")):
        with pytest.raises(Unreachable) as caught:
            work()
        assert "memory://flaky does not answer after" in str(caught.value)
        assert "no route" in str(caught.value)
        assert "start again" in str(caught.value)
        assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text


def test_a_refusal_is_not_repeated() -> None:
    store = store_that_fails(1, PermissionError("not for you"))

    with pytest.raises(Refused, match="not for you"):
        store.read("a.jpg")
    assert store.read("a.jpg") == b"content"


def test_a_mistake_of_ours_is_neither_hidden_nor_repeated() -> None:
    store = store_that_fails(1, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        store.read("a.jpg")


def test_a_deletion_whose_answer_was_lost_counts_as_done() -> None:
    store = store_that_fails(0, OSError())
    real, calls = store.fs.fs, []

    def rm_file(path: str) -> None:
        calls.append(path)
        real.rm_file(path)
        if len(calls) == 1:
            raise OSError("connection reset")

    store.fs.rm_file = rm_file
    store.delete("a.jpg")
    assert len(calls) == 2


def test_no_more_requests_than_allowed_run_at_once() -> None:
    store = UrlStore(UrlFiles(url="memory://slots"), quick())
    running, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    threads = [threading.Thread(target=store.attempts, args=("x", "x", work)) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 < most <= store.connections


def test_a_header_on_the_hub_costs_64_kib(monkeypatch) -> None:
    from huggingface_hub import hf_file_system as hub

    asked: list[tuple[int, int]] = []
    store = UrlStore(UrlFiles(url="hf://datasets/some/thing/pictures"), quick())
    resolved = type("Resolved", (), {"unresolve": lambda self: "datasets/some/thing/pictures/a.jpg"})()
    monkeypatch.setattr(hub.HfFileSystem, "resolve_path", lambda self, path, revision=None: resolved)
    monkeypatch.setattr(hub.HfFileSystem, "info", lambda self, path, **k: {"size": 10**8, "name": path, "type": "file"})

    def fetch(self, start: int, end: int) -> bytes:
        asked.append((start, end))
        return bytes(end - start)

    monkeypatch.setattr(hub.HfFileSystemFile, "_fetch_range", fetch)
    with store.open("a.jpg", 10**8) as file:
        assert file.read(1000) == bytes(1000)
    assert asked == [(0, HEAD)]
    assert store.name == "hf://datasets/some/thing/pictures"


@pytest.mark.parametrize(
    ("url", "told"), [("s3://bucket/x", "use type aws"), ("nosuch://x/y", "nosuch"), ("gs://bucket/x", "gcsfs")]
)
def test_a_kind_of_url_without_its_package_says_what_to_do(url, told) -> None:
    with pytest.raises(DataError, match=told):
        UrlStore(UrlFiles(url=url))


# ---------------------------------------------------------------------- S3


@pytest.fixture
def own_bucket(moto_quiet):
    """A server that a test may stop."""
    made = Bucket(f"bucket-{time.monotonic_ns()}")  # servers of one process share what they hold
    yield made
    made.stop()


def test_a_server_that_restarts_while_files_are_read_costs_nothing(own_bucket, caplog) -> None:
    caplog.set_level(logging.DEBUG, "darkroom")
    data = {f"{n:02}.jpg": bytes([n]) * 100_000 for n in range(40)}
    for name, content in data.items():
        own_bucket.put(f"restart/{name}", content)
    store = S3Store(own_bucket.where("restart"), quick(total=30, first=0.02, max_pause=0.2))
    read: dict[str, bytes] = {}
    half, back = threading.Event(), threading.Event()

    def reader(names: list[str]) -> None:
        for name in names:
            if len(read) >= 10:
                half.set()
                back.wait(0.2)
            with store.open(name) as file:
                read[name] = file.read()

    names = sorted(data)
    threads = [threading.Thread(target=reader, args=(names[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    assert half.wait(10)
    own_bucket.stop()
    time.sleep(0.5)
    assert any("attempt" in record.getMessage() for record in caplog.records)
    own_bucket.start()
    back.set()
    for thread in threads:
        thread.join(20)
    assert read == data
    own_bucket.stop()
    threading.Timer(0.3, own_bucket.start).start()
    assert len(store.find(ENDINGS)) == 40
    own_bucket.stop()
    threading.Timer(0.3, own_bucket.start).start()
    store.write("new.jpg", b"new")
    assert store.read("new.jpg") == b"new"
    assert not [secret for secret in (KEY, SECRET, TOKEN) if secret in caplog.text]


def test_a_server_that_is_away_is_named_with_a_remedy_and_without_secrets() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = Bucket.where(
        type("Nowhere", (), {"name": "bucket", "url": f"http://127.0.0.1:{port}"})(),
        "pictures",
    )
    store = S3Store(where, quick())
    for work in (lambda: store.read("a.jpg"), lambda: store.find(ENDINGS), lambda: store.write("a.jpg", b"x")):
        with pytest.raises(Unreachable) as caught:
            work()
        said = str(caught.value)
        assert f"s3://bucket/pictures at http://127.0.0.1:{port} does not answer after" in said
        assert "Check aws_endpoint_url" in said
        assert not [secret for secret in (KEY, SECRET, TOKEN) if secret in said]


def test_a_body_that_is_cut_off_is_fetched_again(web) -> None:
    """A server by hand: the first two bodies of an object end early."""
    data = random.Random(0).randbytes(100_000)
    cut: list[bool] = []

    def head(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()

    def get(handler) -> None:
        first, last = (int(n) for n in handler.headers["Range"].removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        cut.append(len(cut) < 2)
        handler.send_response(206)
        handler.send_header("Content-Length", str(len(part)))
        handler.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        handler.end_headers()
        handler.wfile.write(part[: len(part) // 2] if cut[-1] else part)

    web.answers["/bucket/x/a.jpg"] = lambda handler: head(handler) if handler.command == "HEAD" else get(handler)
    where = Bucket.where(type("Server", (), {"name": "bucket", "url": web.url})(), "x")
    store = S3Store(where, quick())
    assert store.read("a.jpg") == data
    cut.clear()
    with store.open("a.jpg", len(data)) as file:
        assert file.read() == data
    assert cut[:3] == [True, True, False]


def test_a_wrong_key_is_refused_at_once_and_says_which_option(bucket, monkeypatch) -> None:
    store = S3Store(bucket.where("x"), quick())
    text = f"AWS Error INVALID_ACCESS_KEY_ID during ListObjectsV2 operation: the key {KEY} does not exist"

    class Client:
        def __getattr__(self, name):
            def method(*args, **keys):
                raise OSError(text)

            return method

    store.fs = Client()
    with pytest.raises(Refused, match="aws_access_key_id") as caught:
        store.read("a.jpg")
    assert KEY not in str(caught.value)
    with pytest.raises(DataError, match=r"cannot be listed: .*aws_access_key_id"):
        store.find(ENDINGS)


def test_more_than_one_page_is_listed_flat_and_nested(bucket) -> None:
    from moto.s3.models import s3_backends

    backend = next(found["aws"] for found in s3_backends.values() if bucket.name in found["aws"].buckets)
    for n in range(1100):  # into the server's memory: by requests it would take seconds
        backend.put_object(bucket.name, f"pages/{n:04}.jpg", b"")
    for n in range(70):
        backend.put_object(bucket.name, f"many/{n:04}/a.jpg", b"x")
    assert len(S3Store(bucket.where("pages"), quick()).find(ENDINGS)) == 1100
    many = S3Store(bucket.where("many/"), quick()).find(ENDINGS)
    assert len(many) == 70
    assert many.folders == 70


def test_folder_markers_and_names_with_empty_parts_are_no_samples(bucket) -> None:
    for key in ("odd/sub/", "odd/sub/a.jpg", "odd//b.jpg", "odd/sub//c.jpg", "odd/../d.jpg"):
        bucket.put(key, b"")
    found = S3Store(bucket.where("odd"), quick()).find(ENDINGS)

    assert found.paths == ["sub/a.jpg"]
    assert found.problems["unusable name"] >= 2


def test_an_empty_prefix_is_an_empty_listing(bucket) -> None:
    assert len(S3Store(bucket.where("nothing/here"), quick()).find(ENDINGS)) == 0


def test_a_whole_bucket_can_be_a_dataset(own_bucket) -> None:
    own_bucket.put("a/b.jpg", b"x")
    store = S3Store(own_bucket.where(""), quick())
    assert store.find(ENDINGS).paths == ["a/b.jpg"]
    assert store.read("a/b.jpg") == b"x"


def test_a_large_file_goes_up_in_pieces(bucket, tmp_path) -> None:
    data = random.Random(0).randbytes(12 << 20)
    (tmp_path / "large.bin").write_bytes(data)
    store = S3Store(bucket.where("large"), quick())
    store.upload("large.bin", tmp_path / "large.bin")
    assert store.read("large.bin") == data
    with pytest.raises(Missing):
        store.read("other.bin")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("https://account.r2.cloudflarestorage.com/", ("https", "account.r2.cloudflarestorage.com")),
        ("http://127.0.0.1:9000", ("http", "127.0.0.1:9000")),
        ("minio.example.com:9000", ("https", "minio.example.com:9000")),
    ],
)
def test_endpoints_are_understood(given, meant) -> None:
    assert _endpoint(given) == meant


@each_row("given", ["https://host/bucket", "ftp://host", "https://", f"https://me:{SECRET}@host/x"])
def test_endpoints_that_are_none_are_refused_without_their_password(given) -> None:
    with pytest.raises(DataError, match="aws_endpoint_url") as caught:
        _endpoint(given)
    assert SECRET not in str(caught.value)


@each_row(
    "given, host, meant",
    [
        (None, "s3.eu-west-1.amazonaws.com", "eu-west-1"),
        (None, "s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("auto", "account.r2.cloudflarestorage.com", "us-east-1"),
        ("eu-central-2", "s3.wasabisys.com", "eu-central-2"),
        ("", "127.0.0.1:9000", "us-east-1"),
    ],
)
def test_regions_are_found(given, host, meant) -> None:
    assert _region(given, host) == meant
