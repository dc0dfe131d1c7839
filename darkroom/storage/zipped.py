"""The images in a ZIP archive of this machine, read without unpacking it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom.options.datasets.locations import UrlFiles, ZipFile
from darkroom.storage.base import ReadOnly
from darkroom.storage.remote import UrlStore

if TYPE_CHECKING:
    from darkroom.storage.retry import Retry


class ZipStore(ReadOnly, UrlStore):
    """The files of an archive by their paths inside it."""

    def __init__(self, location: ZipFile, retry: Retry | None = None):
        self.location = location
        UrlStore.__init__(self, UrlFiles(url=f"zip://::file://{location.zip_file.absolute()}"), retry)

    def identity(self) -> dict[str, object]:
        """The archive."""
        return {"type": "zip", "file": str(self.location.zip_file.absolute())}
