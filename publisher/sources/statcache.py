"""What files looked like when they were last published, kept locally, so that unchanged ones need not be read again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct

import msgspec
import xxhash

VERSION = 1
MARGIN = 2_000_000_000
"""Nanoseconds: a file whose times are not older than the look at it by this much may change again without a sign."""

_pack = struct.Struct("<HQqqQ").pack
_Content = tuple[int, bytes, list[bytes], list[bytes]]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Content).decode


def look(found: os.stat_result) -> bytes:
    """What a file looks like: mode, size in bytes, mtime and ctime in nanoseconds, inode."""
    return _pack(found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def mode_of(seen: bytes) -> int:
    """The mode in a look."""
    return int.from_bytes(seen[:2], "little")


def racy_since(start: int) -> int:
    """The time from which on a file is racy in a look that began at `start`, in Unix nanoseconds.

    A file with an mtime or a ctime not below that may change after the look, and still look the same.
    """
    return start - MARGIN


class StatCache:
    """The looks of a source's files, by path, for one store, dataset and source.

    It is bound to the published state that was read from these files; for any other state, and if it is lost or
    damaged, nothing is known and everything is read. Nothing depends on it: it may be deleted at any time.
    """

    def __init__(self, address: str, dataset: str, source: str) -> None:
        name = f"{identity(address, dataset)}\0{os.path.abspath(source)}"
        self._folder = os.path.join(cache_folder() or os.devnull, "sources")
        self._path = os.path.join(self._folder, hashlib.sha256(os.fsencode(name)).hexdigest())
        self._known: tuple[bytes, dict[bytes, bytes]] | None = None

    def load(self, state: bytes) -> dict[bytes, bytes] | None:
        """The looks by path when `state` was published or found unchanged, or None; an empty look stands for unknown."""
        try:
            with open(self._path, "rb") as file:
                data = file.read()
        except OSError:
            return None
        check, content = data[:16], data[16:]
        if xxhash.xxh3_128_digest(content) != check:
            return None
        try:
            version, bound, paths, looks = _decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if version != VERSION or bound != state or len(paths) != len(looks):
            return None
        known = dict(zip(paths, looks, strict=True))
        self._known = state, known
        return known

    def save(self, state: bytes, looks: dict[bytes, bytes]) -> None:
        """Note what was published as `state`; a cache that cannot be written is none."""
        if (state, looks) == self._known:
            return
        content = _encode((VERSION, state, list(looks), list(looks.values())))
        temporary = f"{self._path}.{os.getpid()}"
        with contextlib.suppress(OSError):
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    file.write(xxhash.xxh3_128_digest(content) + content)
                os.replace(temporary, self._path)
            except OSError:
                os.unlink(temporary)
                raise


def identity(address: str, dataset: str) -> str:
    """Names a dataset in a store, however the store's address is written."""
    if "://" not in address or address.startswith("file://"):
        address = os.path.abspath(address.removeprefix("file://"))
    return f"{address}\0{dataset}"


def cache_folder() -> str | None:
    """Where caches are kept: `headwater` in $XDG_CACHE_HOME, if that is absolute, or in ~/.cache; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    return os.path.join(base, "headwater") if os.path.isabs(base) else None
