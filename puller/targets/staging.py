"""Writing files beside the data of a folder target, before they are moved into place."""

from __future__ import annotations

import contextlib
import errno
import os
import stat as stats
from collections.abc import Callable, Iterator
from typing import Any

import xxhash

from puller.errors import Invalid, Stale
from puller.targets.base import Opening
from puller.wire import files
from puller.wire.nodes import Held, Large, Old, PatchedLarge

Part = tuple[int, bytes]
"""Size and xxh3_128 of a part of a large value."""


class Stager:
    """Writes values as files, with their mode and the version's modification time; on request, nobody may write to them."""

    def __init__(self, opening: Opening, *, read_only: bool = False) -> None:
        self._modes = (0o444, 0o555) if read_only else (0o666, 0o777)
        self._large = opening.large
        self._times = (opening.time * 1_000_000_000,) * 2

    def write(self, path: bytes, kind: bytes, value: bytes) -> None:
        """Write the file, link or empty folder that `value`, of type `kind`, is to a new path."""
        if kind == files.SYMLINK:
            os.symlink(value[1:], path)
            os.utime(path, ns=self._times, follow_symlinks=False)
            return
        if kind == files.FOLDER:
            os.mkdir(path)
            return
        descriptor = _create(path, self._modes[kind == files.EXECUTABLE])
        try:
            done = 1
            while done < len(value):
                done += os.write(descriptor, memoryview(value)[done:])
            os.utime(descriptor, ns=self._times)
        finally:
            os.close(descriptor)

    def write_large(
        self, path: bytes, key: bytes, value: Large, held: Held | None = None, old: Old | None = None
    ) -> tuple[bytes, list[Part]]:
        """Write a large value's file to a new path; return its type, and the parts that it came in.

        What is held is taken from there; if that turns out to be wrong, first pieces only, which are known by their
        hashes, and then everything is fetched.
        """
        sources = [(held, old)] if isinstance(value, PatchedLarge) and old is not None else []
        for pieces, ranges in [*sources, (held, None)] if held is not None else sources:
            with contextlib.suppress(Stale):
                return self._assemble(path, key, self._large(key, value, pieces, ranges))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        return self._assemble(path, key, self._large(key, value))

    def _assemble(self, path: bytes, key: bytes, parts: Iterator[bytes]) -> tuple[bytes, list[Part]]:
        written: list[Part] = []
        kind = b""
        with contextlib.ExitStack() as stack:
            for part in parts:
                data = memoryview(part)
                if not written:
                    kind, data = part[:1], data[1:]
                    if kind not in (files.FILE, files.EXECUTABLE):
                        raise Invalid(f"{key.decode(errors='replace')}: a large value that is no file")
                    file = stack.enter_context(
                        open(_create(path, self._modes[kind == files.EXECUTABLE]), "wb", buffering=0)
                    )
                _write_all(file.write, data)
                written.append((len(part), xxhash.xxh3_128_digest(part)))
            os.utime(file.fileno(), ns=self._times)
        return kind, written


def _create(path: bytes, mode: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def _write_all(write: Callable[[Any], int], data: memoryview) -> None:
    while data:
        data = data[write(data) :]


def make_folder(path: bytes) -> None:
    """Make a folder, if there is none; anything else in its place is an error, a symbolic link too."""
    try:
        os.mkdir(path)
    except FileExistsError:
        if not stats.S_ISDIR(os.lstat(path).st_mode):
            raise


def place_folder(path: bytes) -> None:
    """Make an empty folder at a path, in place of a file of ours."""
    try:
        make_folder(path)
    except FileExistsError:
        os.unlink(path)
        os.mkdir(path)


def place_file(staged: bytes, path: bytes) -> None:
    """Move a staged file to its path, in place of a file or an empty folder; it may have been moved before."""
    try:
        os.rename(staged, path)
    except FileNotFoundError:
        return  # it was placed by a run that was cut short; if it is gone since, `verify` will say so
    except IsADirectoryError:
        os.rmdir(path)
        os.rename(staged, path)


def remove_folder(path: bytes) -> None:
    """Remove a folder, if it is there and empty."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
            raise


def make_parents(root: bytes, path: bytes, made: set[bytes]) -> None:
    """Make the folders above a path below `root`; `made` remembers those that are there."""
    folder = path.rpartition(b"/")[0]
    if folder in made or not folder:
        return
    for parent in files.parents(path):
        if parent not in made:
            make_folder(os.path.join(root, parent))
            made.add(parent)
