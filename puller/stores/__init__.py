"""Stores: where datasets are published to."""

from __future__ import annotations

from puller.errors import UsageError
from puller.stores.base import Store
from puller.stores.folder import FolderStore


def open_store(address: str) -> Store:
    """The store for an address: file:// or a path. Raises UsageError for another scheme."""
    if address.startswith("file://"):
        return FolderStore(address.removeprefix("file://"))
    if "://" in address:
        raise UsageError(f"{address}: this release publishes to local folders only")
    return FolderStore(address)
