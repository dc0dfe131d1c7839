"""Servers on this machine that behave well or badly, and stores of every kind that hold the same few files."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from darkroom.options.datasets.locations import HubRows, JsonLines, LinkList, LocalFiles, S3Files, UrlFiles
from darkroom.storage.retry import Retry

KEY, SECRET, TOKEN = "key-that-is-secret", "secret-that-is-secret", "token-that-is-secret"
NAMES = ("plain.jpg", "a b/ü/naïve.JPG", "deep/er/and/#1.jpg", "100%/%41+b.jpg", "q?x=1&y.jpg", "[x]*.jpg")


def quick(**keys: Any) -> Retry:
    """Patience of tests."""
    return Retry(**{"total": 0.2, "first": 0.005, "max_pause": 0.02} | keys)


def png(colour: tuple[int, int, int] = (1, 2, 3), size: tuple[int, int] = (8, 8)) -> bytes:
    """A small picture of one colour."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "png")
    return out.getvalue()


# ---------------------------------------------------------------------- S3


class Bucket:
    """moto's server on this machine, with one bucket. Stopping it keeps what it holds."""

    def __init__(self, name: str = "bucket") -> None:
        self.name = name
        self.server: Any = None
        self.port = 0
        self.start()
        self.client.create_bucket(Bucket=self.name)

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()
        self.port = self.server.get_host_and_port()[1]

    def stop(self) -> None:
        self.server.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
        )

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def where(self, prefix: str, **keys: Any) -> S3Files:
        given = {
            "aws_bucket_name": self.name,
            "aws_endpoint_url": self.url,
            "aws_access_key_id": KEY,
            "aws_secret_access_key": SECRET,
            "aws_session_token": TOKEN,
            "aws_data_prefix": prefix,
        }
        return S3Files.model_validate(given | keys)


@pytest.fixture(scope="session")
def moto_quiet() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def bucket(moto_quiet: None) -> Iterator[Bucket]:
    made = Bucket()
    yield made
    made.stop()


# ---------------------------------------------------------------------- the web

Answer = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """A web server whose answers are functions by path, and a count of what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.asked[self.path] += 1
                self.close_connection = True
                with contextlib.suppress(ConnectionError):
                    web.answers.get(self.path, status(404))(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, path: str, *answers: Answer) -> str:
        """Answer `path` with these, one after the other; the last one stays. Returns the URL."""
        left = list(answers)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            (left.pop(0) if len(left) > 1 else left[0])(handler)

        self.answers[path] = answer
        return self.url + path

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def status(code: int, **headers: str) -> Answer:
    """An answer without a body."""
    return body(b"", code=code, **headers)


def body(
    data: bytes, kind: str | None = "image/png", code: int = 200, length: int | None = None, **headers: str
) -> Answer:
    """An answer with a body, whose length may be a lie."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        handler.send_header("Connection", "close")  # or a client sends its next request down a closing connection
        if kind is not None:
            handler.send_header("Content-Type", kind)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


@pytest.fixture
def web(monkeypatch) -> Iterator[Web]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Web()
    yield made
    made.stop()


# ---------------------------------------------------------------------- every kind of store


@dataclass
class Place:
    """One kind of store: what to open, what it must hold, and how its first file is changed from outside."""

    where: Any
    files: dict[str, bytes]
    change: Callable[[], None]
    secrets: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def open(self) -> Any:
        from darkroom.core.registry import import_path
        from darkroom.storage import STORES

        made = STORES[self.where.type]
        maker = import_path(made) if isinstance(made, str) else made
        return maker(self.where, **({} if self.where.type in ("local", "jsonl") else {"retry": quick()}))


def contents() -> dict[str, bytes]:
    return {name: f"{name} ".encode() * (20_000 if name == "plain.jpg" else 5) for name in NAMES}


