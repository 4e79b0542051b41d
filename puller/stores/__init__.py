"""Stores: where datasets are published to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from puller.errors import UsageError
from puller.stores.base import Store
from puller.stores.folder import FolderStore

if TYPE_CHECKING:
    from puller.stores.ahead import Keep

PUTS = 32
"""Files that are put into a bucket at once."""


def open_store(
    address: str, *, single_writer: bool = False, max_age: int | None = None, kept: Keep | None = None
) -> Store:
    """The store for an address: s3://bucket/prefix, file:// or a path. Raises UsageError for another scheme.

    `single_writer`, `max_age` and `kept` are for buckets (puller.stores.s3 and ahead); a folder is locked, sends no headers,
    and is as near as copies would be.
    """
    if address.startswith("s3://"):
        from puller.stores.ahead import Ahead
        from puller.stores.s3 import S3Store

        inner = S3Store(address, connections=PUTS + S3Store.threads, single_writer=single_writer, max_age=max_age)
        return Ahead(inner, PUTS, kept=kept)
    if address.startswith("file://"):
        return FolderStore(address.removeprefix("file://"))
    if "://" in address:
        raise UsageError(f"{address}: files are kept in s3://bucket/prefix, or in a local folder")
    return FolderStore(address)
