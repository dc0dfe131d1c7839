"""Watching the disk before something large is written."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.core.errors import ConfigError, DiskFullError
from darkroom.core.files import free_bytes
from darkroom.core.log import logger
from darkroom.core.units import parse_size, show_size

if TYPE_CHECKING:
    from darkroom.options.config import Config

log = logger(__name__)
POLL_SECONDS = 1.0


def ensure_disk_space(
    folder: Path,
    options: Config,
    sleep: Callable[[float], None] = time.sleep,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Act on `disk_low_threshold` as `disk_low_action` says: stop, wait, or run a script and look again.

    Raises DiskFullError when there is too little room or the run is `stopped` while it waits, ConfigError for a
    threshold that is no size.
    """
    if not options.disk_low_threshold:
        return
    try:
        threshold = parse_size(options.disk_low_threshold)
    except ValueError as cause:
        raise ConfigError(
            "disk_low_threshold", options.disk_low_threshold, "", str(cause), "Write for example 100G."
        ) from cause
    if free_bytes(folder) >= threshold:
        return
    if options.disk_low_action == "wait":
        log.warning("Only %s free at %s; waiting for %s.", show_size(free_bytes(folder)), folder, show_size(threshold))
        while free_bytes(folder) < threshold:
            if stopped():
                raise DiskFullError(
                    f"Stopped while waiting for {show_size(threshold)} of free space at {folder}: the steps since the "
                    "last checkpoint are not saved."
                )
            sleep(POLL_SECONDS)
        return
    if options.disk_low_action == "script":
        _run_script(options.disk_low_script)
        if free_bytes(folder) >= threshold:
            return
    raise DiskFullError(
        f"Only {show_size(free_bytes(folder))} are free at {folder}, less than disk_low_threshold = "
        f"{options.disk_low_threshold}.\n  Free some space and start again; with resume_from_checkpoint latest (the "
        "default) the run goes on from its last checkpoint."
    )


def _run_script(command: str | None) -> None:
    if not command:
        raise ConfigError(
            "disk_low_script",
            command,
            "",
            "disk_low_action is 'script', and no script is given.",
            "Set disk_low_script to a command.",
        )
    try:
        done = subprocess.run(shlex.split(command), check=False)
    except (OSError, ValueError) as cause:
        raise ConfigError(
            "disk_low_script",
            command,
            "",
            f"It cannot be run: {cause}.",
            "Give the path of a program, with its arguments if it has any.",
        ) from cause
    if done.returncode:
        raise DiskFullError(f"disk_low_script = {command!r} ended with code {done.returncode}.")
