"""Stores: where datasets are published to."""

from __future__ import annotations

import os
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
    """The store for an address: s3://bucket/prefix, file:// or a path. Raises UsageError for another scheme, or a file.

    `single_writer`, `max_age` and `kept` are for buckets (puller.stores.s3 and ahead); a folder is locked, sends no headers,
    and is as near as copies would be.
    """
    if address.startswith("s3://"):
        from puller.stores.ahead import Ahead
        from puller.stores.s3 import S3Store

        inner = S3Store(address, connections=PUTS + S3Store.threads, single_writer=single_writer, max_age=max_age)
        return Ahead(inner, PUTS, kept=kept)
    if "://" in address and not address.startswith("file://"):
        raise UsageError(f"{address}: files are kept in s3://bucket/prefix, or in a local folder")
    root = address.removeprefix("file://")
    if os.path.isfile(root):
        raise UsageError(f"{root} is a file, not the folder of a dataset; are the arguments swapped?")
    return FolderStore(root)
