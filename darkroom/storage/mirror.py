"""A folder of finished files that lives in a store and is used here: cache shards on S3, read from the local disk.

Files are written once and never changed, so the same name and size mean the same file; pulling and pushing may stop
at any moment and be done again.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from darkroom.core import files
from darkroom.core.errors import DataError
from darkroom.core.log import logger
from darkroom.core.units import show_size
from darkroom.storage.base import ANY, Missing, OnProgress, Refused, Store
from darkroom.storage.parallel import for_all

log = logger(__name__)

THREADS = 8
BLOCK = 4 << 20


class Mirror:
    """`folder` as the local copy of `store`. Only files are mirrored, with the folders of their names."""

    def __init__(self, store: Store, folder: Path):
        self.store, self.folder = store, Path(folder)

    def pull(self, wants: Callable[[str], bool] | None = None, on_progress: OnProgress | None = None) -> list[str]:
        """Fetch every file that is there and not here, or here with another size. Returns their names, sorted.

        `wants` chooses by name. Raises DataError (Unreachable among them), DiskFullError. A file appears whole or not
        at all; one that vanishes meanwhile is left out.
        """
        listing = self.store.find(ANY)
        to_fetch = {
            name: size
            for name, size in zip(listing.paths, listing.sizes, strict=True)
            if (wants is None or wants(name)) and self._size(name) != size
        }
        fetched: list[str] = []
        lock = threading.Lock()

        def fetch_file(name: str) -> None:
            try:
                self._fetch(name, to_fetch[name])
            except Missing:
                log.info("%s: '%s' was removed while it was fetched", self.store.name, name)
                return
            except Refused as cause:
                raise DataError(
                    f"{self.store.name} does not give '{name}': {cause}\n  Check the rights of the key that is used."
                ) from None
            with lock:
                fetched.append(name)

        if to_fetch:
            log.info("%s: fetching %d files (%s)", self.store.name, len(to_fetch), show_size(sum(to_fetch.values())))
        for_all(fetch_file, to_fetch, min(THREADS, self.store.connections), len(to_fetch), on_progress)
        return sorted(fetched)

    def push(self, name: str) -> None:
        """Send one finished file. Raises FileNotFoundError, DataError (Unreachable among them)."""
        source = files.join_inside(self.folder, name)
        if not source.is_file():
            raise FileNotFoundError(source)
        try:
            self.store.upload(name, source)
        except Refused as cause:
            raise DataError(
                f"{self.store.name} does not take '{name}': {cause}\n  Check the rights of the key that is used."
            ) from None

    def remove(self, name: str) -> None:
        """Remove a file in both places; it is no error when it is gone already. Raises Refused, Unreachable."""
        try:
            self.store.delete(name)
        except Missing:
            log.debug("%s: '%s' was gone already", self.store.name, name)
        files.join_inside(self.folder, name).unlink(missing_ok=True)

    def _size(self, name: str) -> int | None:
        try:
            return files.join_inside(self.folder, name).stat().st_size
        except OSError:
            return None

    def _fetch(self, name: str, size: int) -> None:
        with files.write_atomically(files.join_inside(self.folder, name)) as temporary:
            with self.store.open(name, size) as source, temporary.open("wb") as out:
                shutil.copyfileobj(source, out, BLOCK)
            if temporary.stat().st_size != size:
                raise Missing(f"'{name}' changed while it was fetched")
