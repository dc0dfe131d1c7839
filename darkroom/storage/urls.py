"""A CSV table of links and captions. What the links lead to is downloaded once, before the first scan, and kept.

A downloaded file is named after the last part of its URL and a hash of the whole, so that names are readable, never
clash and never lead out of the folder: `cat-0f3a9c5e7b1d2468.jpg`.
"""

from __future__ import annotations

import csv
import email.utils
import hashlib
import ipaddress
import os
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

import darkroom
from darkroom.core import files
from darkroom.core.errors import DataError
from darkroom.core.log import logger
from darkroom.core.units import show_size
from darkroom.options.datasets.locations import LinkList
from darkroom.storage.base import (
    FileListing,
    Missing,
    OnProgress,
    ReadOnly,
    Refused,
    Unreachable,
    describe_error,
    ending_of,
    has_ending,
    hide_url_secrets,
)
from darkroom.storage.parallel import for_all
from darkroom.storage.remote import GONE_STATUS, PASSING_STATUS
from darkroom.storage.retry import Passing, Retry

if TYPE_CHECKING:
    import httpx2
    import pyarrow as pa

log = logger(__name__)

CONNECT = 10.0  # seconds to wait for a connection
STALL = 30.0  # seconds without a byte
LONGEST = 1800.0  # seconds for one file: a server that drips a byte now and then would hold a thread for ever
MAX_BYTES = 4 << 30
REDIRECTS = 8
SHORT = 3  # attempts for a server that never answered while others do: old lists are full of dead ones
BLOCK = 1 << 20

ENDINGS = {
    "image/jpeg": ".jpg", "image/jpg": ".jpg", "image/pjpeg": ".jpg", "image/png": ".png", "image/apng": ".apng",
    "image/webp": ".webp", "image/gif": ".gif", "image/bmp": ".bmp", "image/x-ms-bmp": ".bmp", "image/tiff": ".tiff",
    "image/avif": ".avif", "image/jxl": ".jxl", "image/heic": ".heic", "image/heif": ".heif", "image/jp2": ".jp2",
    "video/mp4": ".mp4", "video/webm": ".webm", "video/x-matroska": ".mkv", "video/quicktime": ".mov",
    "video/x-msvideo": ".avi", "video/mpeg": ".mpeg", "video/x-flv": ".flv", "video/3gpp": ".3gp",
    "video/ogg": ".ogv", "audio/mpeg": ".mp3", "audio/wav": ".wav", "audio/x-wav": ".wav", "audio/wave": ".wav",
    "audio/flac": ".flac", "audio/x-flac": ".flac", "audio/ogg": ".ogg", "audio/mp4": ".m4a", "audio/aac": ".aac",
    "audio/opus": ".opus", "audio/aiff": ".aiff", "audio/x-aiff": ".aiff",
}  # fmt: skip
"""What a file is called when its URL does not say, by Content-Type."""

MEDIA_ENDINGS = frozenset(ENDINGS.values()) | {
    ".jpeg", ".jpe", ".jfif", ".dib", ".tif", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".wmv", ".m4v",
    ".mpg", ".wave", ".mp4a", ".oga", ".wma",
}  # fmt: skip

# first bytes, for servers that call everything application/octet-stream
SIGNS = (
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"GIF8", ".gif"),
    (8, b"WEBP", ".webp"),
    (8, b"WAVE", ".wav"),
    (4, b"ftypavif", ".avif"),
    (4, b"ftyphei", ".heic"),
    (4, b"ftypqt", ".mov"),
    (4, b"ftyp", ".mp4"),
    (0, b"\x1a\x45\xdf\xa3", ".mkv"),
    (0, b"fLaC", ".flac"),
    (0, b"OggS", ".ogg"),
    (0, b"ID3", ".mp3"),
    (0, b"II*\0", ".tiff"),
    (0, b"MM\0*", ".tiff"),
    (0, b"BM", ".bmp"),
)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_CACHED = re.compile(r".*-([0-9a-f]{16})\.[a-z0-9]+")


