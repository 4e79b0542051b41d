"""Files of a bucket that were read or put lately, kept on this machine, so that the next publish need not read them again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading

from publisher.sources.statcache import cache_folder

LARGEST = 4 << 20
"""Bytes of a file that is kept at most."""
BUDGET = 64 << 20
"""Bytes of files that are left by whoever begins to keep some, and that one process adds to them at most."""
FILES = 2000
"""How many files are left so."""


class Copies:
    """Files of one store, by names that stand for one content for ever. Any of them may be gone at any time.

    One that was damaged here is not given. Several threads, and several processes, may use one folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._left: int | None = None

    def get(self, name: str) -> bytes | None:
        """The bytes of a file, or None where they are not at hand."""
        path = self._path(name)
        try:
            with open(path, "rb") as file:
                data = file.read()
            os.utime(path)
        except OSError:
            return None
        check, content = data[:32], data[32:]
        return content if hashlib.sha256(content).digest() == check else None

    def keep(self, name: str, data: bytes) -> None:
        """Keep a file, if there is room; one that cannot be written is not kept."""
        path = self._path(name)
        temporary = f"{path}.{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):
            if not self._take(len(data)):
                return
            try:
                with open(temporary, "wb") as file:
                    file.write(hashlib.sha256(data).digest() + data)
                os.replace(temporary, path)
            except OSError:
                os.unlink(temporary)
                raise

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name.replace("/", "-"))

    def _take(self, size: int) -> bool:
        """Whether a file of `size` bytes is to be kept, of those that this process may add."""
        with self._lock:
            if self._left is None:
                self._left = BUDGET
                os.makedirs(self._folder, mode=0o700, exist_ok=True)
                self._clear()
            if size > min(self._left, LARGEST):
                return False
            self._left -= size
            return True

    def _clear(self) -> None:
        """Remove the files that were used longest ago, where there are too many."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, entry.path))
        size = 0
        for number, (_, bytes_, path) in enumerate(sorted(found, reverse=True)):
            size += bytes_
            if number >= FILES or size > BUDGET:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def copies_of(where: str) -> Copies | None:
    """What is kept of the store at an address; None where there is no place for caches."""
    folder = cache_folder()
    if folder is None:
        return None
    return Copies(os.path.join(folder, "files", hashlib.sha256(where.rstrip("/").encode()).hexdigest()))
