"""What a store is: where a dataset's files are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

Token = str
"""Stands for the bytes of a HEAD that was read; `ABSENT` for there being none."""

ABSENT: Token = ""


TEMPORARY = ".tmp-"
"""How the names of files begin that were never finished."""


class Listed(NamedTuple):
    """A file in a store: its path, its bytes, and when it was last written, in Unix seconds by the store's clock."""

    path: str
    size: int
    written: float


class Store(Protocol):
    """Files by path. All methods but `swap_head` may be called from several threads at once.

    `get` and `read_head` raise NotFound for proven absence only; an outage or a denied read is Unavailable or
    another error, never absence.
    """

    where: str
    written: int
    """Stored bytes of the files that were put."""

    def get(self, path: str) -> bytes:
        """The bytes of a file."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """Write an immutable file whole; writing the same bytes again is harmless. Durable after `flush`."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a file durably unless there is one at `path` already; say whether it was written."""
        ...

    def flush(self) -> None:
        """Make everything that was put durable."""
        ...

    def read_head(self) -> tuple[bytes, Token]:
        """The bytes of HEAD and their token."""
        ...

    def swap_head(self, expected: Token, data: bytes, time: int) -> Token:
        """Replace HEAD durably if `expected` still stands for it. `time` is the HEAD's own, in Unix seconds.

        Raises puller.errors.Conflict, and changes nothing, if it does not.
        """
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """The paths that begin with `prefix`, all of them, in any order."""
        ...

    def files(self, prefix: str) -> Iterator[Listed]:
        """As `list`, with sizes and times, and with files that were never finished."""
        ...

    def clock(self) -> float:
        """The time by the store's clock, in Unix seconds."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file; harmless if there is none."""
        ...

    def collect(self, paths: Sequence[str], before: float) -> set[str]:
        """Remove those of some files that were last written before a time by the store's clock; return these.

        Must not remove what is put at the same time, even if it was written long ago before that.
        """
        ...

    def foreign(self) -> str | None:
        """A name in the store that is no part of a dataset, or None. An unfinished dataset has none."""
        ...
