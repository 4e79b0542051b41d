"""Making what was written durable."""

from __future__ import annotations

import os


def sync_files(path: str | bytes) -> None:
    """Make everything written to the file system of `path` durable with one call."""
    import ctypes

    descriptor = os.open(path, os.O_RDONLY)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None:
            os.sync()
        elif syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), "the file system could not be synced")
    finally:
        os.close(descriptor)


def sync_folder(path: str | bytes) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