def _local(folder: Path, request: Any) -> Place:
    for name, data in {**contents(), ".hidden/x.jpg": b"x", "words.pdf": b"x"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return Place(LocalFiles(root=folder), contents(), lambda: _write(folder / "plain.jpg"))


def _file_url(folder: Path, request: Any) -> Place:
    _local(folder, request)
    return Place(UrlFiles(url=f"file://{folder}"), contents(), lambda: _write(folder / "plain.jpg"))


def _write(file: Path) -> None:
    file.write_bytes(b"other")


def _memory(folder: Path, request: Any) -> Place:
    import fsspec

    fs, root = fsspec.filesystem("memory"), f"/tests/{folder.name}"
    for name, data in {**contents(), ".hidden/x.jpg": b"x", "words.pdf": b"x"}.items():
        fs.pipe_file(f"{root}/{name}", data)
    where = UrlFiles(url=f"memory:/{root}", options={"password": SECRET})
    return Place(where, contents(), lambda: fs.pipe_file(f"{root}/plain.jpg", b"other"), (SECRET,))


def _s3(folder: Path, request: Any) -> Place:
    bucket = request.getfixturevalue("bucket")
    for name, data in {**contents(), ".hidden/x.jpg": b"x", "words.pdf": b"x"}.items():
        bucket.put(f"{folder.name}/{name}", data)

    def change() -> None:
        import time

        time.sleep(1.05)  # S3 tells times in whole seconds
        bucket.put(f"{folder.name}/plain.jpg", b"other")

    return Place(bucket.where(folder.name), contents(), change, (KEY, SECRET, TOKEN))


def _csv(folder: Path, request: Any) -> Place:
    """Local rows and links: names are those of the table and of the downloads."""
    import csv
    from urllib.parse import quote

    from darkroom.storage.urls import _hash, _stem

    web = request.getfixturevalue("web")
    rows, files = [], {}
    for number, (name, data) in enumerate(contents().items()):
        if number % 2:
            url = web.add(f"/{quote(name)}?password={SECRET}", body(data, "image/jpeg"))
            files[f"{_stem(url)}-{_hash(url)}.jpg"] = data
            rows.append(url)
        else:
            (folder / "here" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "here" / name).write_bytes(data)
            files[f"here/{name}"] = data
            rows.append(f"here/{name}")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["url", "text"], *([row, f"caption of {row}"] for row in rows)])
    where = LinkList(csv_file=folder / "table.csv", csv_cache_dir=folder / "kept", csv_caption_column="text")
    return Place(where, files, lambda: _write(folder / "here/plain.jpg"), (SECRET,))


def _jsonl(folder: Path, request: Any) -> Place:
    _local(folder / "here", request)
    lines = [{"image_path": f"here/{name}", "caption": f"caption of {name}"} for name in NAMES]
    (folder / "lines.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    where = JsonLines(file=folder / "lines.jsonl")
    return Place(where, {f"here/{n}": d for n, d in contents().items()}, lambda: _write(folder / "here/plain.jpg"))


def parquet(folder: Path, pictures: list[bytes], group: int = 2, name: str = "train-0.parquet", **columns: Any) -> None:
    """A file of rows as the datasets library writes them, in small row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    media = [{"bytes": data, "path": None} for data in pictures]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(media, kind), **columns}), folder / name, row_group_size=group)


def _hub(folder: Path, streaming: bool) -> Place:
    pictures = [png((number, 0, 0)) for number in range(5)]
    parquet(folder / "data", pictures, caption=[f"caption {n}" for n in range(5)])

    def change() -> None:
        parquet(folder / "data", [png((9, 9, 9), (4, 4)), *pictures[1:]], caption=["other"] * 5)

    where = HubRows(
        dataset_name=str(folder / "data"), file_extension="png", cache_dir=folder / "cache", streaming=streaming
    )
    return Place(where, {f"{number}.png": data for number, data in enumerate(pictures)}, change)


def _image_folder(folder: Path, request: Any) -> Place:
    pictures = [png((number, 0, 0)) for number in range(3)]
    (folder / "data").mkdir()
    lines = []
    for number, data in enumerate(pictures):
        (folder / "data" / f"{number}.png").write_bytes(data)
        lines.append(json.dumps({"file_name": f"{number}.png", "caption": f"caption {number}"}))
    (folder / "data/metadata.jsonl").write_text("\n".join(lines))

    def change() -> None:
        (folder / "data/0.png").write_bytes(png((9, 9, 9), (4, 4)))

    where = HubRows(dataset_name=str(folder / "data"), file_extension="png", cache_dir=folder / "cache")
    return Place(where, {f"{number}.png": data for number, data in enumerate(pictures)}, change)


PLACES: dict[str, Callable[[Path, Any], Place]] = {
    "local": _local,
    "file url": _file_url,
    "memory": _memory,
    "s3": _s3,
    "csv": _csv,
    "jsonl": _jsonl,
    "hub": lambda folder, request: _hub(folder, False),
    "hub streamed": lambda folder, request: _hub(folder, True),
    "hub image folder": _image_folder,
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path) -> None:
    """Nothing here may ask the network of Hugging Face or touch its cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(params=PLACES, ids=lambda name: name.replace(" ", "-"))
def place(request, tmp_path) -> Place:
    folder = tmp_path / "samples"
    folder.mkdir()
    # the name of a prefix in shared servers: one per test
    unique = folder.rename(tmp_path / f"samples-{abs(hash(request.node.nodeid)):x}")
    return PLACES[request.param](unique, request)
