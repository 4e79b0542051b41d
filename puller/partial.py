"""Verified files of a pull under way, kept beside the target so that a killed pull goes on where it was."""

from __future__ import annotations

import contextlib
import os
import threading

from puller.errors import Corrupt
from puller.wire.codec import Ref, check_stored


class Partial:
    """A folder with stored files by their SHA-256. Losing it loses nothing but time.

    Methods may be called from several threads at once. What cannot be written is not kept, and what is damaged is
    taken for absent.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._there = os.path.isdir(folder)

    def get(self, ref: Ref) -> bytes | None:
        """The bytes of a file that was kept, checked against its name."""
        if not self._there:
            return None
        try:
            with open(self._path(ref), "rb") as file:
                return check_stored(ref, file.read(ref.stored + 1))
        except (OSError, Corrupt):
            return None

    def keep(self, ref: Ref, data: bytes) -> None:
        """Keep the verified bytes of a file."""
        path = self._path(ref)
        temporary = f"{path}.{threading.get_ident()}"
        with contextlib.suppress(OSError):
            if not self._there:
                os.makedirs(self._folder, exist_ok=True)
                self._there = True
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, path)

    def clear(self) -> None:
        """Drop everything: the pull is done."""
        if self._there:
            import shutil

            shutil.rmtree(self._folder, ignore_errors=True)
            self._there = False

    def _path(self, ref: Ref) -> str:
        return os.path.join(self._folder, ref.sha256.hex())
