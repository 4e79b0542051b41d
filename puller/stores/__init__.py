"""Stores: where datasets are published to."""

from __future__ import annotations

from puller.errors import UsageError
from puller.stores.base import Store
from puller.stores.folder import FolderStore

PUTS = 32
"""Files that are put into a bucket at once."""


def open_store(address: str, *, single_writer: bool = False, max_age: int | None = None) -> Store:
    """The store for an address: s3://bucket/prefix, file:// or a path. Raises UsageError for another scheme.

    `single_writer` and `max_age` are for buckets (puller.stores.s3); a folder is locked, and sends no headers.
    """
    if address.startswith("s3://"):
        from puller.stores.ahead import Ahead
        from puller.stores.s3 import S3Store

        inner = S3Store(address, connections=PUTS + S3Store.threads, single_writer=single_writer, max_age=max_age)
        return Ahead(inner, PUTS)
    if address.startswith("file://"):
        return FolderStore(address.removeprefix("file://"))
    if "://" in address:
        raise UsageError(f"{address}: publish to s3://bucket/prefix, or to a local folder")
    return FolderStore(address)
