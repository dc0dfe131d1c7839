"""Buckets of S3 and of stores that speak its protocol (R2, B2, Wasabi, MinIO), through pyarrow's own client.

The client is asked to try once only: pauses, their logging and their end are ours (`retry.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from darkroom.core.errors import DataError
from darkroom.options.datasets.locations import S3Files
from darkroom.storage.base import Missing, OnProgress, Refused, describe_error, is_plain_path
from darkroom.storage.parallel import for_all
from darkroom.storage.remote import MAX_STEP, RemoteStore, classify_error
from darkroom.storage.retry import Passing, Retry

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileInfo, S3FileSystem


CONNECT = 10.0  # seconds to wait for a connection
STALL = 30.0  # seconds without a byte
PARTS = 64  # up to so many folders are listed at the same time; of more, the pages of a flat listing are fewer
MAX_THREADS = 128  # of pyarrow's own, which also bound its connections

NO_KEY = "The key, the secret or the session token is wrong or has expired: check aws_access_key_id and its companions."
# what the client's messages contain, and what it means for the person
REFUSALS = {
    "ACCESS_DENIED": "the key may not do this: give it the rights to list and read the bucket, and for caches to write",
    "INVALID_ACCESS_KEY_ID": NO_KEY,
    "INVALID_CLIENT_TOKEN_ID": NO_KEY,
    "UNRECOGNIZED_CLIENT": NO_KEY,
    "SIGNATURE_DOES_NOT_MATCH": NO_KEY,
    "INVALID_SIGNATURE": NO_KEY,
    "MISSING_AUTHENTICATION_TOKEN": NO_KEY,
    "ExpiredToken": NO_KEY,
    "InvalidToken": NO_KEY,
    "REQUEST_TIME_TOO_SKEWED": "the clock of this machine is wrong, so requests are refused: set it",
    "REQUEST_EXPIRED": "the clock of this machine is wrong, so requests are refused: set it",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set aws_region_name to the one it is in",
    "PermanentRedirect": "the bucket is in another region: correct aws_endpoint_url or aws_region_name",
    "HTTP status 301": "the bucket is in another region: correct aws_endpoint_url or aws_region_name",
    "HTTP status 401": NO_KEY,
    "HTTP status 403": "the key may not do this: give it the rights to list and read the bucket",
    "HTTP status 400": "the server does not understand the request: check aws_endpoint_url and aws_region_name",
    "HTTP status 405": "the server does not allow this: check aws_endpoint_url",
}


class S3Store(RemoteStore):
    """The objects below a prefix of a bucket."""

    def __init__(self, location: S3Files, retry: Retry | None = None):
        self.scheme, self.host = _endpoint(location.aws_endpoint_url)
        self.prefix = location.aws_data_prefix.strip("/")
        self.root = "/".join(part for part in (location.aws_bucket_name, self.prefix) if part)
        self.location = location
        super().__init__(
            f"s3://{self.root} at {self.scheme}://{self.host}",
            location.aws_max_pool_connections,
            retry,
            "Check aws_endpoint_url, the bucket's name and the network, and start again: what was made is kept.",
        )
        keys = (location.aws_access_key_id, location.aws_secret_access_key, location.aws_session_token)
        self.secrets = tuple(key.get_secret_value() for key in keys if key is not None)
        self.fs = self._connect()

    def _connect(self) -> S3FileSystem:
        import pyarrow as pa
        from pyarrow import fs

        # the client opens as many connections as pyarrow has threads for input and output
        pa.set_io_thread_count(max(pa.io_thread_count(), min(self.connections, MAX_THREADS)))
        key, secret, token = (*self.secrets, None)[:3]
        try:
            return fs.S3FileSystem(
                access_key=key,
                secret_key=secret,
                session_token=token,
                endpoint_override=self.host,
                scheme=self.scheme,
                region=_region(self.location.aws_region_name, self.host),
                connect_timeout=CONNECT,
                request_timeout=STALL,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
                allow_delayed_open=True,  # small objects are then written by one request
            )
        except (OSError, ValueError) as cause:
            raise DataError(
                f"{self.name} cannot be used: {describe_error(cause, self.secrets)}\n  {self.remedy}"
            ) from None

    def identity(self) -> dict[str, object]:
        """Endpoint, bucket and prefix; keys may change and the place stays the same."""
        return {
            "type": "aws",
            "endpoint": f"{self.scheme}://{self.host}",
            "bucket": self.location.aws_bucket_name,
            "prefix": self.prefix,
        }

    def classify_error(self, cause: Exception, path: str) -> Exception | None:
        """As for other stores; the client tells its refusals apart only in words."""
        text = describe_error(cause, self.secrets)
        if isinstance(cause, FileNotFoundError):
            return Missing(f"'{path}' is not there")
        if isinstance(cause, OSError):
            reason = next((reason for sign, reason in REFUSALS.items() if sign in text), None)
            return Passing(text) if reason is None else Refused(f"'{path}': {reason} ({text})")
        return classify_error(cause, path, self.secrets)

    # ------------------------------------------------------------------ one attempt each

    def _list(self, on_progress: OnProgress | None) -> list[tuple[str, int, int]]:
        """The top first; then its folders side by side, or, where they are many, everything in one go."""
        from pyarrow.fs import FileType

        rows: list[tuple[str, int, int]] = []
        top = self._page(self.root, deep=False)
        if not top:
            self._check_bucket()
        folders = [info for info in top if info.type == FileType.Directory and not info.base_name.startswith(".")]
        if len(folders) > PARTS or not all(is_plain_path(info.path[len(self.root) + 1 :]) for info in folders):
            self._take(self._page(self.root, deep=True), rows)
            return rows
        self._take(top, rows)
        if on_progress is not None:
            on_progress(len(rows), 0)

        def below(info: FileInfo) -> None:
            self._take(self._page(info.path, deep=True), rows)

        def report(finished: int, total: int) -> None:
            if on_progress is not None:
                on_progress(len(rows), 0)

        for_all(below, folders, min(self.connections, 16), len(folders), report)
        return rows

    def _page(self, folder: str, deep: bool) -> list[FileInfo]:
        """All entries of a folder; the client asks for them by pages of a thousand."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(folder, allow_not_found=True, recursive=deep)
        infos: list[FileInfo] = self.attempts(f"listing {folder}", folder, lambda: self.fs.get_file_info(selector))
        return infos

    def _take(self, infos: list[FileInfo], rows: list[tuple[str, int, int]]) -> None:
        from pyarrow.fs import FileType

        skip = len(self.root) + 1
        rows += [(i.path[skip:], i.size, i.mtime_ns or 0) for i in infos if i.type == FileType.File]

    def _check_bucket(self) -> None:
        """Raises DataError when there is no such bucket. A key that may not ask gets the benefit of the doubt."""
        from pyarrow.fs import FileType

        bucket = self.location.aws_bucket_name
        try:
            info = self.attempts("asking for the bucket", bucket, lambda: self.fs.get_file_info(bucket))
        except Refused:
            return
        if info.type == FileType.NotFound:
            raise DataError(
                f"There is no bucket '{bucket}' at {self.scheme}://{self.host}.\n"
                "  Correct aws_bucket_name or aws_endpoint_url."
            )

    def _get(self, path: str) -> bytes:
        with self.fs.open_input_file(f"{self.root}/{path}") as file:
            data: bytes = file.read()
            if len(data) != file.size():
                raise Passing(f"{len(data)} of {file.size()} bytes arrived")
        return data

    def _parts(self, path: str) -> tuple[Callable[[int, int], bytes], Callable[[], int]]:
        opened: list[NativeFile] = []

        def file() -> NativeFile:
            if not opened:
                opened.append(self.fs.open_input_file(f"{self.root}/{path}"))  # asks for the size
            return opened[0]

        def part(start: int, end: int) -> bytes:
            data: bytes = file().read_at(end - start, start)
            expected = min(end, file().size()) - start
            if len(data) < expected:
                raise Passing(f"{len(data)} of {expected} bytes arrived")
            return data

        return part, lambda: int(file().size())

    def _remove(self, path: str) -> None:
        self.fs.delete_file(f"{self.root}/{path}")

    def _put(self, path: str, data: bytes) -> None:
        stream = self.fs.open_output_stream(f"{self.root}/{path}", compression=None)
        stream.write(data)
        stream.close()  # not a `with`: leaving one after an error would make a torn object

    def _put_from(self, path: str, file: BinaryIO) -> None:
        stream = self.fs.open_output_stream(f"{self.root}/{path}", compression=None)
        while block := file.read(MAX_STEP):
            stream.write(block)
        stream.close()


def _endpoint(url: str) -> tuple[str, str]:
    """`https://host:port/` to ("https", "host:port"). Raises DataError; what stands before an @ is never shown."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in ("http", "https") or not host or parts.path.strip("/"):
        endpoint = f"{parts.scheme}://{host}{parts.path}"
        raise DataError(
            f"aws_endpoint_url = {endpoint!r} is not an address like https://host or http://host:9000.\n"
            "  Give scheme, host and port only; the bucket has a key of its own, aws_bucket_name."
        )
    return parts.scheme, host


def _region(configured: str | None, host: str) -> str:
    """The region that requests are signed for: as given, else as in the host's name, else what all others accept."""
    if configured and configured.lower() != "auto":
        return configured
    named = re.match(r"s3[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+)+-\d+)\.", host)
    return named[1] if named else "us-east-1"
