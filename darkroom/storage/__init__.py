"""Bytes by name: where samples and caches live, on this machine or far away. `open_store` gives the place of a dataset.

Kinds of places are rows of `STORES`, named by the key `type`; another package can add one through the entry point group
`darkroom.stores`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from darkroom.core.registry import Table, import_path
from darkroom.storage.base import ANY, FileListing, Missing, OnProgress, Refused, Store, Unreachable

if TYPE_CHECKING:
    from darkroom.options.datasets.locations import Location

    StoreClass = Callable[[Location], Store]

__all__ = ["ANY", "STORES", "FileListing", "Missing", "OnProgress", "Refused", "Store", "Unreachable", "open_store"]

STORES: Table[str | StoreClass] = Table("storage", entry_points="darkroom.stores")
STORES.add("local", "darkroom.storage.local.LocalStore")
STORES.add("url", "darkroom.storage.remote.UrlStore")
STORES.add("aws", "darkroom.storage.s3.S3Store")
STORES.add("csv", "darkroom.storage.urls.LinkStore")
STORES.add("jsonl", "darkroom.storage.jsonl.JsonlStore")
STORES.add("huggingface", "darkroom.storage.hub.HubStore")


def open_store(location: Location) -> Store:
    """The store of a place. Cheap, but it may ask the network who is there. Raises DataError, MissingPackage."""
    store_class = STORES[location.type]
    if isinstance(store_class, str):
        store_class = cast("StoreClass", import_path(store_class))
    return store_class(location)
