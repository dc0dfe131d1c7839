"""One run writes into an output folder at a time."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from darkroom.core import files
from darkroom.core.errors import ConfigError
from darkroom.core.log import logger, redact

log = logger(__name__)

LOCK, PROCESS = ".writer.lock", "process.json"


@contextlib.contextmanager
def claim_folder(output: Path, source: str = "") -> Iterator[None]:
    """Inside, no other run can begin in `output`; `process.json` there says who this one is.

    The lock ends with the process, however that ends. Of several processes of one run the first holds it. Raises
    ConfigError if another run is at work there; `source` says where output_dir was set.
    """
    if int(os.environ.get("RANK", "0")):
        yield
        return
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            "output_dir",
            str(output),
            source,
            f"Another run is writing into this folder: {_other(output)}.",
            "Wait until it has ended, stop it, or choose another output_dir for this one.",
        ) from None
    try:
        files.write_json(output / PROCESS, identity())
        yield
    finally:
        (output / PROCESS).unlink(missing_ok=True)
        lock.release()


def identity() -> dict[str, object]:
    """Who this process is: number, when it and its machine started, host, and what it was called with."""
    process = psutil.Process()
    return {
        "pid": process.pid,
        "started": process.create_time(),
        "boot": psutil.boot_time(),
        "host": socket.gethostname(),
        "arguments": [redact(word) for word in sys.argv[1:]],
    }


def _other(output: Path) -> str:
    """The run that holds a folder, for people."""
    try:
        owner = json.loads((output / PROCESS).read_text(encoding="utf-8"))
        started = datetime.datetime.fromtimestamp(owner["started"]).strftime("%Y-%m-%d %H:%M:%S")
        return f"process {owner['pid']} on {owner['host']}, since {started}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "it has not said yet which process it is"