@dataclass(slots=True)
class Link:
    """A row: a URL, or a file of this machine."""

    text: str  # as in the table
    caption: str
    file: Path | None = None  # for a local row

    @property
    def host(self) -> str:
        """The server that is asked, with its port."""
        return _split(self.text).netloc.rpartition("@")[2]

    @property
    def hostname(self) -> str:
        """The same without a port; empty for what is no URL."""
        try:
            return _split(self.text).hostname or ""
        except ValueError:  # a port that is no number
            return ""


@dataclass
class _Servers:
    """What one download of a list learned about the servers."""

    good: dict[str, Link] = field(default_factory=dict)  # server to a link that it answered
    failed: set[str] = field(default_factory=set)  # those whose last attempt ended without an answer
    lost: list[tuple[Link, Unreachable]] = field(default_factory=list)


class LinkStore(ReadOnly):
    """The files behind a list of links, and the captions beside them. Read-only but for its own folder of downloads."""

    remote = False  # once downloaded, files are here

    def __init__(self, location: LinkList, retry: Retry | None = None, max_bytes: int = MAX_BYTES):
        self.location, self.name, self.folder = location, str(location.csv_file), location.csv_cache_dir
        self.connections, self.max_bytes = location.connections, max_bytes
        self.retry = retry or Retry()
        self._lock = threading.Lock()
        self._client: httpx2.Client | None = None
        self._table: dict[str, Link] | None = None  # hash of the URL, or a local row's own text, to the row
        self._names: dict[str, str] = {}  # hash of the URL to the name of the downloaded file

    def identity(self) -> dict[str, object]:
        """The table and the columns that are read."""
        location = self.location
        return {
            "type": "csv",
            "file": str(location.csv_file.absolute()),
            "folder": str(location.csv_cache_dir.absolute()),
            "columns": [location.csv_url_column, location.csv_caption_column],
        }

    # ------------------------------------------------------------------ the table

    @property
    def table(self) -> dict[str, Link]:
        """The rows, read once. Of rows with the same link the last one counts. Raises DataError."""
        with self._lock:
            if self._table is None:
                self._table = self._read_table()
                self._names = self._read_cached_names()
            return self._table

    def _read_table(self) -> dict[str, Link]:
        location, file = self.location, self.location.csv_file
        rows: dict[str, Link] = {}
        try:
            with file.open(encoding="utf-8-sig", newline="") as text:
                reader = csv.DictReader(text, strict=True)
                columns = [name for name in reader.fieldnames or [] if name]
                for key, option in (
                    (location.csv_url_column, "csv_url_column"),
                    (location.csv_caption_column, "csv_caption_column"),
                ):
                    if key not in columns:
                        raise DataError(
                            f"{file} has no column '{key}'; it has: {', '.join(columns) or 'no columns at all'}.\n"
                            f"  Set {option} to one of them, or correct the first line of the table."
                        )
                for row in reader:
                    link = self._link(
                        (row[location.csv_url_column] or "").strip(), row[location.csv_caption_column] or ""
                    )
                    rows[link.text if link.file is not None else _hash(link.text)] = link
        except FileNotFoundError:
            raise DataError(f"There is no table {file}.\n  Correct csv_file.") from None
        except UnicodeDecodeError as cause:
            raise DataError(
                f"{file} is not UTF-8: byte {cause.start} cannot be read.\n  Save the table as UTF-8."
            ) from None
        except csv.Error as cause:
            raise DataError(
                f"{file} cannot be read as a table: {cause}, near line {reader.line_num}.\n"
                "  Cells with commas, quotes or line breaks need double quotes around them."
            ) from None
        except OSError as cause:
            raise DataError(f"{file} cannot be read: {cause.strerror or cause}.\n  Correct csv_file.") from None
        return rows

    def _link(self, text: str, caption: str) -> Link:
        if text.lower().startswith(("http://", "https://")):
            return Link(text, caption)
        if text.lower().startswith("file://"):
            return Link(text, caption, Path(unquote(_split(text).path)))
        if "://" in text or not text:
            return Link(text, caption)
        relative = self.location.csv_file.parent / text  # an absolute path stays itself
        return Link(text, caption, relative if files.path_exists(relative) else Path(text))

    def _read_cached_names(self) -> dict[str, str]:
        """What was downloaded before: hash to file name."""
        if not self.folder.is_dir():
            return {}
        with os.scandir(self.folder) as entries:
            matches = (_CACHED.fullmatch(entry.name) for entry in entries if not entry.name.startswith("."))
            return {match[1]: match[0] for match in matches if match}

    # ------------------------------------------------------------------ listing

    def find(self, endings: frozenset[str], on_progress: OnProgress | None = None) -> FileListing:
        """Download what is not here yet, then list what is. Raises DataError, Unreachable, DiskFullError."""
        listing = FileListing([], [], [])
        todo: list[Link] = []
        for key, link in self.table.items():
            if link.file is not None or key in self._names:
                continue
            if not link.text.lower().startswith(("http://", "https://")):
                reason = "unknown kind of link" if link.text else "empty link"
                _count_problem(listing, reason, link, "only http, https and paths of this machine can be read")
            elif (ending := _ending(link.text)) and not has_ending(f"x{ending}", endings):
                listing.other_files[ending] += 1
            else:
                todo.append(link)
        if todo:
            self._download(todo, listing, on_progress)
        rows: list[tuple[str, int, int]] = []
        for key, link in self.table.items():
            path = link.text if link.file is not None else self._names.get(key)
            if path is None:
                continue
            if not has_ending(str(link.file or path), endings):
                listing.other_files[ending_of(str(link.file or path))] += 1
                continue
            try:
                stat = (link.file or self.folder / path).stat()
            except (OSError, ValueError) as cause:  # ValueError: its name holds a zero byte
                reason = "missing" if isinstance(cause, FileNotFoundError) else "unreadable"
                _count_problem(listing, reason, link, str(getattr(cause, "strerror", cause)))
                continue
            rows.append((path, stat.st_size, stat.st_mtime_ns))
        return FileListing.from_rows(
            rows, problems=listing.problems, notes=listing.notes, folders=1, other_files=listing.other_files
        )

    def rows(self) -> pa.Table:
        """Captions, one per file that is here."""
        import pyarrow as pa

        pairs = [
            (path, [link.caption] if link.caption.strip() else [])
            for key, link in self.table.items()
            if (path := link.text if link.file is not None else self._names.get(key)) is not None
        ]
        return pa.table(
            {
                "path": pa.array([path for path, _ in pairs], pa.string()),
                "captions": pa.array([captions for _, captions in pairs], pa.list_(pa.string())),
            }
        )

    # ------------------------------------------------------------------ reading

    def local(self, path: str) -> Path | None:
        """Where the file is, or will be once it is read. None for a path that is not in the table."""
        link = self.table.get(path)
        if link is not None and link.file is not None:
            return link.file
        match = _CACHED.fullmatch(path)
        return self.folder / path if match and match[1] in self.table and "/" not in path else None

    def read(self, path: str) -> bytes:
        """A whole file, downloaded again if it has gone. Raises Missing, Refused, Unreachable, DiskFullError."""
        with self.open(path) as file:
            return file.read()

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """As `read`, but for the file itself."""
        local_path = self.local(path)
        if local_path is None:
            raise Missing(f"'{path}' is not in {self.name}")
        match = _CACHED.fullmatch(path)
        link = self.table[path] if path in self.table else self.table[match[1]] if match else None
        if link is not None and link.file is None and not local_path.exists():
            self._fetch(link)
        try:
            return local_path.open("rb")
        except FileNotFoundError:
            raise Missing(f"'{path}' is not there") from None
        except OSError as cause:
            raise Refused(f"'{path}': {cause.strerror or cause}") from None

    # ------------------------------------------------------------------ downloading

    def _download(self, todo: list[Link], listing: FileListing, on_progress: OnProgress | None) -> None:
        """Bring `todo` here. What cannot be had is counted; a server that was good and is gone ends it."""
        servers, lock = _Servers(), threading.Lock()
        self._sweep()
        log.info("%s: downloading %d files to %s", self.name, len(todo), self.folder)

        def download_link(link: Link) -> None:
            try:
                self._fetch(link, self._patience(link.host, servers))
            except (Missing, Refused) as cause:
                with lock:
                    _count_problem(
                        listing, "gone from the web" if isinstance(cause, Missing) else "refused", link, str(cause)
                    )
            except Unreachable as cause:
                with lock:
                    servers.failed.add(link.host)
                    servers.lost.append((link, cause))
                return
            with lock:
                servers.failed.discard(link.host)
                servers.good[link.host] = link

        for_all(download_link, todo, self.connections, len(todo), on_progress)
        lost, servers.lost = servers.lost, []
        for host in sorted({link.host for link, _ in lost}):
            failed_links = [(link, cause) for link, cause in lost if link.host == host]
            if self._still_good(host, servers):
                for link, _ in failed_links:  # it was away for longer than our patience, and is back
                    download_link(link)
            else:
                servers.lost += failed_links
        if servers.lost and not servers.good and not self._names:
            raise servers.lost[0][1]
        for link, cause in servers.lost:
            _count_problem(listing, "server does not answer", link, cause.cause)

    def _sweep(self) -> None:
        """Remove what a killed download left; younger files may belong to one that is under way."""
        for file in self.folder.glob(".*.tmp"):
            if time.time() - file.stat().st_mtime > 2 * LONGEST:
                file.unlink(missing_ok=True)

    def _patience(self, host: str, servers: _Servers) -> int | None:
        """How often to ask a server: once if it just failed, a few times if it never answered while others do."""
        if host in servers.failed:
            return 1
        return SHORT if servers.good and host not in servers.good else None

    def _still_good(self, host: str, servers: _Servers) -> bool:
        """Does a server that is known to be good answer? False for one that never was. Raises Unreachable when it
        was good and is gone: going on would leave out its files without need."""
        outcome = servers.good.get(host) or next(
            (link for key, link in self.table.items() if key in self._names and link.host == host), None
        )
        if outcome is None:
            return False
        self.retry.call(lambda: self._ask(outcome), f"asking {host}", host)
        return True

    def _ask(self, link: Link) -> None:
        """Any answer will do. Raises Passing."""
        import httpx2

        try:
            with self.client.stream("GET", link.text):
                return
        except (httpx2.HTTPError, httpx2.InvalidURL) as cause:
            raise Passing(describe_error(cause)) from None

    def _fetch(self, link: Link, limit: int | None = None) -> None:
        name = self.retry.call(
            lambda: self._once(link),
            f"downloading {hide_url_secrets(link.text)}",
            link.host,
            "Check the network and the links, and start again: what was downloaded is kept.",
            limit,
        )
        self._names[_hash(link.text)] = name

    def _once(self, link: Link) -> str:
        """One attempt to download. Returns the name of the file. Raises Missing, Refused, Passing, DiskFullError."""
        import httpx2

        try:
            with self.client.stream("GET", link.text) as response:
                _check_status(response)
                return self._store(link, response)
        except httpx2.UnsupportedProtocol:
            raise Refused("it leads to something other than http and https") from None
        except httpx2.TooManyRedirects:
            raise Refused(f"it redirects more than {REDIRECTS} times") from None
        except (httpx2.InvalidURL, UnicodeError) as cause:
            raise Refused(f"it is not a URL: {describe_error(cause)}") from None
        except httpx2.HTTPError as cause:
            if "CERTIFICATE_VERIFY_FAILED" in str(cause):
                raise Refused("the server's certificate is not valid") from None
            raise Passing(f"{type(cause).__name__}: {describe_error(cause)}") from None

    def _store(self, link: Link, response: httpx2.Response) -> str:
        """The body into the folder, whole or not at all."""
        length = response.headers.get("content-length", "")
        expected = int(length) if length.isdigit() else None
        if expected is not None and expected > self.max_bytes:
            raise Refused(f"it has {show_size(expected)}, more than {show_size(self.max_bytes)}")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        deadline = time.monotonic() + LONGEST
        blocks = response.iter_bytes(BLOCK)
        first = next(blocks, b"")
        if kind in ("text/html", "application/xhtml+xml") and first.lstrip()[:1] == b"<":
            raise Refused("the server answered with a web page instead of a file")
        ending = _ending(link.text) or ENDINGS.get(kind) or _sniff_ending(first)
        if ending is None:
            raise Refused(f"neither its name nor its type ({kind or 'not given'}) says what it is")
        name = f"{_stem(link.text)}-{_hash(link.text)}{ending}"
        with files.write_atomically(self.folder / name) as temporary, temporary.open("wb") as out:
            size = out.write(first)
            for block in blocks:
                size += out.write(block)
                if size > self.max_bytes:
                    raise Refused(f"it has more than {show_size(self.max_bytes)}")
                if time.monotonic() > deadline:
                    raise Refused(f"it was not complete after {LONGEST / 60:.0f} minutes")
            if expected is not None and response.num_bytes_downloaded != expected:
                raise Passing(f"{response.num_bytes_downloaded} of {expected} bytes arrived")
        return name

    def _check_host(self, request: httpx2.Request) -> None:
        """Before each request, redirected ones too: a link of the list may lead anywhere, a server that answers it may
        not send us to this machine or its network. Raises Refused."""
        host = request.url.host
        if host not in self._hosts and (address := private_address(host)):
            raise Refused(
                f"it redirects to {host} ({address}), which is not a public address; if that is meant, name the host "
                "in the list"
            )

    @cached_property
    def _hosts(self) -> frozenset[str]:
        """The hosts that the list itself names."""
        return frozenset(link.hostname for link in self.table.values() if link.file is None)

    @property
    def client(self) -> httpx2.Client:
        """One client for all threads: it keeps connections open."""
        with self._lock:
            if self._client is None:
                import httpx2

                self._client = httpx2.Client(
                    timeout=httpx2.Timeout(STALL, connect=CONNECT, pool=None),
                    limits=httpx2.Limits(max_connections=self.connections),
                    follow_redirects=True,
                    max_redirects=REDIRECTS,
                    event_hooks={"request": [self._check_host]},
                    # images are compressed already, and only then is Content-Length the size of the file
                    headers={"User-Agent": f"darkroom/{darkroom.__version__}", "Accept-Encoding": "identity"},
                )
            return self._client


