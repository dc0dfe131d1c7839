"""How fast a remote listing and remote headers are: through our store against the bare client, in the same run.

    python benchmarks/listing.py [--count 2000] [--folders 8] [--rounds 5] [--json]

A toy S3 server (moto) runs as a process of its own on this machine. The bare client is boto3: its paginator lists, and
one range request each brings the first 64 KiB of an object. Both need the packages of the extra `dev`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from pydantic import SecretStr

from darkroom.options.datasets.locations import S3Files
from darkroom.storage import open_store

BUCKET, PREFIX = "bench", "pictures"
KEY, SECRET = "bench-key", "bench-secret"
ENDINGS = frozenset({".jpg"})


def serve() -> tuple[subprocess.Popen[bytes], str]:
    """A server on a free port, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return process, url
        except urllib.error.HTTPError:
            return process, url
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the toy server did not start")


def bare(url: str) -> Any:
    """A boto3 client."""
    import boto3

    return boto3.client(
        "s3", endpoint_url=url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )


def fill(client: Any, count: int, folders: int) -> None:
    """`count` objects of 100 KB under `folders` folders."""
    client.create_bucket(Bucket=BUCKET)
    body = os.urandom(100_000)
    for number in range(count):
        client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{number % folders:03}/{number:06}.jpg", Body=body)


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(rounds: int, theirs: Callable[[], Any], ours: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of both, taking turns after one round that does not count."""
    theirs(), ours()
    pairs = [(timed(theirs), timed(ours)) for _ in range(rounds)]
    bare_seconds, our_seconds = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"bare_seconds": bare_seconds, "our_seconds": our_seconds, "ratio": bare_seconds / our_seconds}


def measure(chosen: argparse.Namespace, url: str) -> dict[str, Any]:
    """Ratios above 1 mean that we are faster than the bare client."""
    client = bare(url)
    fill(client, chosen.count, chosen.folders)
    store = open_store(
        S3Files(
            aws_bucket_name=BUCKET,
            aws_endpoint_url=url,
            aws_access_key_id=SecretStr(KEY),
            aws_secret_access_key=SecretStr(SECRET),
            aws_data_prefix=PREFIX,
        )
    )

    def their_list() -> list[tuple[str, int, Any]]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{PREFIX}/")
        return [(o["Key"], o["Size"], o["LastModified"]) for page in pages for o in page["Contents"]]

    def our_list() -> int:
        return len(store.find(ENDINGS))

    if not len(their_list()) == our_list() == chosen.count:
        raise SystemExit("the two listings differ")
    some = store.find(ENDINGS).paths[:: max(1, chosen.count // 200)]

    def their_heads() -> None:
        for path in some:
            client.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{path}", Range="bytes=0-65535")["Body"].read()

    def our_heads() -> None:
        for path in some:
            with store.open(path, 100_000) as file:
                file.read(1000)

    return {
        "objects": chosen.count,
        "folders": chosen.folders,
        "listing": compare(chosen.rounds, their_list, our_list),
        "headers": compare(chosen.rounds, their_heads, our_heads),
    }


def main() -> None:
    """Measure and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="objects in the bucket")
    parser.add_argument("--folders", type=int, default=8, help="folders they are spread over")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args()
    process, url = serve()
    try:
        result = measure(chosen, url)
    finally:
        process.terminate()
        process.wait()
    if chosen.json:
        print(json.dumps(result))
        return
    for name in ("listing", "headers"):
        part = result[name]
        print(
            f"{name}: bare {part['bare_seconds'] * 1000:.1f} ms, Darkroom {part['our_seconds'] * 1000:.1f} ms, "
            f"ratio {part['ratio']:.3f}"
        )


if __name__ == "__main__":
    main()