def private_address(host: str) -> str:
    """The first address of a host that is loopback, link-local, private or otherwise not of the public network.

    Empty if there is none, or if the name has no address at all: then the request says so.
    """
    try:
        resolved = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ""
    addresses = [str(row[4][0]).partition("%")[0] for row in resolved]
    return next((address for address in addresses if not _is_public(address)), "")


def _is_public(address: str) -> bool:
    """Whether an address, and what is embedded in one of IPv6, is of the public network."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inside = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inside.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped.is_global
        return ip.is_global and all(other is None or other.is_global for other in inside)
    return ip.is_global


def _check_status(response: httpx2.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in GONE_STATUS:
        raise Missing(f"HTTP {status}")
    if status in PASSING_STATUS:
        raise Passing(f"HTTP {status}", _retry_after(response.headers.get("retry-after")))
    raise Refused(f"HTTP {status}")


def _retry_after(header: str | None) -> float | None:
    """Seconds from a `Retry-After` header: a number or a date (RFC 9110, 10.2.3)."""
    if not header:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _count_problem(listing: FileListing, reason: str, link: Link, detail: str) -> None:
    listing.problems[reason] += 1
    listing.notes.append(f"{hide_url_secrets(link.text)!r}: {detail}")


def _split(url: str) -> SplitResult:
    """The parts of a URL; one that is none has no parts."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def _hash(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _ending(url: str) -> str | None:
    """The ending that the URL's path gives a file, if it is one of images, clips or sounds."""
    ending = PurePosixPath(unquote(_split(url).path)).suffix.lower()
    return ending if ending in MEDIA_ENDINGS else None


def _stem(url: str) -> str:
    """A readable beginning for the file's name."""
    return files.safe_name(PurePosixPath(unquote(_split(url).path)).stem, 40)


def _sniff_ending(start: bytes) -> str | None:
    return next((ending for at, sign, ending in SIGNS if start[at : at + len(sign)] == sign), None)
